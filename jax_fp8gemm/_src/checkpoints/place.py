# SPDX-License-Identifier: Apache-2.0
"""From checked tensors of files to arrays on devices, each device reading its slices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import layouts, mxfp4
from jax_fp8gemm._src.checkpoints.read import MXFP4, Source, cut_axes
from jax_fp8gemm._src.checkpoints.rounding import Rounding, measure, total
from jax_fp8gemm._src.checkpoints.safetensors_files import Tensor
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.ops.quantize import quantize

_NAME = "checkpoint.load"
_ALIGNMENT_BYTES = 64
_F32 = jnp.dtype(jnp.float32)

# Reads the slice at an index of a tensor. Any: JAX's annotation of an index adds None.
Reader = Callable[[Any], np.ndarray]


def place(
    source: Source, sharding: jax.sharding.Sharding | None, requantize: bool
) -> tuple[BlockScaled | jax.Array, Rounding]:
    """Brings one result to its devices; also returns what of it was rounded."""
    if source.scales and (source.layout == MXFP4 or not source.is_exact):
        return _place_encoded(source, sharding, requantize)
    dtype = jax.dtypes.canonicalize_dtype(source.values[0].dtype)
    readers = [functools.partial(_read, tensor, dtype=dtype) for tensor in source.values]
    values = _place_array(source.each_shape, readers, source.lead, sharding)
    if not source.scales:
        return values, Rounding()
    readers = [functools.partial(_read_scales, source, scale) for scale in source.scales]
    shape = checks.scales_shape(source.each_shape, fmt.BLOCK)
    scales = _place_array(shape, readers, source.lead, _of_scales(sharding, source.shape))
    return BlockScaled(values, scales, fmt.BLOCK), Rounding()


def _place_encoded(
    source: Source, sharding: jax.sharding.Sharding | None, requantize: bool
) -> tuple[BlockScaled, Rounding]:
    """Brings a result to its devices that is encoded anew, all of it on the host."""
    pairs = zip(source.values, source.scales, strict=True)
    if source.layout == MXFP4:
        encoded = [_of_mxfp4(value, scale, requantize) for value, scale in pairs]
    else:
        encoded = [_requantized(value, scale, source.layout) for value, scale in pairs]

    def place_one(arrays: tuple[np.ndarray, ...], where) -> jax.Array:
        readers = [array.__getitem__ for array in arrays]
        return _place_array(arrays[0].shape, readers, source.lead, where)

    values, scales, roundings = zip(*encoded, strict=True)
    of_scales = _of_scales(sharding, source.shape)
    weight = BlockScaled(place_one(values, sharding), place_one(scales, of_scales), fmt.BLOCK)
    return weight, total(roundings)


def _of_scales(
    sharding: jax.sharding.Sharding | None, shape: tuple[int, ...]
) -> jax.sharding.Sharding | None:
    """Returns where scales go: with their values, and all of them where shards cut blocks."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    for axis in cut_axes(sharding, shape):
        spec[axis] = None
    return sharding.update(spec=jax.sharding.PartitionSpec(*spec))


# Values and scales of blocks for one tensor of a file.
Encoded = tuple[np.ndarray, np.ndarray, Rounding]


def _of_mxfp4(value: Tensor, scale: Tensor, requantize: bool) -> Encoded:
    """Returns MXFP4 as values and scales of blocks, which are checked to be exact."""
    *lead, n, groups, _ = value.shape
    values = np.empty((*lead, n, groups * mxfp4.GROUP), fmt.E4M3)
    scales = np.empty(checks.scales_shape(values.shape, fmt.BLOCK), _F32)
    roundings = []
    for index in np.ndindex(*lead):  # one matrix at a time, for memory
        codes, exponents = value.view()[index], scale.view()[index]
        values[index], scales[index], is_exact = mxfp4.to_blocks(codes, exponents)
        if not (is_exact.all() or requantize):
            block = (*index, *(int(i) for i in np.argwhere(~is_exact)[0]))
            raise ValueError(
                f"{_NAME}: {value} must be exact in block FP8, where scales of a block may span"
                f" 2**14, got block {block} that is not: pass requantize=True to round it."
            )
        rounding = Rounding(0, is_exact.size, 0, values[index].size)
        if not is_exact.all():
            rows_of = functools.partial(mxfp4.to_dense, codes, exponents)
            rounding = measure(rows_of, values[index], scales[index])
        roundings.append(rounding)
    return values, scales, total(roundings)


def _requantized(value: Tensor, scale: Tensor, layout: str) -> Encoded:
    """Returns values and scales of blocks for values with scales of rows, with rounding."""
    if layouts.is_exact(layout, scale.view(), value.shape):  # that of another expert is not
        exact = _widened(layouts.to_blocks(layout, scale.view(), value.shape))
        return value.view(), exact, Rounding(0, exact.size, 0, value.view().size)
    of_rows = _widened(layouts.grid_of(layout, scale.view(), value.shape))
    *lead, _, _ = value.shape
    values = np.empty(value.shape, fmt.E4M3)
    scales = np.empty(checks.scales_shape(value.shape, fmt.BLOCK), _F32)
    roundings = []
    for index in np.ndindex(*lead):
        stored, of_row = value.view()[index], of_rows[index]
        dense = stored.astype(_F32) * of_row
        found = quantize(jnp.asarray(dense), fmt.BLOCK, implementation="xla")
        values[index], scales[index] = found.values, found.scales
        rows_of = functools.partial(_rows_of, stored, of_row)
        roundings.append(measure(rows_of, values[index], scales[index]))
    return values, scales, total(roundings)


def _rows_of(values: np.ndarray, scales: np.ndarray, rows: slice) -> np.ndarray:
    """Returns what rows with scales of their own mean in float64."""
    return values[rows].astype(np.float64) * scales[rows].astype(np.float64)


def _place_array(
    each_shape: tuple[int, ...],
    readers: list[Reader],
    lead: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    in_places = np.empty(len(readers), object)
    in_places[:] = readers
    in_places = in_places.reshape(lead)

    def read(index: Any) -> np.ndarray:
        if not lead:
            return readers[0](index)
        chosen = in_places[index[: len(lead)]]
        stack = _stack([reader(index[len(lead) :]) for reader in chosen.reshape(-1)])
        return stack.reshape(*chosen.shape, *stack.shape[1:])

    shape = (*lead, *each_shape)
    if sharding is None:
        array = jax.device_put(read((slice(None),) * len(shape)))
    else:
        array = jax.make_array_from_callback(shape, sharding, read)
    # Stacks are assembled on the host: no more than one of them at a time.
    return jax.block_until_ready(array) if lead else array


def _read(tensor: Tensor, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    """Reads a slice of a tensor; converts 64-bit numbers, never weights."""
    return tensor.view()[index].astype(dtype, copy=False)


def _read_scales(source: Source, scale: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a slice of the scales of blocks."""
    return _widened(layouts.to_blocks(source.layout, scale.view(), source.each_shape)[index])


def _widened(scales: np.ndarray) -> np.ndarray:
    """Returns scales in float32."""
    return (scales.view(fmt.E8M0) if scales.dtype == np.uint8 else scales).astype(_F32, copy=False)


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    """Stacks arrays where JAX can use the result on a CPU without another copy."""
    first = parts[0]
    num_bytes = len(parts) * first.nbytes
    room = np.empty(num_bytes + _ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT_BYTES
    stack = room[start : start + num_bytes].view(first.dtype).reshape(len(parts), *first.shape)
    integer = f"u{first.dtype.itemsize}"  # numpy copies what it knows several times faster
    for i, part in enumerate(parts):
        stack.view(integer)[i] = part.view(integer)
    return stack
