# SPDX-License-Identifier: Apache-2.0
"""From the tensors of a checkpoint to arrays on devices, each device reading its slices."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import safetensors_files
from jax_fp8gemm._src.checkpoints.safetensors_files import Tensor, Tensors
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled

_NAME = "checkpoint.load"
_ALIGNMENT_BYTES = 64
_F32 = jnp.dtype(jnp.float32)


class Source(NamedTuple):
    """Where one result comes from: a tensor, or the tensors of all experts, and their scales."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]  # none where it is not quantized
    is_stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        lead = (len(self.values),) if self.is_stacked else ()
        return (*lead, *self.values[0].shape)

    @property
    def stored(self) -> fmt.Stored:
        """How the files hold the result."""
        scale_dtypes = tuple(scale.dtype_name for scale in self.scales)
        if len(set(scale_dtypes)) == 1:
            scale_dtypes = scale_dtypes[:1]
        return fmt.Stored(self.values[0].dtype_name, scale_dtypes, self.is_stacked)


# The tensors of a result: of each expert by its number, or of one by None.
Experts = dict[int | None, Tensor]


def find_results(
    tensors: Tensors, include: Callable[[str], bool] | None, stack_experts: bool
) -> dict[str, Experts]:
    """Returns the tensors of each result, scales left out."""
    results: dict[str, Experts] = {}
    for name, tensor in tensors.listed.items():
        base = name.removesuffix(fmt.SCALE_SUFFIX)
        found = fmt.without_expert(base) if stack_experts else None
        stack, expert = found or (base, None)
        if include is not None and not include(stack):
            continue
        if base != name:
            if base not in tensors.listed:
                raise ValueError(
                    f"{_NAME}: {tensor} must scale a tensor {base!r}, {tensors.absence(base)}."
                )
            continue
        experts = results.setdefault(stack, {})
        if experts and (expert in experts or None in experts or expert is None):
            raise ValueError(f"{_NAME}: {tensor} must not be loaded as {stack!r}, which exists.")
        experts[expert] = tensor
    return results


def pair(name: str, experts: Experts, tensors: Tensors) -> Source:
    """Returns the tensors of a result with their scales, after checking that they fit."""
    numbers = sorted(i for i in experts if i is not None)
    is_stacked = None not in experts
    missing = next((i for i in range(len(experts)) if i not in experts), None)
    if is_stacked and missing is not None:
        raise ValueError(
            f"{_NAME}: experts of {name!r} must be numbered from 0 without a gap,"
            f" got {len(experts)} of them and no {missing}."
        )
    values = tuple(experts[i] for i in numbers) if is_stacked else (experts[None],)
    scales = []
    for value in values:
        scale = tensors.listed.get(value.name + fmt.SCALE_SUFFIX)
        _check_pair(value, scale, tensors)
        if scale is not None:
            scales.append(scale)
        if (value.shape, value.dtype) != (values[0].shape, values[0].dtype):
            raise ValueError(
                f"{_NAME}: {value} must be as expert 0 of {name!r}, {values[0].dtype_name}"
                f" {values[0].shape}, got {value.dtype_name} {value.shape}."
            )
    return Source(values, tuple(scales), is_stacked)


def _check_pair(value: Tensor, scale: Tensor | None, tensors: Tensors) -> None:
    """Checks that float8 values, and no others, have scales, and that these fit."""
    if value.dtype is None:
        known = ", ".join(safetensors_files.DTYPES)
        raise TypeError(f"{_NAME}: {value} must have a dtype of {known}, got {value.dtype_name}.")
    if scale is None:
        if safetensors_files.is_float8(value.dtype):
            wanted = value.name + fmt.SCALE_SUFFIX
            raise ValueError(
                f"{_NAME}: {value} has dtype {value.dtype.name} and must have scales"
                f" {wanted!r}, {tensors.absence(wanted)}; found {_scales_of(value, tensors)}."
            )
        return
    if value.dtype != fmt.E4M3:
        raise TypeError(
            f"{_NAME}: {value} has scales and must have dtype {fmt.E4M3.name},"
            f" got {value.dtype.name}."
        )
    if scale.dtype_name not in fmt.SCALE_DTYPES:
        raise TypeError(
            f"{_NAME}: {scale} must have a dtype of {', '.join(fmt.SCALE_DTYPES)},"
            f" got {scale.dtype_name}."
        )
    if len(value.shape) < 2:
        raise ValueError(f"{_NAME}: {value} must have shape (..., N, K), got {value.shape}.")
    wanted = checks.scales_shape(value.shape, fmt.BLOCK)
    if scale.shape != wanted:
        raise ValueError(
            f"{_NAME}: {scale} must have shape {wanted} for values of shape {value.shape} and"
            f" block {fmt.BLOCK}, got {scale.shape}."
        )


def _scales_of(value: Tensor, tensors: Tensors) -> str:
    """Names the tensors of a module that other schemes call scales, for messages."""
    module = re.escape(value.name.removesuffix(".weight"))
    pattern = re.compile(rf"{module}[._](\w+_)?scale\w*")
    found = [repr(name) for each in tensors for name in each if pattern.fullmatch(name)]
    return f"scales {', '.join(found)}" if found else "no scales"


def read_config(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns config.json, or None where there is none."""
    return fmt.read_json(path) if fmt.is_file(path) else None


def check_config(
    path: pathlib.Path,
    config: Mapping[str, Any] | None,
    results: Mapping[str, Experts],
    tensors: Tensors,
) -> None:
    """Checks that config.json describes the float8 tensors that there are."""
    values = [value for experts in results.values() for value in experts.values()]
    quantized = [
        value
        for value in values
        if safetensors_files.is_float8(value.dtype)
        or value.name + fmt.SCALE_SUFFIX in tensors.listed
    ]
    if not quantized:
        return
    if config is None:
        raise FileNotFoundError(
            f"{_NAME}: {path} must say how {quantized[0]} is quantized, and is missing."
        )
    described = (
        f"{quantized[0]} is {quantized[0].dtype_name} and has {_scales_of(quantized[0], tensors)}"
    )
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        raise ValueError(
            f"{_NAME}: {path} must have a quantization_config, because {described}; got {found!r}."
        )
    scheme = ", ".join(f"{key} {found.get(key)!r}" for key in ("quant_method", "weight_block_size"))
    fmt.check_quantization_config(f"{_NAME}: {path}", found, f" ({scheme}); {described}")
    kept = frozenset(fmt.modules_to_not_convert(found))
    for value in quantized:
        module = next(filter(kept.__contains__, fmt.modules_of(value.name)), None)
        if module is not None:
            raise ValueError(
                f"{_NAME}: {value} must not be float8, because modules_to_not_convert in {path}"
                f" names {module!r}."
            )


def find_sharding(name: str, source: Source, sharding: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of one result, after checking that it fits and splits no block."""
    is_placement = isinstance(sharding, jax.sharding.Sharding | jax.Device)
    chosen = sharding if is_placement or not callable(sharding) else sharding(name, source.shape)
    if isinstance(chosen, jax.Device):
        return jax.sharding.SingleDeviceSharding(chosen)
    if chosen is None:
        return None
    if not isinstance(chosen, jax.sharding.Sharding):
        raise TypeError(
            f"{_NAME}: sharding of {name!r} must be a jax.Device, a jax.sharding.Sharding, None"
            f" or a function that returns one, got {type(chosen).__name__}."
        )
    op_name = f"{_NAME}: {source.values[0]}"
    try:
        shard = chosen.shard_shape(source.shape)
    except (ValueError, IndexError) as error:  # IndexError: more axes than the shape has
        raise ValueError(
            f"{op_name}: sharding must fit {name!r} of shape {source.shape}, got {chosen}: {error}"
        ) from error
    for axis in (-2, -1) if source.scales else ():
        if shard[axis] != source.shape[axis] and shard[axis] % fmt.BLOCK[axis]:
            raise ValueError(
                f"{op_name}: sharding must not split a block of {fmt.BLOCK}: {chosen} gives shards"
                f" of shape {shard} of {name!r} of shape {source.shape}."
            )
    return chosen


def place(source: Source, sharding: jax.sharding.Sharding | None) -> BlockScaled | jax.Array:
    """Brings one result to its devices."""
    dtype = jax.dtypes.canonicalize_dtype(source.values[0].dtype)
    values = _place_array(source.values, source.is_stacked, dtype, sharding)
    if not source.scales:
        return values
    scales = _place_array(source.scales, source.is_stacked, _F32, sharding)
    return BlockScaled(values, scales, fmt.BLOCK)


def _place_array(
    tensors: tuple[Tensor, ...],
    is_stacked: bool,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    # Any: the index is a tuple of slices, to which JAX's annotation adds None.
    def read(index: Any) -> np.ndarray:
        if not is_stacked:
            return _read(tensors[0], index, dtype)
        return _stack([_read(tensor, index[1:], dtype) for tensor in tensors[index[0]]])

    shape = (len(tensors), *tensors[0].shape) if is_stacked else tensors[0].shape
    if sharding is None:
        array = jax.device_put(read((slice(None),) * len(shape)))
    else:
        array = jax.make_array_from_callback(shape, sharding, read)
    # Stacks are assembled on the host: no more than one of them at a time.
    return jax.block_until_ready(array) if is_stacked else array


def _read(tensor: Tensor, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    """Reads a slice of a tensor; converts scales and 64-bit numbers, never weights."""
    array = tensor.view()[index]
    if dtype == _F32 and array.dtype == np.uint8:
        array = array.view(fmt.E8M0)
    return array.astype(dtype, copy=False)


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
