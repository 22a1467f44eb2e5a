# SPDX-License-Identifier: Apache-2.0
"""What block-quantised checkpoints look like: names, dtypes and `quantization_config`."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jax_fp8gemm._src.operands import checks

CONFIG_FILE = "config.json"
SCALE_SUFFIX = "_scale_inv"  # the scales multiply, whatever the name says
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")  # U8: the bits of F8_E8M0
E4M3 = jnp.dtype(jnp.float8_e4m3fn)
BLOCK = checks.SQUARE_BLOCK
# What quantization_config must say, where it says it; weight_block_size it must say.
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": list(BLOCK),
}

_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.+)$")


def without_expert(name: str) -> tuple[str, int] | None:
    """Splits `P.experts.{i}.S` into `P.experts.S` and i; None for every other name."""
    match = _EXPERT.match(name)
    return (f"{match[1]}.{match[3]}", int(match[2])) if match else None


def with_expert(name: str, expert: int) -> str | None:
    """Returns `P.experts.{expert}.S` for `P.experts.S`; None for every other name."""
    head, dot, tail = name.rpartition(".experts.")
    if not dot or _EXPERT.match(name):
        return None
    return f"{head}.experts.{expert}.{tail}"


def check_quantization_config(where: str, found: Mapping[str, Any]) -> None:
    """Checks that a `quantization_config` describes what this package reads and writes."""
    for key, wanted in QUANTIZATION.items():
        value = found.get(key, None if key == "weight_block_size" else wanted)
        value = list(value) if isinstance(value, tuple) else value
        if value != wanted:
            raise ValueError(
                f"{where}: quantization_config.{key} must be {wanted!r}, got {value!r}."
            )
