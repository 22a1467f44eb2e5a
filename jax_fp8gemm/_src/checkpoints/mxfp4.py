# SPDX-License-Identifier: Apache-2.0
"""MXFP4 to block FP8: groups of 32 elements of e2m1 with an exponent, as gpt-oss stores experts."""

import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.operands import checks

GROUP = 32  # elements along K that share a scale
GROUP_BYTES = GROUP // 2
NAN = 255  # of UE8M0
_BIAS = 127  # of UE8M0
_ROWS, _GROUPS = fmt.BLOCK[0], fmt.BLOCK[1] // GROUP  # of a block
_MIN_EXPONENT = -126  # of a normal float32
# 448 = 0.875 * 2**9 is the largest of e4m3, and e2m1 has no fraction between 0.75 and 1: a largest
# element of f * 2**e, f from 0.5 to 1, is at most 448 times the scale 2**(e - 9).
_HEADROOM = 9
_ZERO = -1000  # an exponent that no element has
# Powers of two between groups and the scale of their block: at the lowest all elements round to 0,
# at the highest they are 0.5 or 0, and where it is higher still, 0.
_LOWEST, _HIGHEST = -16, _HEADROOM

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_CODES = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
_BYTES = np.arange(256)
# Elements of a byte: that of the low four bits is the first.
_PAIRS = _CODES[np.stack([_BYTES & 15, _BYTES >> 4], axis=-1)]
_EXPONENTS = np.where(_PAIRS == 0, _ZERO, np.frexp(_PAIRS)[1]).max(axis=-1).astype(np.int16)
# For each d and byte: both elements times 2**d in e4m3, and whether that is exact.
_SCALED = _PAIRS * np.exp2(np.arange(_LOWEST, _HIGHEST + 1))[:, None, None]
_ROUNDED = np.clip(_SCALED, -448, 448).astype(fmt.E4M3)
_TABLE = _ROUNDED.view(np.uint16).reshape(-1)
_IS_EXACT = (_ROUNDED.astype(np.float64) == _SCALED).all(axis=-1).reshape(-1)


def to_blocks(
    codes: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Re-encodes one matrix: each block gets the smallest power of two whose e4m3 holds it.

    Args:
        codes: `(N, K / 32, 16)` `uint8`: pairs of e2m1, the first in the low four bits.
        exponents: `(N, K / 32)` `uint8`: scales in UE8M0, none of them `NAN`.

    Returns:
        Values `(N, K)` `float8_e4m3fn`; scales `(ceil(N / 128), ceil(K / 128))` `float32`, 1 for a
        block of zeros; and for each block whether it is exact.
    """
    n, groups, _ = codes.shape
    powers = exponents.astype(np.int16) - _BIAS
    tops = _of_blocks(_EXPONENTS[codes].max(axis=-1) + powers, np.maximum, _ZERO)
    scales = np.where(tops < _ZERO // 2, 0, np.maximum(tops - _HEADROOM, _MIN_EXPONENT))
    of_groups = np.repeat(np.repeat(scales, _ROWS, axis=0), _GROUPS, axis=1)[:n, :groups]
    rows = np.clip(powers - of_groups, _LOWEST, _HIGHEST) - _LOWEST  # of the table
    index = rows[..., None].astype(np.int32) * 256 + codes
    values = _TABLE[index].view(np.uint8).view(fmt.E4M3).reshape(n, groups * GROUP)
    is_exact = _of_blocks(_IS_EXACT[index].all(axis=-1), np.logical_and, True)
    return values, np.exp2(scales.astype(np.float32)), is_exact


def to_dense(codes: np.ndarray, exponents: np.ndarray, rows: slice) -> np.ndarray:
    """Returns what rows of codes and exponents, as of `to_blocks`, mean in float64."""
    elements = _PAIRS[codes[rows]].reshape(*exponents[rows].shape, GROUP)
    elements *= np.exp2(exponents[rows].astype(np.float64) - _BIAS)[..., None]
    return elements.reshape(len(elements), -1)


def _of_blocks(array: np.ndarray, combine: np.ufunc, empty: int | bool) -> np.ndarray:
    """Combines what there is for each group of a block."""
    n, groups = array.shape
    rows, columns = checks.scales_shape((n, groups), (_ROWS, _GROUPS))
    padded = np.full((rows * _ROWS, columns * _GROUPS), empty, array.dtype)
    padded[:n, :groups] = array
    return combine.reduce(padded.reshape(rows, _ROWS, columns, _GROUPS), axis=(1, 3))
