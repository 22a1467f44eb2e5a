# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, one or many with an index: memory-mapped tensors in, files out."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# How the format calls the dtypes that arrays of JAX have.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype(jnp.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": jnp.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": jnp.dtype(jnp.float8_e5m2),
    "F8_E8M0": jnp.dtype(jnp.float8_e8m0fnu),
}
_FLOAT8 = (DTYPES["F8_E4M3"], DTYPES["F8_E5M2"])


class Tensor(NamedTuple):
    """One tensor of a file, not read yet: `data` are its bytes, memory-mapped."""

    name: str
    file: str
    dtype_name: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype, or None where JAX has no such dtype."""
        return DTYPES.get(self.dtype_name)

    def view(self) -> np.ndarray:
        """Returns the tensor over the mapped bytes: reading an element reads its page."""
        try:
            return self.data.view(DTYPES[self.dtype_name]).reshape(self.shape)
        except ValueError as error:  # more dimensions, or larger ones, than arrays can have
            raise ValueError(
                f"checkpoint: {self} must have the shape of an array, got {self.shape}: {error}"
            ) from error

    def __str__(self) -> str:
        """Names the tensor and its file, for messages."""
        return f"{self.name!r} in {self.file}"


def package() -> Any:
    """Returns the `safetensors` package.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "jax_fp8gemm.checkpoint needs the safetensors package:"
            " pip install 'jax-fp8gemm[checkpoint]'"
        ) from error
    return safetensors


class Tensors(NamedTuple):
    """The tensors of a checkpoint by name, and those of its files that the index leaves out."""

    listed: dict[str, Tensor]
    unlisted: dict[str, Tensor]

    def absence(self, name: str) -> str:
        """Says why a tensor is not listed, for messages."""
        if name in self.unlisted:
            return f"which {self.unlisted[name].file} holds but {INDEX_FILE} does not list"
        return "missing from the checkpoint"


def open_folder(folder: pathlib.Path) -> Tensors:
    """Returns the tensors of a checkpoint: those of the index, or of the one file."""
    if not fmt.is_file(folder / INDEX_FILE):
        if not fmt.is_file(folder / SINGLE_FILE):
            raise FileNotFoundError(
                f"checkpoint: {folder} must hold {INDEX_FILE} or {SINGLE_FILE}, it has neither."
            )
        return Tensors(open_file(folder / SINGLE_FILE), {})
    weight_map = fmt.read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(
            f"checkpoint: {folder / INDEX_FILE} must map tensors to files under 'weight_map',"
            f" got {type(weight_map).__name__}."
        )
    files: dict[str, dict[str, Tensor]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file not in files:
            files[file] = _open_mapped(folder, name, file)
        if name not in files[file]:
            raise ValueError(
                f"checkpoint: {INDEX_FILE} maps {name!r} to {file}, which must hold it."
            )
    unlisted = {
        name: tensor
        for tensors in files.values()
        for name, tensor in tensors.items()
        if name not in weight_map
    }
    return Tensors({name: files[file][name] for name, file in weight_map.items()}, unlisted)


def _open_mapped(folder: pathlib.Path, name: str, file: Any) -> dict[str, Tensor]:
    """Opens the file that the index maps a tensor to; it may be a link, as in caches of the Hub."""
    is_name = isinstance(file, str) and pathlib.PurePath(file).name == file
    if not is_name or os.path.isdir(folder / file):
        raise ValueError(
            f"checkpoint: {INDEX_FILE} must map {name!r} to a file of the folder, got {file!r}."
        )
    if not fmt.is_file(folder / file):
        raise FileNotFoundError(
            f"checkpoint: {INDEX_FILE} maps {name!r} to {file!r}, which {folder} must hold."
        )
    return open_file(folder / file)


def open_file(path: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of one file, by name."""
    safetensors = package()
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks header and offsets
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"checkpoint: {path} must be a safetensors file: {error}") from error
    content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        tensors[name] = Tensor(name, path.name, entry["dtype"], shape, content[begin:end])
    return tensors


def is_float8(dtype: np.dtype | None) -> bool:
    """Whether a dtype is one of the float8 formats that the package multiplies."""
    return dtype in _FLOAT8


def write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one file, tagged as the loaders of other frameworks want it."""
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    package().numpy.save_file(contiguous, path, metadata={"format": "pt"})


def sync(path: pathlib.Path) -> None:
    """Waits until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
