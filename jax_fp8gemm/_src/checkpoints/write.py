# SPDX-License-Identifier: Apache-2.0
"""From arrays to the tensors, the files and the configuration of a checkpoint."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import safetensors_files
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled

_WHERE = "checkpoint.save"


class Part(NamedTuple):
    """One tensor to write: an array, or one expert of it."""

    name: str
    array: Any
    expert: int | None

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        whole = self.array.size * self.array.dtype.itemsize
        return whole if self.expert is None else whole // self.array.shape[0]

    def read(self) -> np.ndarray:
        """Brings the tensor to the host."""
        return np.asarray(self.array if self.expert is None else self.array[self.expert])


def find_parts(tensors: Mapping[str, Any], unstack_experts: bool) -> list[list[Part]]:
    """Returns the tensors to write, those that must share a file together."""
    groups: list[list[Part]] = []
    taken: set[str] = set()
    for name, tensor in tensors.items():
        _check(name, tensor)
        is_stack = unstack_experts and tensor.ndim == 3 and fmt.with_expert(name, 0) is not None
        for expert in range(tensor.shape[0]) if is_stack else (None,):
            key = name if expert is None else fmt.with_expert(name, expert)
            if isinstance(tensor, BlockScaled):
                scale_key = key + fmt.SCALE_SUFFIX
                group = [Part(key, tensor.values, expert), Part(scale_key, tensor.scales, expert)]
            else:
                group = [Part(key, tensor, expert)]
            twice = taken.intersection(part.name for part in group)
            if twice:
                raise ValueError(f"{_WHERE}: {name!r} must not be written as {twice} again.")
            taken.update(part.name for part in group)
            groups.append(group)
    return groups


def _check(name: str, tensor: Any) -> None:
    where = f"{_WHERE}: tensor {name!r}"
    if isinstance(tensor, BlockScaled):
        if tensor.block != fmt.BLOCK:
            raise ValueError(f"{where} must have block {fmt.BLOCK}, got {tensor.block}.")
        checks.array(_WHERE, f"tensor {name!r}", tensor.values, (fmt.E4M3,))
    elif not isinstance(tensor, jax.Array | np.ndarray):
        raise TypeError(f"{where} must be a BlockScaled or an array, got {type(tensor).__name__}.")
    elif safetensors_files.is_float8(tensor.dtype):
        raise TypeError(f"{where} must be a BlockScaled, because it is {tensor.dtype.name}.")
    elif tensor.dtype not in safetensors_files.DTYPES.values():
        known = ", ".join(safetensors_files.DTYPES)
        raise TypeError(f"{where} must have a dtype of {known}, got {tensor.dtype.name}.")
    for leaf in jax.tree.leaves(tensor):
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(f"{where} must be on this host, got {leaf.sharding}.")


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


def complete_config(
    config: Mapping[str, Any], tensors: Mapping[str, Any], groups: Iterable[list[Part]]
) -> dict[str, Any]:
    """Adds to `config.json` how the tensors are quantised, where any is."""
    if not any(isinstance(tensor, BlockScaled) for tensor in tensors.values()):
        return dict(config)
    given = config.get("quantization_config") or {}
    fmt.check_quantization_config(f"{_WHERE}: config", {**fmt.QUANTIZATION, **given})
    plain = [group[0] for group in groups if len(group) == 1]
    modules = [
        part.name.removesuffix(".weight")
        for part in plain
        if part.name.endswith(".weight") and part.array.ndim - (part.expert is not None) == 2
    ]
    quantization = {**given, **fmt.QUANTIZATION, "modules_to_not_convert": modules}
    return {**config, "quantization_config": quantization}


def write(folder: pathlib.Path, files: Mapping[str, list[Part]], config: dict[str, Any]) -> None:
    """Writes the files one after the other, their index where there are several, and the config."""
    for file, parts in files.items():
        safetensors_files.write_file(folder / file, {part.name: part.read() for part in parts})
    if len(files) > 1:
        total = sum(part.num_bytes for parts in files.values() for part in parts)
        weight_map = {part.name: file for file, parts in files.items() for part in parts}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / safetensors_files.INDEX_FILE, index)
    _write_json(folder / fmt.CONFIG_FILE, config)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
