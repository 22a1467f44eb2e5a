# SPDX-License-Identifier: Apache-2.0
"""Block-quantised checkpoints in the Hugging Face format: safetensors to BlockScaled and back."""

import pathlib
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import jax

from jax_fp8gemm._src.checkpoints import read as reader
from jax_fp8gemm._src.checkpoints import safetensors_files
from jax_fp8gemm._src.checkpoints import write as writer
from jax_fp8gemm._src.checkpoints.format import CONFIG_FILE
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled

Placement = jax.Device | jax.sharding.Sharding | None
MAX_FILE_BYTES = 5 * 10**9


def load(
    folder: str | PathLike,
    *,
    include: Callable[[str], bool] | None = None,
    sharding: Placement | Callable[[str, tuple[int, ...]], Placement] = None,
    stack_experts: bool = True,
) -> dict[str, BlockScaled | jax.Array]:
    """Loads a block-quantised checkpoint, as DeepSeek-V3, Qwen3-FP8 and Kimi-K2 are stored.

    A `float8_e4m3fn` tensor `X` with its scales `X_scale_inv` becomes a `BlockScaled` of block
    `(128, 128)`, every other tensor a plain array. Weights stay float8 throughout: files are
    memory-mapped, and each device is given its slice of them. The scales multiply, despite their
    name; they are widened to `float32`, from UE8M0 too (`F8_E8M0`, or `U8` with its bits).

    On a CPU an array may be the mapped file itself: do not overwrite a file in place while
    arrays from it are in use. 64-bit tensors get the dtype that JAX gives them.

    Args:
        folder: Holds `config.json`, and `model.safetensors` or `model.safetensors.index.json`
            with the files that it names.
        include: Takes the name of a result and says whether to load it; None loads everything.
        sharding: Where results go: a device, a `jax.sharding.Sharding`, None for JAX's default
            device, or a function from name and shape to one of these. Scales are sharded as
            their values are, so that no shard may split a block of 128 rows or columns.
        stack_experts: Whether tensors `P.experts.0.S`, `P.experts.1.S`, ... become one result
            `P.experts.S` with a leading dimension of experts, as the grouped GEMMs take them.

    Returns:
        Every result by its name, in the order of the checkpoint.

    Raises:
        ImportError: The `safetensors` package is not installed.
        FileNotFoundError: A file is missing.
        TypeError: `sharding` is something else, or a tensor has an unsupported dtype.
        ValueError: A file is malformed; scales are missing or have the wrong shape or nothing
            to scale; `quantization_config` names another method, format, scheme or block; the
            experts of a stack are not numbered from 0 without a gap, or differ; or a sharding
            does not fit a tensor or splits a block of it.

        Messages name the tensor, its file, the rule and what was found.

    Transformations:
        None: it reads files, outside of any transformation.

    Example:
        >>> weights = load(folder)
        >>> w = weights["model.layers.0.mlp.down_proj.weight"]
        >>> w.shape, w.dtype.name, w.block
        ((160, 256), 'float8_e4m3fn', (128, 128))
    """
    folder = pathlib.Path(folder)
    sources = reader.find_sources(safetensors_files.open_folder(folder), include, stack_experts)
    reader.check_quantization(folder / CONFIG_FILE, sources)
    shardings = {
        name: reader.find_sharding(name, source, sharding) for name, source in sources.items()
    }  # all of them, before the first is read
    return {name: reader.place(source, shardings[name]) for name, source in sources.items()}


def save(
    folder: str | PathLike,
    tensors: Mapping[str, BlockScaled | jax.Array],
    *,
    config: Mapping[str, Any] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    unstack_experts: bool = True,
) -> None:
    """Writes a block-quantised checkpoint that `load` and the loaders of other projects read.

    A `BlockScaled` named `X` is written as `X` and `X_scale_inv`, a plain array as it is. Beside
    the safetensors files come `config.json`, with its `quantization_config`, and the index
    `model.safetensors.index.json` where there is more than one file. One file after another is
    brought to the host and written.

    Args:
        folder: Is made if need be; must not hold a checkpoint already.
        tensors: By name. Each `BlockScaled` has block `(128, 128)` and dtype `float8_e4m3fn`.
        config: What `config.json` says besides; a `quantization_config` in it is completed.
        max_file_bytes: A new file starts where one would pass this. A tensor and its scales stay
            together, and may pass it alone.
        unstack_experts: Whether a tensor `P.experts.S` of three dimensions is written as one
            tensor `P.experts.{i}.S` for each expert.

    Raises:
        ImportError: The `safetensors` package is not installed.
        FileExistsError: `folder` holds a checkpoint.
        TypeError: A tensor is not an array, has an unsupported dtype, or is float8 and no
            `BlockScaled`; or `max_file_bytes` is not an int.
        ValueError: A `BlockScaled` has another block; a name is written twice; a tensor has parts
            on other hosts; `config` names another quantisation; or `max_file_bytes` is below 1.

    Transformations:
        None: it writes files, outside of any transformation.

    Example:
        >>> save(new_folder, {"model.layers.0.mlp.down_proj.weight": w})
        >>> load(new_folder)["model.layers.0.mlp.down_proj.weight"].block
        (128, 128)
    """
    folder = pathlib.Path(folder)
    limit = checks.extent("checkpoint.save", "max_file_bytes", max_file_bytes, 1)
    safetensors_files.package()
    groups = writer.find_parts(tensors, unstack_experts)
    config = writer.complete_config(config or {}, tensors, groups)
    taken = next(folder.glob("model*.safetensors*"), None)
    if taken is not None:
        raise FileExistsError(
            f"checkpoint.save: folder {folder} must not hold a checkpoint, it has {taken.name}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    writer.write(folder, writer.split_into_files(groups, limit), config)
