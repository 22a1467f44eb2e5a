# SPDX-License-Identifier: Apache-2.0
"""From arrays to the tensors and the files of a checkpoint."""

import contextlib
import itertools
import json
import logging
import math
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard, cast

import jax
import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import layouts, safetensors_files
from jax_fp8gemm._src.checkpoints.schemes import Scheme
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled

_LOGGER = logging.getLogger("jax_fp8gemm")
_NAME = "checkpoint.save"
_F32 = np.dtype(np.float32)
_U8 = np.dtype(np.uint8)


class Part(NamedTuple):
    """One tensor to write: an array, or one layer or expert of it."""

    name: str
    array: Any
    place: tuple[int, ...]  # its index in the array; () for all of it
    dtype: np.dtype  # in the file

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.array.shape[len(self.place) :]) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Brings the tensor to the host."""
        array = np.asarray(self.array[self.place] if self.place else self.array)
        if (array.dtype, self.dtype) == (_F32, _U8):  # scales, as load reads them
            return array.astype(fmt.E8M0).view(_U8)
        return array.astype(self.dtype, copy=False)


# What must share a file, tensor and scales, for each tensor that a result is written as.
Groups = list[list[Part]]


def find_parts(
    tensors: Mapping[str, Any],
    stored: Mapping[str, fmt.Stored],
    unstack_experts: bool,
    scheme: Scheme,
) -> dict[str, Groups]:
    """Returns the tensors to write, by the name of the result that they are of."""
    parts: dict[str, Groups] = {}
    taken: set[str] = set()
    for name, tensor in tensors.items():
        _check(name, tensor)
        parts[name] = list(_find_groups(name, tensor, stored.get(name), unstack_experts, scheme))
        names = {part.name for part in itertools.chain(*parts[name])}
        if not taken.isdisjoint(names):
            raise ValueError(f"{_NAME}: {name!r} must not be written as {taken & names} again.")
        taken |= names
        scaled = scheme.scaled_by(name, lambda base: isinstance(tensors.get(base), BlockScaled))
        if scaled is not None:
            raise ValueError(
                f"{_NAME}: tensor {name!r} must not end in {name.removeprefix(scaled)!r}, as scales"
                " do: give them with their values, as a BlockScaled."
            )
    return parts


def _find_groups(
    name: str, tensor: Any, stored: fmt.Stored | None, unstack_experts: bool, scheme: Scheme
) -> Iterator[list[Part]]:
    keys = _layer_keys(name, tensor)
    num_stacked = len(keys[0][1])
    if _is_stack_of_experts(name, tensor, tensor.ndim - num_stacked, stored, unstack_experts):
        keys = [
            (cast(str, fmt.with_expert(key, expert)), (*place, expert))
            for key, place in keys
            for expert in range(tensor.shape[num_stacked])
        ]
    if not isinstance(tensor, BlockScaled):
        for key, place in keys:
            yield [Part(key, tensor, place, _plain_dtype(tensor.dtype, stored))]
        return
    suffix, scales = _file_scales(name, tensor, stored, scheme)
    scale_dtypes = _scale_dtypes(scales, [place for _, place in keys], stored, scheme)
    for (key, place), dtype in zip(keys, scale_dtypes, strict=True):
        yield [
            Part(key, tensor.values, place, fmt.E4M3),
            Part(key + suffix, scales, place, dtype),
        ]


def _layer_keys(name: str, tensor: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Returns name and place of each layer of a stack, or of all that is none."""
    layers = fmt.layers_of(name)
    if layers is None:
        return [(name, ())]
    prefix, first, last, suffix = layers
    count = last - first + 1
    # A matrix of weights is left of each layer.
    least = 3 if isinstance(tensor, BlockScaled) else 1
    if tensor.ndim < least or tensor.shape[0] != count:
        raise ValueError(
            f"{_NAME}: tensor {name!r} must have a leading dimension of {count} layers, got shape"
            f" {tuple(tensor.shape)}."
        )
    return [(f"{prefix}.{first + i}.{suffix}", (i,)) for i in range(count)]


def _is_stack_of_experts(
    name: str, tensor: Any, ndim: int, stored: fmt.Stored | None, unstack_experts: bool
) -> bool:
    """Whether there is to be a tensor for each expert, of `ndim` dimensions and that of experts."""
    if stored is None:
        is_stack = unstack_experts and ndim == 3
    else:
        is_stack = stored.is_stacked and ndim > (2 if isinstance(tensor, BlockScaled) else 0)
    # Without experts, there is a name only of the whole.
    return is_stack and tensor.shape[-ndim] > 0 and fmt.with_expert(name, 0) is not None


def _is_kept(stored: fmt.Stored | None, scheme: Scheme) -> TypeGuard[fmt.Stored]:
    """Whether scales are written as they were stored: not those that had another scheme."""
    return (
        stored is not None
        and stored.layout in scheme.layouts
        and stored.scale_suffix in scheme.suffixes
    )


def _file_scales(
    name: str, tensor: BlockScaled, stored: fmt.Stored | None, scheme: Scheme
) -> tuple[str, Any]:
    """Returns what the name of the scales ends in, and all of them in the layout of files."""
    suffix, layout = scheme.suffixes[0], scheme.layouts[0]
    if _is_kept(stored, scheme):
        suffix, layout = stored.scale_suffix, stored.layout
    if layout == "block":
        return suffix, tensor.scales
    scales = layouts.from_blocks(layout, np.asarray(tensor.scales), tensor.shape)
    if scales is None:
        raise ValueError(
            f"{_NAME}: tensor {name!r} must have scales that a file can hold in shape"
            f" {layouts.shape_of(layout, tensor.shape)}, as quantization_config has it, got one for"
            " each block: write block FP8 by a config without quantization_config."
        )
    return suffix, scales


def _scale_dtypes(
    scales: Any, places: list[tuple[int, ...]], stored: fmt.Stored | None, scheme: Scheme
) -> list[np.dtype]:
    """Returns the dtypes of the scales of each tensor: as stored if they hold all, or float32."""
    count = len(places)
    names = stored.scale_dtypes if _is_kept(stored, scheme) else ()
    if set(names) <= {"F32"}:
        return [_F32] * count
    dtypes = [safetensors_files.DTYPES[names[min(i, len(names) - 1)]] for i in range(count)]
    scales = np.asarray(scales)
    is_exact = all(holds(dtype, scales[place]) for dtype, place in zip(dtypes, places, strict=True))
    return dtypes if is_exact else [_F32] * count


def holds(dtype: np.dtype, scales: np.ndarray) -> bool:
    """Whether a dtype of scales has each of these numbers, bit by bit where they are widened."""
    with np.errstate(all="ignore"):
        back = scales.astype(fmt.E8M0 if dtype == _U8 else dtype).astype(_F32)
    return np.array_equal(back.view(np.uint32), scales.view(np.uint32))


def _plain_dtype(dtype: np.dtype, stored: fmt.Stored | None) -> np.dtype:
    """Returns the dtype to write: the 64-bit one that load has narrowed to this, or this."""
    wide = safetensors_files.DTYPES[stored.dtype] if stored else dtype
    is_narrowed = wide.itemsize == 8 and dtype == np.dtype(f"{wide.kind}4")
    return wide if is_narrowed else np.dtype(dtype)


def _check(name: str, tensor: Any) -> None:
    op_name = f"{_NAME}: tensor {name!r}"
    if isinstance(tensor, BlockScaled):
        if tensor.block != fmt.BLOCK:
            raise ValueError(f"{op_name} must have block {fmt.BLOCK}, got {tensor.block}.")
        checks.array(_NAME, f"tensor {name!r}", tensor.values, (fmt.E4M3,))
    elif not isinstance(tensor, jax.Array | np.ndarray):
        raise TypeError(
            f"{op_name} must be a BlockScaled or an array, got {type(tensor).__name__}."
        )
    elif safetensors_files.is_float8(tensor.dtype):
        raise TypeError(f"{op_name} must be a BlockScaled, because it is {tensor.dtype.name}.")
    elif tensor.dtype not in safetensors_files.DTYPES.values():
        known = ", ".join(safetensors_files.DTYPES)
        raise TypeError(f"{op_name} must have a dtype of {known}, got {tensor.dtype.name}.")
    for leaf in jax.tree.leaves(tensor):
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(f"{op_name} must be on this host, got {leaf.sharding}.")


def split_into_files(groups: Iterable[list[Part]], limit: int) -> dict[str, list[Part]]:
    """Returns the parts of each file: groups in order, a new file where one would pass `limit`."""
    files: list[list[Part]] = [[]]
    room = limit
    for group in groups:
        size = sum(part.num_bytes for part in group)
        if size > room and files[-1]:
            files.append([])
            room = limit
        files[-1].extend(group)
        room -= size
    count = len(files)
    if count == 1:
        return {safetensors_files.SINGLE_FILE: files[0]}
    return {f"model-{i:05d}-of-{count:05d}.safetensors": f for i, f in enumerate(files, 1)}


def check_free(folder: pathlib.Path) -> None:
    """Checks that writing a checkpoint would overwrite nothing."""
    taken = next(folder.glob("model*.safetensors*"), None)
    if taken is not None:
        raise FileExistsError(
            f"{_NAME}: folder {folder} must not hold a checkpoint, it has {taken.name}."
        )
    if (folder / fmt.CONFIG_FILE).exists():
        raise FileExistsError(
            f"{_NAME}: folder {folder} must not hold {fmt.CONFIG_FILE}, which is written too:"
            " give its content as config, and remove it."
        )


def write(folder: pathlib.Path, files: Mapping[str, list[Part]], config: dict[str, Any]) -> None:
    """Writes the files, their index where there are several, and the config: all or nothing."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
            names = _write_files(pathlib.Path(temporary), files, config)
            _rename(pathlib.Path(temporary), folder, names)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                path.rmdir()
        raise


def _write_files(
    folder: pathlib.Path, files: Mapping[str, list[Part]], config: dict[str, Any]
) -> list[str]:
    """Writes one file after the other; returns their names, that by which load finds all last."""
    for i, (file, parts) in enumerate(files.items(), 1):
        safetensors_files.write_file(folder / file, {part.name: part.read() for part in parts})
        _LOGGER.info("wrote %s, %d of %d", file, i, len(files))
    _write_json(folder / fmt.CONFIG_FILE, config)
    if len(files) == 1:
        return [fmt.CONFIG_FILE, *files]
    total = sum(part.num_bytes for parts in files.values() for part in parts)
    weight_map = {part.name: file for file, parts in files.items() for part in parts}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / safetensors_files.INDEX_FILE, index)
    return [*files, fmt.CONFIG_FILE, safetensors_files.INDEX_FILE]


def _rename(temporary: pathlib.Path, folder: pathlib.Path, names: list[str]) -> None:
    """Moves the files to the folder, in this order: all or none."""
    for name in names:
        safetensors_files.sync(temporary / name)
    check_free(folder)  # again: writing takes long
    try:
        for name in names:
            (temporary / name).rename(folder / name)
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        raise


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
