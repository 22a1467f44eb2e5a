# SPDX-License-Identifier: Apache-2.0
"""DeepGEMM's names over this package's functions, for people who come from it.

The functions return their result instead of writing into an argument, and take the scales in
the layout of `BlockScaled`; whatever layout the kernels want is arranged inside. Names of DeepGEMM
before its version 2 are kept: `gemm_fp8_fp8_bf16_nt` is `fp8_gemm_nt`, and so on.
"""

import jax
import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.ops.gemm import Operand, gemm
from jax_fp8gemm._src.ops.grouped_gemm import contiguous_alignment, grouped_gemm_contiguous
from jax_fp8gemm._src.ops.grouped_gemm_masked import grouped_gemm_masked
from jax_fp8gemm._src.ops.k_grouped_gemm import k_grouped_gemm
from jax_fp8gemm._src.tables import TMA_ALIGNMENT_BYTES
from jax_fp8gemm._src.xla import grouped as xla_grouped

# Mutable because DeepGEMM's interface is; gemm's own num_sms is the better way.
_settings = {"num_sms": 0}


def fp8_gemm_nt(lhs: Operand, rhs: Operand, c: jax.Array | None = None) -> jax.Array:
    """Returns `gemm(lhs, rhs)` in bfloat16, or added to `c` in its dtype, on `get_num_sms()` SMs.

    Args:
        lhs: `(values, scales)` of shapes `(M, K)` and `(M, ceil(K / 128))`.
        rhs: `(values, scales)` of shapes `(N, K)` and `(ceil(N / 128), ceil(K / 128))`.
        c: `(M, N)` `float32`, `bfloat16` or `float16` to add the product to, or None.

    Returns:
        `(M, N)` `bfloat16`, or of the dtype of `c`.

    Raises:
        TypeError: As `gemm`.
        ValueError: As `gemm`.

    Transformations:
        As `gemm`; the SM count is read while tracing.

    Example:
        >>> out = fp8_gemm_nt((x, x_scales), (w, w_scales))
    """
    dtype = jnp.bfloat16 if c is None else c.dtype
    options = {"preferred_element_type": dtype, "num_sms": get_num_sms() or None}
    return gemm(lhs, rhs, accumulator=c, **options)


def m_grouped_fp8_gemm_nt_contiguous(lhs: Operand, rhs: Operand, m_indices: jax.Array) -> jax.Array:
    """Returns `grouped_gemm_contiguous(lhs, rhs, m_indices)` in bfloat16, on `get_num_sms()` SMs.

    Args:
        lhs: `(values, scales)` of shapes `(M, K)` and `(M, ceil(K / 128))`; each group starts at a
            multiple of `get_m_alignment_for_contiguous_layout()`.
        rhs: `(values, scales)` of shapes `(G, N, K)` and `(G, ceil(N / 128), ceil(K / 128))`.
        m_indices: `(M,)` integer group of each row, -1 for padding.

    Returns:
        `(M, N)` `bfloat16`; zeros in rows of padding.

    Raises:
        TypeError: As `grouped_gemm_contiguous`.
        ValueError: As `grouped_gemm_contiguous`.

    Transformations:
        As `grouped_gemm_contiguous`; the SM count is read while tracing.

    Example:
        >>> out = m_grouped_fp8_gemm_nt_contiguous(
        ...     (x, x_scales), (experts, expert_scales), m_indices
        ... )
    """
    return grouped_gemm_contiguous(lhs, rhs, m_indices, num_sms=get_num_sms() or None)


def m_grouped_fp8_gemm_nt_masked(
    lhs: Operand, rhs: Operand, masked_m: jax.Array, expected_m: int
) -> jax.Array:
    """Returns `grouped_gemm_masked(lhs, rhs, masked_m)` in bfloat16, on `get_num_sms()` SMs.

    Args:
        lhs: `(values, scales)` of shapes `(G, M_max, K)` and `(G, M_max, ceil(K / 128))`.
        rhs: `(values, scales)` of shapes `(G, N, K)` and `(G, ceil(N / 128), ceil(K / 128))`.
        masked_m: `(G,)` integers, how many rows of each group count.
        expected_m: How many are likely to; the kernel is chosen by it.

    Returns:
        `(G, M_max, N)` `bfloat16`; rows that do not count are unspecified, as DeepGEMM's are.

    Raises:
        TypeError: As `grouped_gemm_masked`.
        ValueError: As `grouped_gemm_masked`.

    Transformations:
        As `grouped_gemm_masked`; the SM count is read while tracing.

    Example:
        >>> out = m_grouped_fp8_gemm_nt_masked(
        ...     (slots, slot_scales), (experts, expert_scales), masked_m, 8
        ... )
    """
    return grouped_gemm_masked(
        lhs,
        rhs,
        masked_m,
        expected_m=expected_m,
        padding="unspecified",
        num_sms=get_num_sms() or None,
    )


def k_grouped_fp8_gemm_tn_contiguous(
    lhs: tuple[jax.Array, jax.Array],
    rhs: tuple[jax.Array, jax.Array],
    ks: jax.Array,
    c: jax.Array | None = None,
) -> jax.Array:
    """Returns `k_grouped_gemm` of operands with tokens in front, in float32, added to `c` if given.

    The kernels want tokens last, as `quantize_k_grouped` writes them: XLA transposes the values.

    Args:
        lhs: `(values, scales)` of shapes `(T, M)` and `(T / 128, M)`, one scale per 128 tokens.
        rhs: `(values, scales)` of shapes `(T, N)` and `(T / 128, N)`.
        ks: `(G,)` integers, how many tokens each group has: multiples of 128.
        c: `(G, M, N)` `float32` to add the products to, or None.

    Returns:
        `(G, M, N)` `float32`.

    Raises:
        TypeError: As `k_grouped_gemm`.
        ValueError: As `k_grouped_gemm`.

    Transformations:
        As `k_grouped_gemm`; the SM count is read while tracing.

    Example:
        >>> dw = k_grouped_fp8_gemm_tn_contiguous((dy, dy_scales), (x, x_scales), ks)
    """
    lhs, rhs = jax.tree.map(jnp.transpose, (lhs, rhs))
    return k_grouped_gemm(lhs, rhs, ks, accumulator=c, num_sms=get_num_sms() or None)


def k_grouped_fp8_gemm_nt_contiguous(
    lhs: tuple[jax.Array, jax.Array],
    rhs: tuple[jax.Array, jax.Array],
    ks: jax.Array,
    c: jax.Array | None = None,
) -> jax.Array:
    """Returns `k_grouped_gemm` of groups that lie one behind the other, added to `c` if given.

    What DeepGEMM takes on Hopper: the matrix of each group, `(M, K_g)` and `(N, K_g)`, flattened.
    The kernels want groups side by side, as `quantize_k_grouped` writes them: XLA gathers the
    values, whose places depend on `ks`.

    Args:
        lhs: `(values, scales)` of shapes `(M * T,)` and `(M, T / 128)`, one scale per 128 tokens.
        rhs: `(values, scales)` of shapes `(N * T,)` and `(N, T / 128)`.
        ks: `(G,)` integers, how many tokens each group has: multiples of 128.
        c: `(G, M, N)` `float32` to add the products to, or None.

    Returns:
        `(G, M, N)` `float32`.

    Raises:
        TypeError: As `k_grouped_gemm`.
        ValueError: As `k_grouped_gemm`; or an operand has other shapes, or 2**31 values.

    Transformations:
        As `k_grouped_gemm`; the SM count is read while tracing.

    Example:
        >>> dw = k_grouped_fp8_gemm_nt_contiguous((dy, dy_scales), (x, x_scales), ks)
    """
    name = "k_grouped_fp8_gemm_nt_contiguous"
    sizes = group_checks.int32(name, "ks", ks)
    lhs = _side_by_side(name, "lhs", lhs, sizes)
    rhs = _side_by_side(name, "rhs", rhs, sizes)
    return k_grouped_gemm(lhs, rhs, sizes, accumulator=c, num_sms=get_num_sms() or None)


def _side_by_side(op_name: str, name: str, operand, sizes: jax.Array) -> tuple:
    """Returns values `(M, T)` and scales of an operand whose groups lie behind each other."""
    values, scales = operand
    checks.is_array(op_name, f"{name} values", values)
    checks.is_array(op_name, f"{name} scales", scales)
    if scales.ndim != 2 or values.shape != (scales.size * 128,):
        raise ValueError(
            f"{op_name}: {name} must have values of shape (M * T,) and scales of shape"
            f" (M, T / 128), got {tuple(values.shape)} and {tuple(scales.shape)}."
        )
    if values.size >= 2**31:
        raise ValueError(f"{op_name}: {name} must have fewer than 2**31 values, got {values.size}.")
    num_rows, num_tokens = scales.shape[0], scales.shape[1] * 128
    ends = xla_grouped.running_ends(sizes, num_tokens)
    group = xla_grouped.group_of(ends, jnp.arange(num_tokens, dtype=jnp.int32))
    # Tokens in no group are not read.
    starts = xla_grouped.starts_of(ends)
    start, end = (x.at[group].get(mode="fill", fill_value=0)[None] for x in (starts, ends))
    row, token = (
        jax.lax.broadcasted_iota(jnp.int32, (num_rows, num_tokens), axis) for axis in (0, 1)
    )
    place = start * num_rows + row * (end - start) + token - start
    bits = jax.lax.bitcast_convert_type(values, jnp.uint8)[place]
    return jax.lax.bitcast_convert_type(bits, values.dtype), scales


# The names before DeepGEMM's version 2.
gemm_fp8_fp8_bf16_nt = fp8_gemm_nt
m_grouped_gemm_fp8_fp8_bf16_nt_contiguous = m_grouped_fp8_gemm_nt_contiguous
m_grouped_gemm_fp8_fp8_bf16_nt_masked = m_grouped_fp8_gemm_nt_masked


def set_num_sms(num_sms: int) -> None:
    """Sets how many SMs the functions of this module use, where they are traced from now on.

    Args:
        num_sms: 1 to 1024, or 0 for all.

    Raises:
        TypeError: `num_sms` is not an int.
        ValueError: `num_sms` is out of range.
    """
    _settings["num_sms"] = checks.extent("set_num_sms", "num_sms", num_sms, 0, checks.MAX_NUM_SMS)


def get_num_sms() -> int:
    """Returns what `set_num_sms` set, 0 while unset."""
    return _settings["num_sms"]


def ceil_div(x: int, y: int) -> int:
    """Returns x / y rounded up."""
    return -(-x // y)


def get_m_alignment_for_contiguous_layout() -> int:
    """Returns the multiple of rows at which each group of a contiguous layout starts."""
    return contiguous_alignment()


def get_tma_aligned_size(x: int, element_size: int) -> int:
    """Returns x rounded up so that x elements of `element_size` bytes fill whole 16-byte units.

    Args:
        x: Number of elements.
        element_size: Bytes per element, a divisor of 16.

    Raises:
        ValueError: `element_size` does not divide 16.
    """
    if element_size < 1 or TMA_ALIGNMENT_BYTES % element_size:
        raise ValueError(
            f"get_tma_aligned_size: element_size must divide {TMA_ALIGNMENT_BYTES},"
            f" got {element_size}."
        )
    alignment = TMA_ALIGNMENT_BYTES // element_size
    return ceil_div(x, alignment) * alignment


def get_col_major_tma_aligned_tensor(x: jax.Array) -> jax.Array:
    """Returns the scales unchanged: under JAX the layout is XLA's to choose.

    The kernels ask for column-major scales themselves, which the fusion that computes the scales
    then writes at no cost.

    Args:
        x: `(M, K)` or `(G, M, K)` `float32`.

    Raises:
        TypeError: `x` is not a float32 array.
        ValueError: `x` has another number of dimensions.
    """
    op_name = "get_col_major_tma_aligned_tensor"
    checks.array(op_name, "x", x, (jnp.dtype(jnp.float32),))
    if len(x.shape) not in (2, 3):
        raise ValueError(f"{op_name}: x must have 2 or 3 dimensions, got shape {tuple(x.shape)}.")
    return x
