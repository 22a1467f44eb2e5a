# SPDX-License-Identifier: Apache-2.0
"""What block-quantized checkpoints look like: names, dtypes, JSON, `quantization_config`."""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks

CONFIG_FILE = "config.json"
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")  # U8: the bits of F8_E8M0
E4M3 = checks.E4M3
E8M0 = jnp.dtype(jnp.float8_e8m0fnu)
BLOCK = checks.SQUARE_BLOCK
HF_QUANT_CONFIG_FILE = "hf_quant_config.json"  # of ModelOpt
# The quantization_config of what is written where nothing else was loaded.
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": list(BLOCK),
}

MAX_JSON_DEPTH = 64  # far from where Python's functions of JSON run out of stack
_EXPERT = re.compile(r"^(.*\.experts)\.(\d{1,9})\.(.+)$")  # int() refuses thousands of digits
_NUMBER = re.compile(r"\d+\.")
_LAYER = re.compile(r"^(.*\blayers)\.(0|[1-9]\d{0,8})\.(.+)$")
_LAYERS = re.compile(r"^(.*\blayers)\.(0|[1-9]\d{0,8})-(0|[1-9]\d{0,8})\.(.+)$")


class Stored(NamedTuple):
    """How a checkpoint stores one result of `load`; dtypes as safetensors calls them.

    dtype: Of the values.
    scale_dtypes: Of the scales: one, or one for each expert where they differ; () if there are
        no scales.
    is_stacked: Whether there is a tensor for each expert. Of stacks of layers their names say so.
    scale_suffix: What the names of the scales end in after that of the values.
    layout: Of the scales: "block", "tensor", "channel" say what shares one; with "_1d" or "_4d"
        they are stored with so many dimensions where there are other ways; or "mxfp4".
    """

    dtype: str
    scale_dtypes: tuple[str, ...]
    is_stacked: bool
    scale_suffix: str = "_scale_inv"
    layout: str = "block"


def folder_path(op_name: str, folder: Any) -> pathlib.Path:
    """Returns the folder of a checkpoint as a path."""
    path = os.fspath(folder) if isinstance(folder, os.PathLike) else folder
    if not isinstance(path, str):
        got = type(folder).__name__
        raise TypeError(f"{op_name}: folder must be a str or a path of str, got {got}.")
    if "\0" in path:
        raise ValueError(f"{op_name}: folder must not contain a null character, got {path!r}.")
    return pathlib.Path(path)


def without_expert(name: str) -> tuple[str, int] | None:
    """Splits `P.experts.{i}.S` into `P.experts.S` and i; None where `with_expert` has no way back.

    That is every other name, and one with a number such as 007.
    """
    match = _EXPERT.match(name)
    if not match:
        return None
    stack, expert = f"{match[1]}.{match[3]}", int(match[2])
    return (stack, expert) if with_expert(stack, expert) == name else None


def with_expert(name: str, expert: int) -> str | None:
    """Returns `P.experts.{expert}.S` for `P.experts.S`; None for every other name."""
    head, dot, tail = name.rpartition(".experts.")
    return f"{head}.experts.{expert}.{tail}" if dot and not _NUMBER.match(tail) else None


def without_layer(name: str) -> tuple[str, int, str] | None:
    """Splits `P.layers.{i}.S` into `P.layers`, i and S; None for every other name."""
    match = _LAYER.match(name)
    return (match[1], int(match[2]), match[3]) if match else None


def of_layers(prefix: str, first: int, last: int, suffix: str) -> str:
    """Returns the name of a stack of layers: `P.layers.{first}-{last}.S`."""
    return f"{prefix}.{first}-{last}.{suffix}"


def layers_of(name: str) -> tuple[str, int, int, str] | None:
    """Splits a name of `of_layers`; None for every other name."""
    match = _LAYERS.match(name)
    if not match or int(match[2]) > int(match[3]):
        return None
    return match[1], int(match[2]), int(match[3]), match[4]


def modules_of(name: str) -> Iterator[str]:
    """Yields the modules that a tensor is in: `a` and `a.b` for `a.b.weight`."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def parse_json(text: str) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: It is no JSON, or nested more than `MAX_JSON_DEPTH` deep.
    """
    error = ValueError(f"it must be nested at most {MAX_JSON_DEPTH} deep")
    try:
        content = json.loads(text)
    except RecursionError:
        raise error from None
    level = [content]
    for _ in range(MAX_JSON_DEPTH + 1):
        lists = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [inner for each in lists if isinstance(each, list) for inner in each]
        if not level:
            return content
    raise error


def is_file(path: pathlib.Path) -> bool:
    """Whether there is a file, or a link to one; ValueError where there is something else."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"checkpoint: {path} must be a file.")
    return os.path.exists(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint: {path} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint: {path} must hold an object, got {type(content).__name__}.")
    return content


def config_text(op_name: str, config: Mapping[str, Any]) -> str:
    """Returns a config as JSON.

    Raises:
        TypeError: JSON cannot hold it.
    """
    checks.instance(op_name, "config", config, Mapping, "a mapping")
    try:
        text = json.dumps(dict(config))
        parse_json(text)
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: it holds itself
        raise TypeError(f"{op_name}: config must hold what JSON can: {error}.") from error
    return text
