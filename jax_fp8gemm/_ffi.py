# SPDX-License-Identifier: Apache-2.0
"""The boundary to the extension: its settings, its planner, and the custom calls of its targets.

The only module that imports `_core` and names FFI targets. Products have one target and quantisers
another, each for all kinds and both platforms: kernels on CUDA, the simulator on the CPU. Above it
operands are called lhs and rhs, below it a and b. Calls the handlers of csrc/ffi.
"""

import contextlib
import functools
import importlib.util
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm import _config, _core, _tuned
from jax_fp8gemm._nvidia import nvidia_folders
from jax_fp8gemm._problem import Problem

GEMM_TARGET = "jax_fp8gemm.gemm.v1"
QUANTIZE_TARGET = "jax_fp8gemm.quantize.v1"
EMPTY_TARGET = "jax_fp8gemm.empty.v1"
TARGET_NAMES = (GEMM_TARGET, QUANTIZE_TARGET)

_BLOCK = 128
# Bytes to which TMA wants rows of a tensor aligned.
_TMA_ALIGNMENT = 16
# Rows to which that aligns float32 scales with rows innermost.
_SCALE_ROWS = _TMA_ALIGNMENT // 4
# What is planned for where no GPU can be asked: an H100 SXM or an H200.
_DEFAULT_NUM_SMS = 132
# SMs of the simulated device: few, so that its CTAs compute several tiles each.
_SIM_NUM_SMS = 4

SIM_LIBRARY = pathlib.Path(_core.__file__).parent / "libjax_fp8gemm_sim.so"


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
    if home := _config.cuda_home():
        folders.append(home / "lib64")
    paths = [path for each in folders for path in sorted(each.glob("libnvrtc.so.*"), reverse=True)]
    found = [str(path) for path in paths if ".alt." not in path.name]
    return [*found, "libnvrtc.so.13", "libnvrtc.so.12"]  # last: wherever the loader looks


def _warn(text: str) -> None:
    # Where warnings are errors, a cache that cannot be written still must not fail a compilation.
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(f"jax_fp8gemm: {text}", RuntimeWarning, stacklevel=2)


@functools.cache
def core() -> Any:
    """Returns the extension module, set up and with its FFI targets registered."""
    directory = _config.cache_dir()
    _core.set_cache_directory(str(directory) if directory else "")
    _core.set_cache_warning_sink(_warn)
    _core.set_nvrtc_search(str(_config.nvrtc() or ""), _plugin_cuda_major(), _nvrtc_candidates())
    _core.set_sim_library(str(SIM_LIBRARY))
    registrations = _core.registrations()
    for name, target in (("gemm", GEMM_TARGET), ("quantize", QUANTIZE_TARGET)):
        handlers = registrations[name]
        jax.ffi.register_ffi_type(
            f"jax_fp8gemm.{name}_state.v1", handlers["cuda_state_type"], platform="CUDA"
        )
        jax.ffi.register_ffi_target(target, handlers["cuda"], platform="CUDA")
        jax.ffi.register_ffi_target(target, handlers["sim"], platform="cpu")
    for platform in ("CUDA", "cpu"):
        jax.ffi.register_ffi_target(EMPTY_TARGET, registrations["empty"], platform=platform)
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
        available = _SIM_NUM_SMS  # without asking for a GPU, which would initialise CUDA
    else:
        available = getattr(_first_gpu(), "core_count", None) or _DEFAULT_NUM_SMS
    return available if num_sms is None else min(num_sms, available)


def planning_gpu(backend: str) -> str:
    """Returns the GPU model whose tuned table applies; empty where there is none."""
    return getattr(_first_gpu(), "device_kind", "") if backend == "cuda" else ""


def tuned_entry(problem: Problem, gpu: str) -> _tuned.Entry | None:
    """Returns what was measured for a problem on a GPU model, if anything."""
    return _tuned.lookup(problem, gpu, core().describe_config) if gpu else None


def rank(problem: Problem, *, backend: str, gpu: str | None = None) -> list[dict[str, Any]]:
    """Returns every configuration for a problem, best first, as dicts of tile and modelled times.

    Args:
        problem: What is computed.
        backend: "cuda" or "sim".
        gpu: Model whose tuned table goes before the model; None for that of the first GPU.
    """
    fields = problem._asdict()
    ranked = dict(core().ranked_configs(fields, backend))
    entry = tuned_entry(problem, planning_gpu(backend) if gpu is None else gpu)
    if entry:
        key = entry.best.config
        cost = ranked.pop(key, None) or core().config_cost(fields, key)
        ranked = {key: cost | {"measured_microseconds": entry.best.microseconds}} | ranked
    return [{"config": key, **core().describe_config(key), **cost} for key, cost in ranked.items()]


def rank_configs(
    *,
    kind: str,
    scaling: str,
    m: int,
    n: int,
    k: int,
    num_groups: int,
    lhs_dtype: Any,
    rhs_dtype: Any,
    preferred_element_type: Any,
    accumulate: bool,
    expected_m: int = 0,
    zero_padding: bool = False,
    num_sms: int,
    backend: str,
) -> list[dict[str, Any]]:
    """Returns `rank` of the problem with these fields."""
    problem = Problem(
        m=m,
        n=n,
        k=k,
        kind=kind,
        scaling=scaling,
        num_groups=num_groups,
        a_dtype=np.dtype(lhs_dtype).name,
        b_dtype=np.dtype(rhs_dtype).name,
        d_dtype=np.dtype(preferred_element_type).name,
        accumulate=accumulate,
        expected_m=expected_m,
        zero_padding=zero_padding,
        num_sms=num_sms,
    )
    return rank(problem, backend=backend)


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Returns x with zeros appended along `axis` up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths)


def _addressable(
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    rhs_is_1x128: bool,
) -> tuple[list[jax.Array], list[tuple[int, int]]]:
    """Returns the operands as TMA can address them, and their layouts, major to minor."""
    operands = [
        _pad(lhs_values, 1, _TMA_ALIGNMENT),
        _pad(lhs_scales, 0, _SCALE_ROWS),
        _pad(rhs_values, 1, _TMA_ALIGNMENT),
        _pad(rhs_scales, 0, _SCALE_ROWS) if rhs_is_1x128 else rhs_scales,
    ]
    rows_innermost = (1, 0)
    return operands, [(0, 1), rows_innermost, (0, 1), rows_innermost if rhs_is_1x128 else (0, 1)]


def matmul(
    kind: str,
    lhs_values: jax.Array,
    lhs_scales: jax.Array,
    rhs_values: jax.Array,
    rhs_scales: jax.Array,
    group_data: jax.Array | None,
    accumulator: jax.Array | None,
    *,
    m: int,
    n: int,
    num_groups: int,
    d_rows: int,
    preferred_element_type: Any,
    num_sms: int | None,
    backend: str,
    rhs_is_1x128: bool = False,
    expected_m: int = 0,
    zero_padding: bool = False,
    config: str = "",
) -> jax.Array:
    """Returns `(d_rows, n)`, the products of one matrix or of groups, from a custom call.

    Operands are validated, two-dimensional and not empty. What TMA cannot address is padded here:
    rows of the operands and of the result to 16 bytes, rows of 1x128 scales to four (the kernels
    want rows innermost). Padding scales is fused into what produces them; padding operands copies
    them, which only happens where K is not a multiple of 16 or N not one of 8.

    Args:
        kind: "dense", "ragged", "contiguous", "masked" or "k_grouped".
        lhs_values: `(lhs rows, K)` fp8.
        lhs_scales: `(lhs rows, ceil(K / 128))` float32.
        rhs_values: `(rhs rows, K)` fp8; groups one after the other.
        rhs_scales: With 128x128 blocks `(groups * ceil(n / 128), ceil(K / 128))` float32, with
            1x128 as `lhs_scales`.
        group_data: int32: `group_sizes`, `masked_m` or `group_ids`; None for "dense".
        accumulator: As the result, or None.
        m: Rows of one output matrix; for "ragged" and "contiguous" of all groups together.
        n: Columns of the result.
        num_groups: Number of groups, 1 for "dense".
        d_rows: Rows of the result.
        preferred_element_type: Dtype of the result.
        num_sms: Most SMs to use, or None.
        backend: "cuda" or "sim".
        rhs_is_1x128: Whether `rhs_scales` are per 1x128.
        expected_m: Rows that a masked group is likely to have, for planning; 0 if unknown.
        zero_padding: Whether rows of masked groups that do not count become zeros.
        config: Key of the configuration to use; empty for that of the tuned table of the first
            GPU's model, or where it has none the planner's.
    """
    dtype = np.dtype(preferred_element_type)
    problem = Problem(
        m=m,
        n=n,
        k=lhs_values.shape[1],
        kind=kind,
        scaling="1d1d" if rhs_is_1x128 else "1d2d",
        num_groups=num_groups,
        a_dtype=lhs_values.dtype.name,
        b_dtype=rhs_values.dtype.name,
        d_dtype=dtype.name,
        accumulate=accumulator is not None,
        expected_m=expected_m,
        zero_padding=zero_padding,
        num_sms=planning_num_sms(backend, num_sms),
    )
    if not config and (entry := tuned_entry(problem, planning_gpu(backend))):
        config = entry.best.config
    return _call(
        problem,
        [lhs_values, lhs_scales, rhs_values, rhs_scales],
        group_data,
        accumulator,
        d_rows=d_rows,
        sm_limit=num_sms or 0,
        config=config,
    )


def _call(
    problem: Problem,
    operands: list[jax.Array],
    group_data: jax.Array | None,
    accumulator: jax.Array | None,
    *,
    d_rows: int,
    sm_limit: int,
    config: str,
) -> jax.Array:
    """Returns the result of the custom call for a problem; operands as those of `matmul`."""
    core()
    dtype, n = np.dtype(problem.d_dtype), problem.n
    d_alignment = _TMA_ALIGNMENT // dtype.itemsize
    d_pitch = n + -n % d_alignment
    result = jax.typeof(operands[0]).update(shape=(d_rows, d_pitch), dtype=dtype)
    operands, layouts = _addressable(*operands, problem.scaling == "1d1d")
    aliases = {}
    if group_data is not None:
        operands.append(group_data)
    if accumulator is not None:
        aliases = {len(operands): 0}
        operands.append(_pad(accumulator, 1, d_alignment))
    call = jax.ffi.ffi_call(
        GEMM_TARGET,
        result,
        input_layouts=layouts + [None] * (len(operands) - len(layouts)),
        output_layouts=(0, 1),
        input_output_aliases=aliases,
    )
    padded = call(
        *operands,
        **problem._asdict(),
        d_pitch=d_pitch,
        pdl=_config.pdl(),
        sm_limit=sm_limit,
        config=config,
    )
    return padded if d_pitch == n else padded[:, :n]


# Rows innermost, behind a batch: how the kernels of products read scales per 1x128.
_ROWS_INNERMOST = (0, 2, 1)


def quantize(
    layout: str,
    x: jax.Array,
    x_scales: jax.Array | None,
    group_sizes: jax.Array | None,
    *,
    values_shape: tuple[int, ...],
    scales_shape: tuple[int, ...],
    dtype: Any,
    scale_format: str,
    backend: str,
) -> tuple[jax.Array, jax.Array]:
    """Returns float8 values and scales of a batch of matrices, from a custom call.

    Operands are validated and not empty. Scales per 1x128 come with rows innermost, padded as
    `matmul` wants them, and cut to size: for multiples of four no copy lies between the two.

    Args:
        layout: "rows" (for a batch of 1), "blocks", "transposed" or "k_grouped".
        x: `(B, R, K)`.
        x_scales: `(B, R, ceil(K / 128))` float32 if x is float8, else None.
        group_sizes: `(B, G)` int32 for "k_grouped", else None.
        values_shape: Shape `(B, ., .)` of the values.
        scales_shape: Shape `(B, ., .)` of the scales.
        dtype: Dtype of the values.
        scale_format: "float32" or "pow2".
        backend: "cuda" or "sim".
    """
    core()
    batch, rows, columns = x.shape
    num_groups = 0 if group_sizes is None else group_sizes.shape[1]
    _, scale_rows, num_blocks = scales_shape
    padded_rows, scales_layout = scale_rows, (0, 1, 2)
    if layout != "blocks":
        padded_rows += -scale_rows % _SCALE_ROWS
        scales_layout = _ROWS_INNERMOST
    given = [(x, (0, 1, 2)), (x_scales, _ROWS_INNERMOST), (group_sizes, (0, 1))]
    operands, layouts = zip(*(each for each in given if each[0] is not None), strict=True)
    like = jax.typeof(x)
    values, scales = jax.ffi.ffi_call(
        QUANTIZE_TARGET,
        (
            like.update(shape=values_shape, dtype=np.dtype(dtype)),
            like.update(shape=(batch, padded_rows, num_blocks), dtype=np.dtype(np.float32)),
        ),
        input_layouts=layouts,
        output_layouts=((0, 1, 2), scales_layout),
    )(
        *operands,
        layout=layout,
        batches=batch,
        rows=rows,
        columns=columns,
        num_groups=num_groups,
        x_dtype=x.dtype.name,
        dtype=np.dtype(dtype).name,
        scale_format=scale_format,
    )
    return values, scales[:, :scale_rows]


def empty_call(x: jax.Array) -> jax.Array:
    """Returns x from a custom call that enqueues nothing, to measure what a call costs."""
    core()
    return jax.ffi.ffi_call(EMPTY_TARGET, jax.typeof(x), input_output_aliases={0: 0})(x)
