# SPDX-License-Identifier: Apache-2.0
"""What config.json says of the checkpoint that is written."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_fp8gemm._src.checkpoints import format as fmt
from jax_fp8gemm._src.checkpoints import schemes
from jax_fp8gemm._src.checkpoints.schemes import LeftOut, Scheme
from jax_fp8gemm._src.checkpoints.write import Groups, holds

_NAME = "checkpoint.save"


class Target(NamedTuple):
    """A config, and what it says of the checkpoint that is to be written.

    keys: To its `quantization_config`.
    given: What is there, maybe nothing.
    quantization: The same, completed.
    known: The `quantization_config` of the checkpoint that was loaded, {} for another scheme.
    is_loaded: Whether that is given again: then it is complete.
    """

    config: Mapping[str, Any]
    keys: tuple[str, ...]
    given: Any
    quantization: dict[str, Any]
    scheme: Scheme
    known: Mapping[str, Any]
    is_loaded: bool


def find_target(
    config: Mapping[str, Any], loaded: Mapping[str, Any], stored: Mapping[str, fmt.Stored]
) -> Target:
    """Returns what a config asks for; `loaded` is that of the checkpoint that `stored` is of."""
    keys, given = schemes.locate(f"{_NAME}: config", config)
    _, known = schemes.locate(f"{_NAME}: config of the checkpoint", loaded)
    known = known if isinstance(known, Mapping) else {}
    quantization = dict(given) if isinstance(given, Mapping) else {}
    is_loaded = given == known and any(each.scale_dtypes for each in stored.values())
    scheme = schemes.guess(quantization)
    if not scheme.layouts:  # MXFP4: what it leaves out is left out of block FP8
        quantization = {"modules_to_not_convert": scheme.left_out(quantization).entries}
        is_loaded = False
    if not is_loaded and quantization.get("quant_method", "fp8") == "fp8":
        quantization = {**fmt.QUANTIZATION, **quantization}
    scheme = schemes.guess(quantization)
    known = known if schemes.guess(known) == scheme else {}
    return Target(config, keys, given, quantization, scheme, known, is_loaded)


def complete(
    target: Target, stored: Mapping[str, fmt.Stored], parts: Mapping[str, Groups]
) -> dict[str, Any]:
    """Makes `quantization_config` describe what is written.

    One that was loaded and is given again is complete, and what it need not leave out stays so.
    """
    given, quantization = target.given, target.quantization
    quantized = [group for group in itertools.chain(*parts.values()) if len(group) == 2]
    if not quantized and not (given and _is_dequantized(stored, parts)):
        return dict(target.config)
    name = ".".join(target.keys)
    if given and not isinstance(given, Mapping):
        raise TypeError(f"{_NAME}: config: {name} must be a mapping, got {given!r}.")
    scheme = schemes.recognize(f"{_NAME}: config: {name}", quantization)
    left_out = scheme.left_out(quantization)
    for part, _ in quantized:
        module = left_out.module_of(part.name)
        if module is not None:
            raise ValueError(
                f"{_NAME}: tensor {part.name!r} must not be a BlockScaled, because"
                f" {'.'.join(scheme.unquantized)} in config names {module!r}."
            )
    modules = {module for part, _ in quantized for module in left_out.modules(part.name)}
    plain = _find_plain(scheme.left_out(target.known), target.known, stored, parts)
    found = [
        name.removesuffix(".weight")
        for name in plain
        if name.removesuffix(".weight") not in modules and left_out.module_of(name) is None
    ]
    if found or not target.is_loaded:
        quantization = scheme.leaving_out(quantization, [*left_out.entries, *found])
    if quantization.get("scale_fmt") == "ue8m0" and not _are_powers_of_two(quantized):
        del quantization["scale_fmt"]
    return schemes.replace(target.config, target.keys, quantization)


def _is_dequantized(stored: Mapping[str, fmt.Stored], parts: Mapping[str, Groups]) -> bool:
    """Whether a result that was float8 is plain."""
    return any(name in stored and stored[name].scale_dtypes for name in parts)


def _find_plain(
    listed: LeftOut,
    known: Mapping[str, Any],
    stored: Mapping[str, fmt.Stored],
    parts: Mapping[str, Groups],
) -> Iterator[str]:
    """Yields the names of plain matrices, but those that were plain and not listed."""
    for name, groups in parts.items():
        was_plain = bool(known) and name in stored and not stored[name].scale_dtypes
        for first, *scales in groups:
            rank = first.array.ndim - len(first.place)
            if scales or rank != 2 or not first.name.endswith(".weight"):
                continue
            if not was_plain or listed.module_of(first.name) is not None:
                yield first.name


def _are_powers_of_two(quantized: Groups) -> bool:
    arrays = {id(scales.array): scales.array for _, scales in quantized}  # once for all experts
    return all(holds(fmt.E8M0, np.asarray(array)) for array in arrays.values())
