# SPDX-License-Identifier: Apache-2.0
"""From the tensors of a checkpoint to what each result is made of, checked before any is read."""

import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import layouts, mxfp4, safetensors_files, schemes
from jax_fp8gemm._src.checkpoints.safetensors_files import Tensor, Tensors
from jax_fp8gemm._src.checkpoints.schemes import Scheme

_NAME = "checkpoint.load"
MXFP4 = "mxfp4"  # a layout of values and scales


class Source(NamedTuple):
    """Where one result comes from: a tensor, or those of all layers and experts, and scales."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]  # none where it is not quantized
    is_stacked: bool
    scale_suffix: str = "_scale_inv"
    layout: str = "block"
    is_exact: bool = True  # whether blocks can have the scales of all; of MXFP4 it shows later
    num_layers: int | None = None  # of a stack of them

    @property
    def each_shape(self) -> tuple[int, ...]:
        """Shape of the result of one tensor."""
        shape = self.values[0].shape
        return (*shape[:-2], shape[-2] * mxfp4.GROUP) if self.layout == MXFP4 else shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.lead, *self.each_shape)

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the stack: layers before experts."""
        layers = () if self.num_layers is None else (self.num_layers,)
        return (*layers, len(self.values) // math.prod(layers)) if self.is_stacked else layers

    @property
    def stored(self) -> fmt.Stored:
        """How the files hold the result."""
        scale_dtypes = tuple(scale.dtype_name for scale in self.scales)
        if len(set(scale_dtypes)) == 1:
            scale_dtypes = scale_dtypes[:1]
        dtype = self.values[0].dtype_name
        return fmt.Stored(dtype, scale_dtypes, self.is_stacked, self.scale_suffix, self.layout)


# The tensors of a result: of each expert by its number, or of one by None.
Experts = dict[int | None, Tensor]


def find_results(
    tensors: Tensors,
    include: Callable[[str], bool] | None,
    stack_experts: bool,
    scheme: Scheme = schemes.BLOCK_FP8,
) -> dict[str, Experts]:
    """Returns the tensors of each result, scales left out."""
    results: dict[str, Experts] = {}
    for name, tensor in tensors.listed.items():
        scaled = _scaled_by(name, scheme, tensors)
        base = name.removesuffix(scheme.values_suffix) if scaled is None else scaled
        found = fmt.without_expert(base) if stack_experts else None
        stack, expert = found or (base, None)
        if include is not None and not include(stack):
            continue
        if scaled is not None:
            values = base + scheme.values_suffix
            if values not in tensors.listed:
                raise ValueError(
                    f"{_NAME}: {tensor} must scale a tensor {values!r}, {tensors.absence(values)}."
                )
            continue
        experts = results.setdefault(stack, {})
        if experts and (expert in experts or None in experts or expert is None):
            raise ValueError(f"{_NAME}: {tensor} must not be loaded as {stack!r}, which exists.")
        experts[expert] = tensor
    return results


def _scaled_by(name: str, scheme: Scheme, tensors: Tensors) -> str | None:
    """Returns the result that a tensor has the scales of, or None for no scales."""

    def is_float8(base: str) -> bool:
        return base in tensors.listed and safetensors_files.is_float8(tensors.listed[base].dtype)

    return scheme.scaled_by(name, is_float8)


def _find_scale(value: Tensor, scheme: Scheme, tensors: Tensors) -> tuple[Tensor | None, str]:
    """Returns the scales of a tensor, or None, and the suffix of their name."""
    base = value.name.removesuffix(scheme.values_suffix)
    is_value = base != value.name or not scheme.values_suffix
    found = [
        (tensors.listed[base + suffix], suffix)
        for suffix in (scheme.suffixes if is_value else ())
        if base + suffix in tensors.listed and _scaled_by(base + suffix, scheme, tensors) == base
    ]
    if len(found) > 1:
        names = " and ".join(repr(scale.name) for scale, _ in found)
        raise ValueError(f"{_NAME}: {value} must have one tensor of scales, got {names}.")
    return found[0] if found else (None, scheme.suffixes[0])


def pair(
    name: str,
    experts: Experts,
    tensors: Tensors,
    scheme: Scheme = schemes.BLOCK_FP8,
    requantize: bool = False,
) -> Source:
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
    sources = []
    for value in values:
        sources.append(_pair_one(value, tensors, scheme, requantize))
        first, each = sources[0], sources[-1]
        if (value.shape, value.dtype) != (values[0].shape, values[0].dtype):
            raise ValueError(
                f"{_NAME}: {value} must be as expert 0 of {name!r}, {values[0].dtype_name}"
                f" {values[0].shape}, got {value.dtype_name} {value.shape}."
            )
        if (each.scale_suffix, each.layout) != (first.scale_suffix, first.layout):
            raise ValueError(
                f"{_NAME}: scales of {value} must be as those of expert 0 of {name!r}, like"
                f" {first.scales[0].name!r} of shape {first.scales[0].shape}, got"
                f" {each.scales[0].name!r} of shape {each.scales[0].shape}."
            )
    scales = tuple(scale for source in sources for scale in source.scales)
    is_exact = all(source.is_exact for source in sources)
    return sources[0]._replace(
        values=values, scales=scales, is_stacked=is_stacked, is_exact=is_exact
    )


def merge_layers(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Returns stacks of layers that follow each other and hold the same; the rest as it is."""
    layers: dict[str, dict[int, dict[str, Source]]] = {}
    for name, source in sources.items():
        found = fmt.without_layer(name)
        if found is not None:
            prefix, i, suffix = found
            layers.setdefault(prefix, {}).setdefault(i, {})[suffix] = source
    merged: dict[str, tuple[str, Source]] = {}  # by the name of each part of it
    for prefix, numbered in layers.items():
        for first, last in _runs(numbered):
            run = [numbered[i] for i in range(first, last + 1)]
            for suffix in run[0]:
                stack = fmt.of_layers(prefix, first, last, suffix)
                result = stack, _merged([layer[suffix] for layer in run])
                merged |= {f"{prefix}.{i}.{suffix}": result for i in range(first, last + 1)}
    taken = next((stack for stack, _ in merged.values() if stack in sources), None)
    if taken is not None:
        raise ValueError(
            f"{_NAME}: {sources[taken].values[0]} must not be named as a stack of layers is:"
            " pass stack_layers=False."
        )
    return dict(merged.get(name, (name, source)) for name, source in sources.items())


def _runs(numbered: Mapping[int, dict[str, Source]]) -> Iterator[tuple[int, int]]:
    """Yields the first and the last of several layers in a row that hold the same."""

    def content(i: int):
        return {suffix: (*source.stored, source.shape) for suffix, source in numbered[i].items()}

    # In a row, numbers and their places differ by the same.
    in_a_row = (i - place for place, i in enumerate(sorted(numbered)))
    keys = zip(in_a_row, map(content, sorted(numbered)), strict=True)
    for _, run in itertools.groupby(zip(keys, sorted(numbered), strict=True), lambda pair: pair[0]):
        members = [i for _, i in run]
        if len(members) > 1:
            yield members[0], members[-1]


def _merged(sources: list[Source]) -> Source:
    return sources[0]._replace(
        values=tuple(itertools.chain(*(source.values for source in sources))),
        scales=tuple(itertools.chain(*(source.scales for source in sources))),
        is_exact=all(source.is_exact for source in sources),
        num_layers=len(sources),
    )


def _pair_one(value: Tensor, tensors: Tensors, scheme: Scheme, requantize: bool) -> Source:
    """Checks that quantized values, and no others, have scales, and that these fit."""
    scale, suffix = _find_scale(value, scheme, tensors)
    is_packed = bool(scheme.values_suffix) and value.name.endswith(scheme.values_suffix)
    if value.dtype is None:
        known = ", ".join(safetensors_files.DTYPES)
        raise TypeError(f"{_NAME}: {value} must have a dtype of {known}, got {value.dtype_name}.")
    if scale is None:
        if safetensors_files.is_float8(value.dtype) or is_packed:
            wanted = value.name.removesuffix(scheme.values_suffix) + suffix
            raise ValueError(
                f"{_NAME}: {value} has dtype {value.dtype.name} and must have scales"
                f" {wanted!r}, {tensors.absence(wanted)}; found {_scales_of(value, tensors)}."
            )
        return Source((value,), (), False)
    if is_packed:
        _check_mxfp4(value, scale)
        return Source((value,), (scale,), False, suffix, MXFP4)
    layout = _layout_of(value, scale, scheme)
    is_exact = layouts.is_exact(layout, scale.view(), value.shape)
    if not (is_exact or requantize):
        raise ValueError(
            f"{_NAME}: {scale} must have one number for all {fmt.BLOCK[0]} rows of a block, got"
            f" rows that differ: pass requantize=True to scale {value.name!r} again, with rounding."
        )
    return Source((value,), (scale,), False, suffix, layout, is_exact)


def _layout_of(value: Tensor, scale: Tensor, scheme: Scheme) -> str:
    """Returns the layout that scales have, one of those of their scheme."""
    if value.dtype != fmt.E4M3:
        raise TypeError(
            f"{_NAME}: {value} has scales and must have dtype {fmt.E4M3.name},"
            f" got {value.dtype.name if value.dtype else value.dtype_name}."
        )
    if scale.dtype_name not in fmt.SCALE_DTYPES:
        raise TypeError(
            f"{_NAME}: {scale} must have a dtype of {', '.join(fmt.SCALE_DTYPES)},"
            f" got {scale.dtype_name}."
        )
    if len(value.shape) < 2:
        raise ValueError(f"{_NAME}: {value} must have shape (..., N, K), got {value.shape}.")
    shapes = {layouts.shape_of(layout, value.shape): layout for layout in scheme.layouts}
    if scale.shape not in shapes:
        raise ValueError(
            f"{_NAME}: {scale} must have shape {' or '.join(map(str, shapes))} for values of shape"
            f" {value.shape}, as quantization_config has it, got {scale.shape}."
        )
    return shapes[scale.shape]


def _check_mxfp4(value: Tensor, scale: Tensor) -> None:
    for tensor in (value, scale):
        if tensor.dtype_name != "U8":
            raise TypeError(f"{_NAME}: {tensor} must have dtype U8, got {tensor.dtype_name}.")
    # Where a dimension is empty, a file may have any other.
    if len(value.shape) < 3 or value.shape[-1] != mxfp4.GROUP_BYTES or 0 in value.shape:
        raise ValueError(
            f"{_NAME}: {value} must have shape (..., N, K / {mxfp4.GROUP}, {mxfp4.GROUP_BYTES}),"
            f" none of them 0, got {value.shape}."
        )
    if scale.shape != value.shape[:-1]:
        raise ValueError(
            f"{_NAME}: {scale} must have shape {value.shape[:-1]} for {value.name!r} of shape"
            f" {value.shape}, got {scale.shape}."
        )
    is_nan = scale.view() == mxfp4.NAN
    if is_nan.any():
        index = tuple(int(i) for i in np.argwhere(is_nan)[0])
        raise ValueError(f"{_NAME}: {scale} must not be NaN ({mxfp4.NAN}), got it at {index}.")


def _scales_of(value: Tensor, tensors: Tensors) -> str:
    """Names the tensors of a module that other schemes call scales, for messages."""
    module = re.escape(value.name.removesuffix(".weight"))
    pattern = re.compile(rf"{module}[._](\w+_)?scale\w*")
    found = [repr(name) for each in tensors for name in each if pattern.fullmatch(name)]
    return f"scales {', '.join(found)}" if found else "no scales"


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns config.json, or None where there is none.

    It gets a `quantization_config` of ModelOpt's hf_quant_config.json where it has none itself.
    """
    path, other = folder / fmt.CONFIG_FILE, folder / fmt.HF_QUANT_CONFIG_FILE
    config = fmt.read_json(path) if fmt.is_file(path) else None
    if fmt.is_file(other) and not schemes.locate(f"{_NAME}: {path}", config or {})[1]:
        found = {"quant_method": "modelopt", **fmt.read_json(other)}
        return {**(config or {}), schemes.KEY: found}
    return config


def check_config(
    path: pathlib.Path,
    config: Mapping[str, Any] | None,
    results: Mapping[str, Experts],
    tensors: Tensors,
    scheme: Scheme,
) -> None:
    """Checks that config.json describes the quantized tensors that there are."""
    values = [value for experts in results.values() for value in experts.values()]
    quantized = [
        value
        for value in values
        if safetensors_files.is_float8(value.dtype)
        or _find_scale(value, scheme, tensors)[0] is not None
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
    op_name = f"{_NAME}: {path}"
    keys, found = schemes.locate(op_name, config)
    if not isinstance(found, dict):
        raise ValueError(
            f"{op_name} must have a {schemes.KEY}, because {described}; got {found!r}."
        )
    named = ", ".join(f"{key} {found.get(key)!r}" for key in ("quant_method", "weight_block_size"))
    where = f"{op_name}: {'.'.join(keys)}"
    schemes.recognize(where, found, f" ({named}); {described}")
    left_out = scheme.left_out(found)
    for value in quantized:
        module = left_out.module_of(value.name)
        if module is not None:
            raise ValueError(
                f"{_NAME}: {value} must not be quantized, because"
                f" {'.'.join(scheme.unquantized)} in {path} names {module!r}."
            )


def find_sharding(name: str, source: Source, sharding: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding of one result, after checking that it fits."""
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
        chosen.shard_shape(source.shape)
    except (ValueError, IndexError) as error:  # IndexError: more axes than the shape has
        raise ValueError(
            f"{op_name}: sharding must fit {name!r} of shape {source.shape}, got {chosen}: {error}"
        ) from error
    cut = cut_axes(chosen, source.shape) if source.scales else []
    if cut and not isinstance(chosen, jax.sharding.NamedSharding):
        raise ValueError(
            f"{op_name}: sharding must be a jax.sharding.NamedSharding where it cuts a block of"
            f" {fmt.BLOCK}, as it does along axis {cut[0]} of {name!r} of shape {source.shape}, got"
            f" {chosen}."
        )
    return chosen


def cut_axes(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> list[int]:
    """Returns the axes along which shards of quantized values begin or end inside a block."""
    shard = sharding.shard_shape(shape)
    pairs = zip(range(len(shape) - 2, len(shape)), fmt.BLOCK, strict=True)
    return [i for i, unit in pairs if shard[i] != shape[i] and shard[i] % unit]
