# SPDX-License-Identifier: Apache-2.0
"""Block-quantized checkpoints in the Hugging Face format: safetensors to BlockScaled and back."""

import copy
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from os import PathLike
from typing import Any

import jax
import jax.export

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import place as placer
from jax_fp8gemm._src.checkpoints import read as reader
from jax_fp8gemm._src.checkpoints import safetensors_files, schemes, write_config
from jax_fp8gemm._src.checkpoints import write as writer
from jax_fp8gemm._src.checkpoints.format import Stored
from jax_fp8gemm._src.checkpoints.rounding import total
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled

Stored.__module__ = __name__  # what pickles name
_LOGGER = logging.getLogger("jax_fp8gemm")
Placement = jax.Device | jax.sharding.Sharding | None
MAX_FILE_BYTES = 5 * 10**9


class Checkpoint(dict[str, BlockScaled | jax.Array]):
    """What `load` returns: a dict of tensors that knows how they were stored, for `save`.

    Change it as any dict: tensors keep what is known of their names. It stays a `Checkpoint`
    through JAX, `copy` and `|`, while `dict(c)` and `{**c, ...}` are plain dicts, of which `save`
    knows nothing.

    Args:
        tensors: As a dict takes them.
        config: What `config.json` says; None for nothing.
        stored: How the result of each name is stored, a `Stored`; None for nothing known. It may
            have other names than `tensors`.

    Raises:
        TypeError: JSON cannot hold `config`, or `stored` has something else than a `Stored`.

    Transformations:
        A pytree: it passes through every transformation of JAX. Leaves and their paths are those
        of a dict, `config` and `stored` are static, so that it does not match the tree of a plain
        dict: use `dict(c)` beside one. Rebuilt trees have the order of `stored`, then other names.

    Example:
        >>> weights = load(folder)
        >>> weights.stored["model.layers.0.mlp.down_proj.weight"][:3]
        ('F8_E4M3', ('F32',), False)
        >>> jax.device_put(weights, jax.devices()[0]).config == weights.config
        True
    """

    def __init__(
        self,
        tensors: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        *,
        config: Mapping[str, Any] | None = None,
        stored: Mapping[str, Stored] | None = None,
    ):
        """Validates and holds the three."""
        super().__init__(tensors)
        self._config = fmt.config_text("Checkpoint", {} if config is None else config)
        self._stored = tuple((stored or {}).items())
        for name, found in self._stored:
            checks.instance("Checkpoint", f"stored[{name!r}]", found, Stored, "a Stored")

    @property
    def config(self) -> dict[str, Any]:
        """A copy of what `config.json` says; {} where there is none."""
        return json.loads(self._config)

    @property
    def stored(self) -> dict[str, Stored]:
        """How the result of each name is stored, in the order of the checkpoint; a copy."""
        return dict(self._stored)

    def copy(self) -> "Checkpoint":
        """Returns a shallow copy."""
        return copy.copy(self)

    # Its type leaves out that `other` may hold tensors of other types.
    def __or__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: Any
    ) -> "Checkpoint":
        """Returns a copy with the tensors of `other`."""
        merged = self.copy()
        merged |= other
        return merged

    def _flatten(self) -> tuple[tuple[Any, ...], Any]:
        names = tuple(sorted(self))
        return tuple(self[name] for name in names), (names, self._config, self._stored)

    def _flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        leaves, static = self._flatten()
        return tuple(zip(map(jax.tree_util.DictKey, static[0]), leaves, strict=True)), static

    @staticmethod
    def _unflatten(static: Any, leaves: Iterable[Any]) -> "Checkpoint":
        names, config, stored = static
        found = dict(zip(names, leaves, strict=True))
        in_order = {name: found[name] for name, _ in stored if name in found}
        self = Checkpoint(in_order | found)
        self._config, self._stored = config, stored
        return self

    @staticmethod
    def _read_static(data: bytes) -> Any:
        names, config, stored = json.loads(bytes(data))
        items = (
            (name, Stored(dtype, tuple(scale_dtypes), *others))
            for name, (dtype, scale_dtypes, *others) in stored
        )
        return tuple(names), config, tuple(items)


jax.tree_util.register_pytree_with_keys(
    Checkpoint, Checkpoint._flatten_with_keys, Checkpoint._unflatten, Checkpoint._flatten
)
jax.export.register_pytree_node_serialization(
    Checkpoint,
    serialized_name="jax_fp8gemm.Checkpoint",
    serialize_auxdata=lambda static: json.dumps(static).encode(),
    deserialize_auxdata=Checkpoint._read_static,
)


def load(
    folder: str | PathLike,
    *,
    include: Callable[[str], bool] | None = None,
    sharding: Placement | Callable[[str, tuple[int, ...]], Placement] = None,
    stack_experts: bool = True,
    stack_layers: bool = False,
    requantize: bool = False,
) -> Checkpoint:
    """Loads a quantized checkpoint, as DeepSeek-V3, llm-compressor or gpt-oss store it.

    A `float8_e4m3fn` tensor `X` with its scales `X_scale_inv` or `X_scale`, as the
    `quantization_config` has them, becomes a `BlockScaled` of block `(128, 128)`, every other
    tensor a plain array. Weights stay float8 throughout: files are memory-mapped, and each device
    is given its slice of them. The scales multiply, despite their name; they are widened to
    `float32`, from UE8M0 too (`F8_E8M0`, or `U8` with its bits).

    Scales may be those of blocks, of tensors, of which each block gets a copy, or of rows that are
    the same for all rows of a block. MXFP4, `X_blocks` with `X_scales`, becomes a `BlockScaled`
    `X` whose scales are powers of two; it is encoded anew on the host, a result at a time. What
    is not exact so is refused, or rounded with `requantize=True`. docs/checkpoints.md has the
    schemes.

    On a CPU an array may be the mapped file itself: do not overwrite a file in place while
    arrays from it are in use. 64-bit tensors get the dtype that JAX gives them. Each tensor is
    logged when it is there, by the logger "jax_fp8gemm" with level INFO; so are files by `save`.

    Args:
        folder: Holds `config.json`, and `model.safetensors` or `model.safetensors.index.json`
            with the files that it names. Where `config.json` has no `quantization_config`, not in
            a config inside it either, ModelOpt's `hf_quant_config.json` says the same.
        include: Takes the name of a result, of one layer, and says whether to load it; None loads
            everything.
        sharding: Where results go: a device, a `jax.sharding.Sharding`, None for JAX's default
            device, or a function from name and shape to one of these. Scales are sharded as
            their values are; along an axis where shards of a NamedSharding begin or end inside a
            block of 128, each device has all of them.
        stack_experts: Whether tensors `P.experts.0.S`, `P.experts.1.S`, ... become one result
            `P.experts.S` with a leading dimension of experts, as the grouped GEMMs take them.
        stack_layers: Whether layers that follow each other and hold the same results become one
            result for each, `P.layers.3-60.S` of `P.layers.3.S` to `P.layers.60.S`, with a leading
            dimension of layers, as `jax.lax.scan` takes them.
        requantize: Whether weights that no block FP8 has exactly are rounded to it: rows with
            scales of their own are scaled again as by `quantize`, and elements of MXFP4 too small
            beside others of their block rounded to e4m3. How many values and blocks are not exact,
            and the largest relative error of one, is logged with level WARNING, and with level
            INFO for each result.

    Returns:
        Every result by its name, in the order of the checkpoint, and what `save` needs to write
        it as it was stored.

    Raises:
        ImportError: The `safetensors` package is not installed.
        FileNotFoundError: A file is missing.
        TypeError: `sharding` is something else, or a tensor has an unsupported dtype.
        ValueError: A file is malformed, or its JSON nested more than 64 deep; the index names
            something else than files of `folder`, which may be links; scales are missing or have
            the wrong shape or nothing to scale; `quantization_config` names another method,
            format, scheme or block, or differs from an equally deep one; weights are not exact in
            block FP8 without `requantize`; the experts of a stack are not numbered from 0 without
            a gap, or differ; or a sharding does not fit a tensor, or cuts blocks of it and is no
            NamedSharding.

        Messages name the tensor, its file, the rule and what was found. Of a checkpoint of another
        scheme they name its `quant_method`, its `weight_block_size` and its scales.

    Transformations:
        None: it reads files, outside of any transformation.

    Example:
        >>> weights = load(folder)
        >>> w = weights["model.layers.0.mlp.down_proj.weight"]
        >>> w.shape, w.dtype.name, w.block
        ((160, 256), 'float8_e4m3fn', (128, 128))
    """
    folder = fmt.folder_path("checkpoint.load", folder)
    config = reader.read_config(folder)
    files = safetensors_files.open_folder(folder)
    scheme = schemes.guess(schemes.locate("checkpoint.load: config.json", config or {})[1])
    results = reader.find_results(files, include, stack_experts, scheme)
    # Before the tensors: those of another scheme are called and shaped as that one has them.
    reader.check_config(folder / fmt.CONFIG_FILE, config, results, files, scheme)
    sources = {
        name: reader.pair(name, experts, files, scheme, requantize)
        for name, experts in results.items()
    }
    if stack_layers:
        sources = reader.merge_layers(sources)
    shardings = {
        name: reader.find_sharding(name, source, sharding) for name, source in sources.items()
    }  # all of them, before the first is read
    tensors, roundings = {}, []
    for i, (name, source) in enumerate(sources.items(), 1):
        tensors[name], rounding = placer.place(source, shardings[name], requantize)
        _LOGGER.info("loaded %s, %d of %d", name, i, len(sources))
        if rounding.num_values:
            _LOGGER.info("rounded %s: %s", name, rounding)
            roundings.append(rounding)
    if roundings:
        rounding = total(roundings)
        _LOGGER.warning("requantize=True rounded %d results: %s", len(roundings), rounding)
    stored = {name: source.stored for name, source in sources.items()}
    return Checkpoint(tensors, config=config, stored=stored)


def save(
    folder: str | PathLike,
    tensors: Mapping[str, BlockScaled | jax.Array],
    *,
    config: Mapping[str, Any] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    unstack_experts: bool = True,
) -> None:
    """Writes a quantized checkpoint that `load` and the loaders of other projects read.

    A `BlockScaled` named `X` is written as `X` and `X_scale_inv`, or in the scheme that the
    `quantization_config` of `config` describes; a plain array as it is. What is named
    `P.layers.3-60.S` is written layer by layer, as `load` stacks them. Beside the safetensors files
    come `config.json`, with its `quantization_config`, and the index `model.safetensors.index.json`
    where there is more than one file. One file after another is brought to the host and written.

    `save(folder, load(other))` writes the same tensors, but MXFP4 as block FP8. Names that a
    `Checkpoint` was loaded with are stored as they were: one tensor per expert, as many as there
    are now, or one for all; 64-bit tensors in 64 bits, of what `load` left of them; scales in
    their shape and dtype, or in `float32` where that does not hold all scales of a result exactly.
    A `config` without `quantization_config` makes block FP8 of any checkpoint.

    In `quantization_config`, `modules_to_not_convert` (`ignored_layers`, `ignore`) keeps its
    entries and gets the modules of plain matrices `M.weight` that none covers; not those that a
    `Checkpoint` was loaded with as plain and unlisted. Entries that are regular expressions are
    not run. `scale_fmt: ue8m0` is left out if a scale is not a power of two.

    Files get their names when all are written; that by which `load` finds the others is the last.
    A call that fails leaves nothing, a process that is killed a folder `.saving-*`.

    Args:
        folder: Is made if need be; must not hold a checkpoint or `config.json` already.
        tensors: By name. Each `BlockScaled` has block `(128, 128)` and dtype `float8_e4m3fn`.
        config: What `config.json` says besides; a `quantization_config` in it is completed. None
            is the `config` of a `Checkpoint`, whose `quantization_config` is complete if it
            describes float8 tensors, and nothing for another mapping.
        max_file_bytes: A new file starts where one would pass this. A tensor and its scales stay
            together, and may pass it alone.
        unstack_experts: Whether a tensor `P.experts.S` of three dimensions is written as one
            tensor `P.experts.{i}.S` for each expert. It is not asked for names that a
            `Checkpoint` was loaded with.

    Raises:
        ImportError: The `safetensors` package is not installed.
        FileExistsError: `folder` holds a checkpoint or `config.json`.
        TypeError: A tensor is not an array, has an unsupported dtype, or is float8 and no
            `BlockScaled`; JSON cannot hold `config`; or `max_file_bytes` is not an int.
        ValueError: A `BlockScaled` has another block, or scales of blocks that differ where the
            scheme has one for a tensor or a row; a name is written twice or ends as scales do; a
            tensor has parts on other hosts; a stack has not as many layers as its name has;
            `config` names another quantization, or a module of a
            `BlockScaled` under `modules_to_not_convert`; or `max_file_bytes` is below 1.

    Transformations:
        None: it writes files, outside of any transformation.

    Example:
        >>> save(new_folder, {"model.layers.0.mlp.down_proj.weight": w})
        >>> load(new_folder)["model.layers.0.mlp.down_proj.weight"].block
        (128, 128)
    """
    folder = fmt.folder_path("checkpoint.save", folder)
    limit = checks.extent("checkpoint.save", "max_file_bytes", max_file_bytes, 1)
    safetensors_files.package()
    loaded = tensors if isinstance(tensors, Checkpoint) else Checkpoint()
    given = loaded.config if config is None else config
    given = json.loads(fmt.config_text("checkpoint.save", given))
    target = write_config.find_target(given, loaded.config, loaded.stored)
    parts = writer.find_parts(tensors, loaded.stored, unstack_experts, target.scheme)
    completed = write_config.complete(target, loaded.stored, parts)
    writer.check_free(folder)
    files = writer.split_into_files(chain(*parts.values()), limit)
    writer.write(folder, files, completed)
