# SPDX-License-Identifier: Apache-2.0
"""The boundary to the extension: registers the FFI targets and builds their calls.

The only module that imports `_core` and names FFI targets. Above it operands are called lhs and rhs,
below it a and b. Called by _gemm.py; calls csrc/ffi/gemm_handlers.cc.
"""

import functools
import glob
import importlib.util
import os
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm import _config, _core

GEMM_TARGET = "jax_fp8gemm.gemm.v1"
TARGET_NAMES = (GEMM_TARGET,)

_BLOCK = 128
# Bytes to which TMA wants rows of a tensor aligned.
_TMA_ALIGNMENT = 16
# What is planned for where no GPU can be asked: an H100 SXM or an H200.
_DEFAULT_NUM_SMS = 132
# SMs of the simulated device: few, so that its CTAs compute several tiles each.
_SIM_NUM_SMS = 4

SIM_LIBRARY = pathlib.Path(_core.__file__).parent / "libjax_fp8gemm_sim.so"


def _nvrtc_candidates() -> list[str]:
    """Returns full paths at which libnvrtc may be found, best first.

    jax's CUDA extras install it as a wheel: nvidia/cu13 for CUDA 13, nvidia/cuda_nvrtc for 12. Where
    both are there, the one of the installed jax plugin comes first.
    """
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    folders = ["cu13", "cuda_nvrtc"]
    if not importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec(
        "jax_cuda12_plugin"
    ):
        folders.reverse()
    chosen = _config.nvrtc()
    paths = [str(chosen)] if chosen else []
    patterns = [os.path.join(root, folder, "lib") for folder in folders for root in roots]
    if home := _config.cuda_home():
        patterns.append(str(home / "lib64"))
    for pattern in patterns:
        paths += sorted(glob.glob(os.path.join(pattern, "libnvrtc.so.*")), reverse=True)
    return [path for path in paths if ".alt." not in path]


def _warn(text: str) -> None:
    warnings.warn(f"jax_fp8gemm: {text}", RuntimeWarning, stacklevel=2)


@functools.cache
def core() -> Any:
    """Returns the extension module, set up and with its FFI targets registered."""
    directory = _config.cache_dir()
    _core.set_cache_directory(str(directory) if directory else "")
    _core.set_cache_warning_sink(_warn)
    _core.set_nvrtc_candidates(_nvrtc_candidates())
    _core.set_sim_library(str(SIM_LIBRARY))
    registrations = _core.registrations()
    jax.ffi.register_ffi_type(
        "jax_fp8gemm.gemm_state.v1", registrations["cuda_state_type"], platform="CUDA"
    )
    jax.ffi.register_ffi_target(GEMM_TARGET, registrations["cuda"], platform="CUDA")
    jax.ffi.register_ffi_target(GEMM_TARGET, registrations["sim"], platform="cpu")
    return _core


@functools.cache
def _device_num_sms() -> int:
    """Returns the SM count of the first CUDA device, or that of an H100 where there is none."""
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        return _DEFAULT_NUM_SMS
    return getattr(device, "core_count", None) or _DEFAULT_NUM_SMS


def planning_num_sms(backend: str, num_sms: int | None) -> int:
    """Returns how many SMs a plan may count on."""
    available = _SIM_NUM_SMS if backend == "sim" else _device_num_sms()
    return available if num_sms is None else min(num_sms, available)


def plan_gemm(
    m: int,
    n: int,
    k: int,
    *,
    lhs_dtype: Any,
    rhs_dtype: Any,
    preferred_element_type: Any,
    accumulate: bool,
    sm_count: int,
    backend: str,
) -> list[dict[str, Any]]:
    """Returns every candidate for a problem, best first, as dicts of tile and modelled times."""
    ranked = core().ranked_configs(
        m=m,
        n=n,
        k=k,
        a_dtype=np.dtype(lhs_dtype).name,
        b_dtype=np.dtype(rhs_dtype).name,
        d_dtype=np.dtype(preferred_element_type).name,
        accumulate=accumulate,
        num_sms=sm_count,
        backend=backend,
    )
    return [{"config": key, **core().describe_config(key), **cost} for key, cost in ranked]


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Returns x with zeros appended along `axis` up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths)


def gemm(
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    accumulator: jax.Array | None,
    *,
    preferred_element_type: Any,
    num_sms: int | None,
    backend: str,
    config: str = "",
) -> jax.Array:
    """Returns `[accumulator +] lhs @ rhs.T` from a custom call for `backend`.

    Operands are validated, two-dimensional and not empty. What TMA cannot address is padded here:
    rows of the operands and of the result to 16 bytes, the rows of `lhs_scales` to four (its M is
    innermost). Padding `lhs_scales` is fused into what produces it; padding operands copies them,
    which only happens where K is not a multiple of 16 or N not one of 8.

    Args:
        lhs_values: `(M, K)` fp8.
        lhs_scales: `(M, ceil(K / 128))` float32.
        rhs_values: `(N, K)` fp8.
        rhs_scales: `(ceil(N / 128), ceil(K / 128))` float32.
        accumulator: `(M, N)` of the result's dtype, or None.
        preferred_element_type: Dtype of the result.
        num_sms: Most SMs to use, or None.
        backend: "cuda" or "sim".
        config: Key of the configuration to use instead of the planner's choice.
    """
    core()
    m, k = lhs_values.shape
    n = rhs_values.shape[0]
    dtype = np.dtype(preferred_element_type)
    d_alignment = _TMA_ALIGNMENT // dtype.itemsize
    d_pitch = n + -n % d_alignment
    operands = [
        _pad(lhs_values, 1, _TMA_ALIGNMENT),
        _pad(lhs_scales, 0, _TMA_ALIGNMENT // 4),
        _pad(rhs_values, 1, _TMA_ALIGNMENT),
        rhs_scales,
    ]
    layouts = [(0, 1), (1, 0), (0, 1), (0, 1)]
    aliases = {}
    if accumulator is not None:
        operands.append(_pad(accumulator, 1, d_alignment))
        layouts.append((0, 1))
        aliases = {4: 0}
    padded = jax.ffi.ffi_call(
        GEMM_TARGET,
        jax.typeof(lhs_values).update(shape=(m, d_pitch), dtype=dtype),
        input_layouts=layouts,
        output_layouts=(0, 1),
        input_output_aliases=aliases,
    )(
        *operands,
        m=m,
        n=n,
        k=k,
        d_pitch=d_pitch,
        a_dtype=lhs_values.dtype.name,
        b_dtype=rhs_values.dtype.name,
        d_dtype=dtype.name,
        accumulate=accumulator is not None,
        pdl=_config.pdl(),
        num_sms=planning_num_sms(backend, num_sms),
        sm_limit=num_sms or 0,
        config=config,
    )
    return padded if d_pitch == n else padded[:, :n]
