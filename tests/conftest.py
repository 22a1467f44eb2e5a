# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite: strict JAX, warnings as errors, and tests that need hardware."""

import collections
import gc
import importlib.util
from pathlib import Path

import jax
import pytest

from jax_fp8gemm._src.native import calls, ranking, sim_library
from jax_fp8gemm._src.native import extension as extension_module

MOST_MAPPINGS = 30_000
IMPLEMENTATIONS = ("xla", "sim", pytest.param("cuda", marks=pytest.mark.hopper))


def pytest_configure(config):
    """Declares the markers, and makes warnings and silent promotions errors."""
    config.addinivalue_line(
        "markers", "hopper: needs an NVIDIA Hopper GPU (compute capability 9.0)"
    )
    config.addinivalue_line("filterwarnings", "error")
    # Loading the CUDA plugin on a machine without a GPU; nothing of ours.
    config.addinivalue_line("filterwarnings", "ignore:.*cuda.*:UserWarning:jax.*")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def why_no_hopper() -> str | None:
    """Returns why tests marked `hopper` cannot run, or None where they can."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return "needs a Hopper GPU: JAX finds no CUDA device"
    capability = devices[0].compute_capability
    return None if capability == "9.0" else f"needs a Hopper GPU: found capability {capability}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Skips what needs a Hopper GPU where there is none; marks what the fast tier leaves out."""
    counts = collections.Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled and counts[item.parent.nodeid, item.originalname] % sampled.args[0]:
            item.add_marker(pytest.mark.slow)
        counts[item.parent.nodeid, item.originalname] += bool(sampled)
    marked = [item for item in items if item.get_closest_marker("hopper")]
    reason = why_no_hopper() if marked else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish():
    """Keeps the garbage collector off what collecting has made: it lives as long as the run."""
    gc.freeze()


def has_extension() -> bool:
    """Returns whether the compiled part of the package is there."""
    return importlib.util.find_spec("jax_fp8gemm._core") is not None


@pytest.fixture(autouse=True, scope="module")
def bounded_number_of_programs():
    """Drops compiled programs before a process has as many mappings as Linux allows, 65,530.

    XLA's CPU programs have six each, and its compiler crashes where there can be no more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def extension():
    """Skips the test where the compiled part of the package is missing; returns `extension`."""
    if not has_extension():
        pytest.skip("needs the compiled extension jax_fp8gemm._core")
    return extension_module


@pytest.fixture
def simulator_library(extension):
    """Skips the test where this build has no simulator, or not its kernels."""
    if missing := sim_library.missing():
        pytest.skip(f"needs the simulator: {missing}")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """Runs a test with each implementation that this machine has."""
    if request.param != "xla":
        request.getfixturevalue("simulator_library" if request.param == "sim" else "extension")
    return request.param


@pytest.fixture
def replace_ffi(monkeypatch):
    """Returns a function that puts attributes in the place of those of the native modules."""

    def replace(**attributes):
        for name, value in attributes.items():
            (module,) = (m for m in (calls, extension_module, ranking) if name in vars(m))
            monkeypatch.setattr(module, name, value)

    return replace
