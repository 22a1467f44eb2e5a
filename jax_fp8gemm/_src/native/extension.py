# SPDX-License-Identifier: Apache-2.0
"""The extension module `_core`: set up once, its FFI targets registered, and what it plans for.

The only module that imports `_core`. Importing the package loads it, for programs that came from
another process; no CUDA library and no simulator is loaded before a kernel needs it.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import warnings
from typing import Any

import jax

from jax_fp8gemm._src.native import environment
from jax_fp8gemm._src.native.nvidia import nvidia_folders

GEMM_TARGET = "jax_fp8gemm.gemm.v1"
QUANTIZE_TARGET = "jax_fp8gemm.quantize.v1"
TARGET_NAMES = (GEMM_TARGET, QUANTIZE_TARGET)

# What is planned for where no GPU can be asked: an H100 SXM or an H200.
_DEFAULT_NUM_SMS = 132
# SMs of the simulated device: few, so that its CTAs compute several tiles each.
_SIM_NUM_SMS = 4

_SIM_LIBRARY = "libjax_fp8gemm_sim.so"


def _plugin_cuda_major() -> int:
    """Returns the CUDA major version of jax's installed plugin, 0 where there is none."""
    majors = [n for n in (13, 12) if importlib.util.find_spec(f"jax_cuda{n}_plugin")]
    return majors[0] if majors else 0


def _nvrtc_candidates() -> list[str]:
    """Returns full paths at which libnvrtc may be found, best first.

    jax's CUDA extras install it as a wheel: nvidia/cu13 for CUDA 13, nvidia/cuda_nvrtc for 12.
    """
    folders = [
        root / wheel / "lib" for wheel in ("cu13", "cuda_nvrtc") for root in nvidia_folders()
    ]
    home = environment.cuda_home()
    if home and os.path.isdir(home / "lib64"):  # `glob` raises where a name is too long
        folders.append(home / "lib64")
    paths = [path for each in folders for path in sorted(each.glob("libnvrtc.so.*"), reverse=True)]
    found = [str(path) for path in paths if ".alt." not in path.name]
    return [*found, "libnvrtc.so.13", "libnvrtc.so.12"]  # last: wherever the loader looks


def _warn(text: str) -> None:
    # Where warnings are errors, a cache that cannot be written still must not fail a compilation.
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(f"jax_fp8gemm: {text}", RuntimeWarning, stacklevel=2)


def _text(path: object) -> str:
    """Returns a path for C++; what is not UTF-8 becomes a name that only shows what it was."""
    return os.fsencode(str(path or "")).decode(errors="backslashreplace")


def sim_library() -> pathlib.Path:
    """Returns where the simulator lies if this installation has it: beside the extension."""
    spec = importlib.util.find_spec("jax_fp8gemm._core")
    folder = pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path()
    return folder / _SIM_LIBRARY


def keep_kernels(core: Any) -> None:
    """Has compiled kernels kept where the environment says."""
    core.set_cache_directory(_text(environment.cache_dir()), environment.cache_limit_bytes())


@functools.cache
def core() -> Any:
    """Returns the extension module, set up and with its FFI targets registered."""
    from jax_fp8gemm import _core

    keep_kernels(_core)
    _core.set_cache_warning_sink(_warn)
    # Wrong values of the others raise where they are used; the cache can do without.
    wrong = environment.complaints()
    for name in (environment.CACHE_DIR, environment.CACHE_LIMIT):
        if name in wrong:
            _warn(f"{name} {wrong[name]}")
    candidates = [_text(path) for path in _nvrtc_candidates()]
    _core.set_nvrtc_search(_text(environment.nvrtc()), _plugin_cuda_major(), candidates)
    _core.set_sim_library(_text(sim_library()))
    registrations = _core.registrations()
    for name, target in (("gemm", GEMM_TARGET), ("quantize", QUANTIZE_TARGET)):
        handlers = registrations[name]
        jax.ffi.register_ffi_type(
            f"jax_fp8gemm.{name}_state.v1", handlers["cuda_state_type"], platform="CUDA"
        )
        jax.ffi.register_ffi_target(target, handlers["cuda"], platform="CUDA")
        jax.ffi.register_ffi_target(target, handlers["sim"], platform="cpu")
    return _core


@functools.cache
def _first_gpu() -> Any | None:
    """Returns the first CUDA device, for which programs are planned, or None."""
    try:
        return jax.devices("cuda")[0]
    except RuntimeError:
        return None


def planning_num_sms(backend: str, num_sms: int | None) -> int:
    """Returns how many SMs a plan may count on."""
    if backend == "sim":
        available = _SIM_NUM_SMS  # without asking for a GPU, which would initialize CUDA
    else:
        available = getattr(_first_gpu(), "core_count", None) or _DEFAULT_NUM_SMS
    return available if num_sms is None else min(num_sms, available)


def planning_gpu(backend: str) -> str:
    """Returns the GPU model whose tuned table applies; empty where there is none."""
    return getattr(_first_gpu(), "device_kind", "") if backend == "cuda" else ""
