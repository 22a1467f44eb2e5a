# SPDX-License-Identifier: Apache-2.0
"""What a quantize kernel is tried on, and whether its result is that of plain JAX bit for bit."""

import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.ops.quantizer import Operands, Quantizer
from jax_fp8gemm._src.transforms.apply import apply
from jax_fp8gemm._src.xla import activation

_TYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_DTYPES = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
_LAYOUTS = {
    "quantize_kgrouped": "k_grouped",
    "quantize_rows_transposed": "rows_and_transposed",
    "quantize_rows_kgrouped": "rows_and_k_grouped",
}
_SHAPE = (2, 150, 202)  # a batch; rows and columns that no vector, warp or tile divides
_NUM_GROUPS = 70  # more than two warps of them


def _sizes() -> np.ndarray:
    """Returns sizes of few rows, some negative, at last more rows than there are."""
    sizes = np.resize([3, 0, -4, 1, 0], (2, _NUM_GROUPS)).astype(np.int32)
    sizes[0, 40:], sizes[1, 65] = 0, 2**31 - 1
    sizes[0, 40] = 100
    return sizes


def _numbers() -> np.ndarray:
    """Returns rows of all magnitudes, a block of zeros, a NaN and the largest number there is."""
    rng = np.random.default_rng(0)
    magnitudes = np.exp2(np.linspace(-140, 127, _SHAPE[1]))[:, None]
    x = (np.clip(rng.standard_normal(_SHAPE), -1.9, 1.9) * magnitudes).astype(np.float32)
    x[1, :128, :128] = 0
    x[0, 5, 7] = np.nan
    x[0, -1, 9] = np.finfo(np.float32).max
    return x


def _is_close(a: np.ndarray, b: np.ndarray, *, is_scale: bool) -> np.ndarray:
    """Says where two numbers differ by no more than a rounding that was next to a tie."""
    with np.errstate(invalid="ignore"):
        if is_scale:
            return np.abs(a - b) <= 2.0**-7 * np.abs(b)  # of bfloat16
        return np.abs(a - b) <= 2.0**-3 * np.maximum(np.abs(b), 2.0**-6)


def mismatch(key: str) -> str:
    """Returns where the kernel `key` differs from plain JAX; empty if nowhere."""
    family, x_type, dtype, scales = key.split(".")
    layout = _LAYOUTS.get(family, family.removeprefix("quantize_"))
    with np.errstate(over="ignore"):  # the largest number becomes infinite in another type
        x = jnp.asarray(_numbers().astype(jnp.dtype(_TYPES[x_type])))
    is_activation = layout in activation.KINDS
    up = row_factors = column_factors = None
    rng = np.random.default_rng(1)
    if layout in activation.GATED:
        up = jnp.asarray(rng.standard_normal(_SHAPE)).astype(x.dtype)
    is_norm = layout == activation.NORM
    if is_norm:
        # Of each matrix its own. That of a row of ordinary numbers is infinite: so is its block
        # beside the padding, which stays zeros.
        column_factors = jnp.asarray(rng.standard_normal((2, _SHAPE[2])), jnp.float32)
        row_factors = jnp.asarray(rng.standard_normal((2, _SHAPE[1])), jnp.float32)
        row_factors = row_factors.at[1, 75].set(jnp.inf)
    # Of rows too: the leading ones of each matrix are valid.
    has_sizes = layout.endswith("k_grouped") or is_activation
    sizes = jnp.asarray(_sizes()) if has_sizes else None
    scale_format = {"f32": "float32"}.get(scales, scales)
    operands = Operands(x, None, sizes, up, row_factors, column_factors)
    got, want = (
        apply(Quantizer(key, layout, jnp.dtype(_DTYPES[dtype]), scale_format, each), operands)
        for each in ("sim", "xla")
    )
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        name = ("values", "scales", "row values", "row scales")[i]
        a, b = (np.asarray(y).astype(np.float32) for y in (a, b))
        wrong = (a != b) & ~(np.isnan(a) & np.isnan(b))
        if is_activation and not is_norm:
            wrong &= ~_is_close(a, b, is_scale=i == 1)
        if wrong.any():
            at = tuple(map(int, np.argwhere(wrong)[0]))
            return f"{wrong.sum()} {name} are wrong, the first is {at}: got {a[at]}, want {b[at]}"
    return ""
