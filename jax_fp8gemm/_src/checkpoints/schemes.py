# SPDX-License-Identifier: Apache-2.0
"""What `quantization_config` says: where it is, which scheme it describes, what it leaves out."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jax_fp8gemm._src.checkpoints import format as fmt

KEY = "quantization_config"
_KEYS = (KEY, "compression_config")  # the second is compressed-tensors' older name
_INV, _SCALE = "_scale_inv", "_scale"  # both multiply, whatever the first one says


class Scheme(NamedTuple):
    """How a checkpoint names and lays out what is quantized.

    suffixes: What names of scales end in after that of the values; new tensors get the first.
    layouts: Names of `layouts.LAYOUTS` that scales may have; new tensors get the first. None for
        MXFP4, which is read and not written.
    unquantized: Keys of `quantization_config` to the modules that are not quantized.
    is_exact: Whether an entry there is one module, and not all that is in it too.
    values_suffix: What names of values end in after that of the result.
    """

    suffixes: tuple[str, ...]
    layouts: tuple[str, ...]
    unquantized: tuple[str, ...] = ("modules_to_not_convert",)
    is_exact: bool = False
    values_suffix: str = ""

    def scaled_by(self, name: str, is_quantized: Callable[[str], bool]) -> str | None:
        """Returns the result that a tensor of this name scales, or None where it is no scales.

        Of names in `_scale` some are no scales of weights, such as `input_scale`.
        """
        for suffix in self.suffixes:
            base = name.removesuffix(suffix)
            is_sure = suffix != _SCALE or base.endswith("weight")
            if base != name and (is_sure or is_quantized(base)):
                return base
        return None

    def left_out(self, found: Mapping[str, Any]) -> "LeftOut":
        """Returns the modules that a `quantization_config`, maybe unchecked, leaves out."""
        listed = _get(found, self.unquantized)
        return LeftOut(listed if isinstance(listed, list | tuple) else (), self.is_exact)

    def leaving_out(self, found: Mapping[str, Any], entries: list[str]) -> dict[str, Any]:
        """Returns a `quantization_config` that leaves out other modules."""
        return _with(found, self.unquantized, entries)


class LeftOut:
    """Modules that are not quantized.

    Entries may have wildcards (*), but those of one module each. Regular expressions, "re:...",
    are kept and not run: one may be written to take for ever.
    """

    def __init__(self, entries: Iterable[Any], is_exact: bool):
        """Holds the entries, which may be other JSON than text."""
        self.entries = list(entries)
        self._is_exact = is_exact
        self._names = {entry for entry in self.entries if isinstance(entry, str)}
        patterns = [name for name in self._names if "*" in name and not is_exact]
        self._patterns = re.compile("|".join(map(fnmatch.translate, patterns)) or "(?!)")

    def modules(self, name: str) -> list[str]:
        """Returns the modules of a tensor that an entry would have to name."""
        modules = list(fmt.modules_of(name))
        return modules[-1:] if self._is_exact else modules

    def module_of(self, name: str) -> str | None:
        """Returns the module that a tensor is left out with, or None."""
        for module in self.modules(name):
            if module in self._names or self._patterns.match(module):
                return module
        return None


BLOCK_FP8 = Scheme((_INV,), ("block",))
_MXFP4 = Scheme(("_scales",), (), values_suffix="_blocks")
_STRATEGIES = {
    "block": ("block",),
    "tensor": ("tensor_1d", "tensor"),
    "channel": ("channel", "channel_1d"),
}
_ALGORITHMS = {
    "FP8": ("tensor", "tensor_1d"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("channel_1d", "channel"),
    "FP8_PB_WO": ("block_4d", "block"),
}


class _Description:
    """A `quantization_config` to be checked, and how messages call it."""

    def __init__(self, where: str, found: Mapping[str, Any], context: str):
        self.where, self.found, self.context = where, found, context

    def refuse(self, keys: tuple[str, ...], rule: str) -> ValueError:
        name = ".".join((self.where, *keys))
        return ValueError(f"{name} must be {rule}, got {_get(self.found, keys)!r}{self.context}.")

    def one_of(self, keys: tuple[str, ...], *wanted: Any, default: Any = None) -> Any:
        """Returns the value of nested keys, `default` for none, which must be one of `wanted`."""
        value = _get(self.found, keys)
        value = list(value) if isinstance(value, tuple) else value
        value = default if value is None else value
        for each in wanted:
            # JSON has true and 1, and 8.0 and 8, which Python takes for equal.
            if type(each) is type(value) and each == value:
                return value
        raise self.refuse(keys, " or ".join(map(repr, wanted)))

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the keys to the weights of each of `config_groups`."""
        groups = self.found.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise self.refuse(("config_groups",), "a mapping of at least one group")
        return [("config_groups", name, "weights") for name in groups]


def _of_fp8(described: _Description) -> Scheme:
    """As DeepSeek-V3 and transformers' finegrained_fp8.py; per tensor as AutoFP8 too.

    AutoFP8 writes `weight_scale`, transformers `weight_scale_inv` for both.
    """
    found = described.found
    described.one_of(("fmt",), "e4m3", default="e4m3")
    described.one_of(("scale_fmt",), "float", "ue8m0", default="float")
    key = "ignored_layers" if found.get("ignored_layers") else "modules_to_not_convert"
    if found.get("weight_block_size") is None:
        described.one_of(("activation_scheme",), "dynamic", "static", default="dynamic")
        return Scheme((_SCALE, _INV), ("tensor", "tensor_1d"), (key,))
    described.one_of(("activation_scheme",), "dynamic", default="dynamic")
    described.one_of(("weight_block_size",), list(fmt.BLOCK))
    return BLOCK_FP8._replace(unquantized=(key,))


def _of_compressed_tensors(described: _Description) -> Scheme:
    """As compressed-tensors' naive_quantized/base.py and quant_config.py."""
    described.one_of(("format",), "float-quantized", "naive-quantized", default="float-quantized")
    layouts: dict[str, None] = {}
    for keys in described.groups():
        described.one_of((*keys, "type"), "float")
        described.one_of((*keys, "num_bits"), 8)
        described.one_of((*keys, "symmetric"), True, default=True)
        strategy = described.one_of((*keys, "strategy"), *_STRATEGIES)
        if strategy == "block":
            described.one_of((*keys, "block_structure"), list(fmt.BLOCK))
        layouts |= dict.fromkeys(_STRATEGIES[strategy])
    return Scheme((_SCALE,), tuple(layouts), ("ignore",), is_exact=True)


def _of_modelopt(described: _Description) -> Scheme:
    """As ModelOpt's convert_hf_config.py, or its hf_quant_config.json under "quantization"."""
    is_old = "quantization" in described.found
    keys = ("quantization",) if is_old else ()
    algorithm = _get(described.found, (*keys, "quant_algo"))
    layouts = _ALGORITHMS.get(algorithm.upper()) if isinstance(algorithm, str) else None
    if layouts is None:
        raise described.refuse((*keys, "quant_algo"), " or ".join(map(repr, _ALGORITHMS)))
    return Scheme((_SCALE,), layouts, (*keys, "exclude_modules" if is_old else "ignore"))


METHODS: dict[str, Callable[[_Description], Scheme]] = {
    "fp8": _of_fp8,
    "compressed-tensors": _of_compressed_tensors,
    "modelopt": _of_modelopt,
    "mxfp4": lambda described: _MXFP4,  # as transformers' mxfp4.py
}


def recognize(where: str, found: Mapping[str, Any], context: str = "") -> Scheme:
    """Returns the scheme that a `quantization_config` describes.

    Raises:
        ValueError: It is another one than this package reads. The message begins with `where` and
            ends with `context`.
    """
    described = _Description(where, found, context)
    method = described.one_of(("quant_method",), *METHODS, default="fp8")
    scheme = METHODS[method](described)
    kept = _get(found, scheme.unquantized)
    is_list = isinstance(kept, list | tuple) and all(isinstance(name, str) for name in kept)
    if kept is not None and not is_list:
        raise _Description(where, found, "").refuse(scheme.unquantized, "a list of names")
    return scheme


def guess(found: Any) -> Scheme:
    """Returns the scheme that is described, or block FP8 where none is that this package reads."""
    try:
        return recognize("", found) if isinstance(found, Mapping) else BLOCK_FP8
    except ValueError:
        return BLOCK_FP8


def locate(op_name: str, config: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Returns the keys to the outermost `quantization_config`, and what is there, maybe nothing.

    Multimodal models may have it in a config of theirs, as in `text_config`.

    Raises:
        ValueError: There are several, equally deep, that differ.
    """
    level: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), config)]
    while level:
        found = [(*keys, key) for keys, each in level for key in _KEYS if each.get(key)]
        for keys in found[1:]:
            if _get(config, keys) != _get(config, found[0]):
                names = " and ".join(".".join(each) for each in (found[0], keys))
                raise ValueError(f"{op_name}: {names} must be the same.")
        if found:
            return found[0], _get(config, found[0])
        level = [
            ((*keys, key), inner)
            for keys, each in level
            for key, inner in each.items()
            if isinstance(inner, Mapping)
        ]
    return (KEY,), config.get(KEY)


def replace(config: Mapping[str, Any], keys: tuple[str, ...], found: Any) -> dict[str, Any]:
    """Returns a config with another `quantization_config` where `locate` has found one."""
    return _with(config, keys, found)


def _get(found: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _with(found: Mapping[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = keys
    return {**found, first: _with(found[first], tuple(rest), value) if rest else value}
