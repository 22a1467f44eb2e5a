# SPDX-License-Identifier: Apache-2.0
"""What the micro-kernels must give, in plain NumPy, written from the PTX documentation.

Nothing here is shared with the simulator or the kernels: a mistake would have to be made twice.
"""

import ml_dtypes
import numpy as np

BACKGROUND = np.uint8(0xA5)
E4M3, E5M2 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)
# Exponent of the smallest normal number: subnormal operands count as having it.
_MIN_EXPONENT = {E4M3: -6, E5M2: -14}
_FRACTION_BITS = 13  # of the tensor cores' accumulation
CANONICAL_NAN = 0x7FFFFFFF


def swizzle(offsets: np.ndarray, span: int) -> np.ndarray:
    """Returns where TMA puts bytes of a box: 16-byte chunks trade places within `span` bytes.

    The pattern repeats every eight lines of 128 bytes: line i exchanges chunk c with chunk c ^ i
    for a span of 128, and with the lower two bits or one bit of i for 64 and 32.
    """
    if span == 0:
        return offsets
    line = offsets // 128 % 8
    chunk = offsets // 16 % 8
    swizzled = chunk ^ (line & (span // 16 - 1))
    return offsets // 128 * 128 + swizzled * 16 + offsets % 16


def box_of(tensor: np.ndarray, x: int, y: int, columns: int, rows: int) -> np.ndarray:
    """Returns a box of a 2-D array; what lies outside is zero."""
    box = np.zeros((rows, columns), tensor.dtype)
    height, width = tensor.shape
    for row in range(rows):
        for column in range(columns):
            if 0 <= y + row < height and 0 <= x + column < width:
                box[row, column] = tensor[y + row, x + column]
    return box


def box_in_smem(box: np.ndarray, span: int) -> np.ndarray:
    """Returns the bytes of a box as TMA lays them out in shared memory."""
    linear = np.ascontiguousarray(box).view(np.uint8).ravel()
    image = np.empty_like(linear)
    image[swizzle(np.arange(linear.size), span)] = linear
    return image


def store_box(memory: np.ndarray, row_bytes: int, box: np.ndarray, x: int, y: int) -> None:
    """Writes a box into the bytes of a tensor, in place; what lies outside is dropped.

    A store writes whole chunks of 16 bytes: where a row of the tensor ends within one, what follows
    it up to the chunk's end is written too (an H100: github.com/triton-lang/triton/issues/11583).

    Args:
        memory: (rows, pitch) bytes.
        row_bytes: Bytes of a row that belong to the tensor.
        box: (rows, columns) elements.
        x: Element at which the box begins.
        y: Row at which the box begins.
    """
    box = np.ascontiguousarray(box)
    end = row_bytes + -row_bytes % 16
    for row, data in enumerate(box.view(np.uint8).reshape(box.shape[0], -1)):
        for i, byte in enumerate(data):
            column = x * box.itemsize + i
            if 0 <= y + row < memory.shape[0] and 0 <= column < end:
                memory[y + row, column] = byte


def operand_in_smem(rows: np.ndarray) -> np.ndarray:
    """Returns the image of a K-major operand of 128-byte rows with 128B swizzle."""
    assert rows.shape[1] == 128 and rows.itemsize == 1
    return box_in_smem(rows, 128)


def fragments(matrix: np.ndarray) -> np.ndarray:
    """Returns a (64, n) result as the 128 threads of a warpgroup hold it: (128, n / 2)."""
    n = matrix.shape[1]
    threads = np.arange(128)[:, None]
    i = np.arange(n // 2)[None, :]
    rows = threads // 32 * 16 + threads % 32 // 4 + (i // 2 % 2) * 8
    columns = i // 4 * 8 + threads % 4 * 2 + i % 2
    return matrix[rows, columns]


def _exponents(values: np.ndarray, minimum: int) -> np.ndarray:
    return np.maximum(np.frexp(values)[1] - 1, minimum)


def _cut(values: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Returns values truncated toward zero to the fraction bits below 2**exponents."""
    unit = np.exp2(exponents.astype(np.float64) - _FRACTION_BITS)
    return np.trunc(values / unit) * unit


def mma_k32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Returns `a @ b.T + c` of one k32 step as Hopper's tensor cores round it.

    Each product and the accumulator is cut to 13 fraction bits below the largest of their
    exponents, where a product has the sum of its operands' exponents; their exact sum is cut to 13
    fraction bits of its own. Zero products have no exponent. A zero sum is +0, a NaN is canonical.

    Args:
        a: (64, 32) e4m3 or e5m2.
        b: (n, 32) e4m3 or e5m2.
        c: (64, n) float32, zero or normal.

    Returns:
        (64, n) float32.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        products = x[:, None, :] * y[None, :, :]
        plain = products.sum(axis=2) + c
        finite = np.isfinite(plain)
        products = np.where(np.isfinite(products), products, 0.0)
    exponents = (
        _exponents(np.nan_to_num(x), _MIN_EXPONENT[a.dtype])[:, None, :]
        + _exponents(np.nan_to_num(y), _MIN_EXPONENT[b.dtype])[None, :, :]
    )
    exponents = np.where(products == 0, -1000, exponents)
    start = np.where(finite, c, 0).astype(np.float64)
    c_exponents = np.where(start == 0, -1000, np.frexp(start)[1] - 1)
    largest = np.maximum(exponents.max(axis=2), c_exponents)
    largest = np.where(largest == -1000, 0, largest)
    total = _cut(products, largest[:, :, None]).sum(axis=2) + _cut(start, largest)
    total = _cut(total, np.where(total == 0, 0, np.frexp(total)[1] - 1))
    result = np.where(total == 0, 0.0, total).astype(np.float32)
    result = np.where(np.isinf(plain), plain.astype(np.float32), result)
    nan = np.uint32(CANONICAL_NAN).view(np.float32)
    return np.where(np.isnan(plain), nan, result)


def round_to_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns float32 bit patterns rounded to nearest even bfloat16 ones; NaN is 0x7fff."""
    bits = bits.astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, 0x7FFF, rounded).astype(np.uint16)


def round_to_float16(bits: np.ndarray) -> np.ndarray:
    """Returns float32 bit patterns rounded to nearest even float16 ones; NaN is 0x7fff."""
    values = bits.astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        magnitude = np.abs(values.astype(np.float64))
    usable = np.where(np.isfinite(magnitude) & (magnitude > 0), magnitude, 2.0**-14)
    exponent = np.maximum(np.frexp(usable)[1] - 1, -14)
    unit = np.exp2(exponent - 10.0)
    with np.errstate(invalid="ignore"):
        steps = np.rint(magnitude / unit)  # rint rounds to nearest even
        rounded = steps * unit
    # 0 <= steps <= 2048; a normal number has at least 1024 of them.
    finite = ((exponent + 14) * 1024 + np.where(np.isfinite(steps), steps, 0)).astype(np.int64)
    encoded = np.where(rounded >= 65536, 0x7C00, finite)
    encoded = np.where(np.isinf(magnitude), 0x7C00, encoded)
    encoded = encoded | (bits.astype(np.int64) >> 16 & 0x8000)
    return np.where(np.isnan(values), 0x7FFF, encoded).astype(np.uint16)


def saturated_fp8(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns float32 bit patterns rounded to nearest even float8 ones; NaN is 0x7f."""
    values = bits.astype(np.uint32).view(np.float32)
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        rounded = np.clip(values, -largest, largest).astype(dtype).view(np.uint8)
    return np.where(np.isnan(values), 0x7F, rounded).astype(np.uint8)


def half_to_float32(bits: np.ndarray) -> np.ndarray:
    """Returns float16 bit patterns as float32 ones; NaN is canonical."""
    sign = bits.astype(np.uint32) >> 15 << 31
    exponent = bits.astype(np.int64) >> 10 & 31
    fraction = (bits & 0x3FF).astype(np.int64)
    subnormal = (fraction * 2.0**-24).astype(np.float32).view(np.uint32)
    normal = ((exponent + 112) << 23 | fraction << 13).astype(np.uint32)
    value = np.where(exponent == 0, subnormal, normal)
    value = np.where(exponent == 31, 0x7F800000, value).astype(np.uint32)
    is_nan = (exponent == 31) & (fraction != 0)
    return np.where(is_nan, CANONICAL_NAN, value | sign).astype(np.uint32)


def stmatrix(smem: np.ndarray, addresses: np.ndarray, registers: np.ndarray) -> None:
    """Stores four 8x8 matrices of 16-bit elements for one warp, in place.

    Args:
        smem: Bytes of shared memory.
        addresses: (32,) offsets: lane 8 i + r gives row r of matrix i.
        registers: (32, 4) words: register i of lane l holds two elements of row l / 4 of matrix i.
    """
    for lane in range(32):
        for matrix in range(4):
            row_start = int(addresses[8 * matrix + lane // 4])
            word = registers[lane : lane + 1, matrix].copy().view(np.uint8)
            start = row_start + 4 * (lane % 4)
            smem[start : start + 4] = word
