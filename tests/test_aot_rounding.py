# SPDX-License-Identifier: Apache-2.0
"""XLA:GPU rounds what a program computes before that is quantized: plain JAX, kernels' operands.

The same as test_rounding.py, which runs on a CPU, for an H100 and ahead of time. XLA:GPU leaves out
the rounding to float16 too, which XLA:CPU does not.
"""

import re
from collections.abc import Iterator

import _aot
import pytest
from _hlo import Instruction, Module, parse_module

pytestmark = _aot.marks()

QUANTIZERS = ("rows", "blocks", "transposed", "k_grouped", "rows_and_transposed")
QUANTIZERS += ("rows_and_k_grouped",)
ACTIVATIONS = ("swiglu", "swiglu of both", "geglu", "gelu", "rms_norm")
NARROW = {"bfloat16": "bf16", "float16": "f16"}
DIGITS = "exponent_bits=8, mantissa_bits=7"  # of bfloat16; float16 is rounded in memory
_MOVES = ("bitcast", "broadcast", "concatenate", "convert", "copy", "pad", "reshape", "slice")
_MOVES += ("transpose", "dynamic-slice", "get-tuple-element")

_NOTHING_COMPUTED = (*_MOVES, "constant", "fusion", "parameter", "reduce-precision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _aot.compiled(tmp_path_factory, "_aot_rounding.py")


def is_of(scope: str, instruction: Instruction) -> bool:
    return f"/{scope}/" in instruction.op_name


Use = tuple[Instruction, Instruction]  # of a value, as it was moved, by what


def first_uses(body: list[Instruction], of: Instruction, scope: str) -> Iterator[Use]:
    """Yields what computes with a value outside of its scope, and the root if that gives it on."""
    for user in body:
        if of.name in user.operands:
            if user.opcode in _MOVES:
                yield from first_uses(body, user, scope)
            elif not is_of(scope, user):
                yield of, user
    if of is body[-1]:
        yield of, of


def unrounded(module: Module, scope: str, narrow: str) -> tuple[int, list[str]]:
    """Returns how often what a scope computes is used outside of it, and where unrounded."""
    count, wrong = 0, []
    for body in module.computations.values():
        for made in body:
            if not is_of(scope, made) or made.opcode in _NOTHING_COMPUTED:
                continue
            for value, use in first_uses(body, made, scope):
                is_rounded = use.opcode == "reduce-precision" and DIGITS in use.text
                count += 1
                if not (is_rounded or value.type.startswith(f"{narrow}[")):
                    wrong.append(f"{made.name} in {use.name}")
    return count, wrong


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", [*QUANTIZERS, *ACTIVATIONS, "accumulator"])
def test_plain_jax_quantizes_what_was_rounded(folder, name, dtype):
    module = parse_module((folder / f"{name}-{dtype}-xla").read_text())
    for scope in ("made", "computed") if name in ACTIVATIONS else ("made",):
        count, wrong = unrounded(module, scope, NARROW[dtype])
        assert count > 0 and wrong == []


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_not_rounded_is_seen(folder, dtype):
    module = parse_module((folder / f"unrounded-{dtype}-xla").read_text())
    count, wrong = unrounded(module, "made", NARROW[dtype])
    assert len(wrong) == count > 0


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", [*QUANTIZERS, *ACTIVATIONS, "accumulator"])
def test_kernels_read_what_was_rounded(folder, name, dtype):
    """Their operands are in memory, in a dtype of 16 bits."""
    module = parse_module((folder / f"{name}-{dtype}-cuda").read_text())
    types = {each.name: each.type for each in module.entry}
    prefix = "jax_fp8gemm.gemm." if name == "accumulator" else "jax_fp8gemm.quantize."
    calls = module.custom_calls(prefix)
    read = [types[operand] for call in calls for operand in call.operands]
    of_x = [type for type in read if re.match(r"\w+\[(1,)?256,(512|1024)\]", type)]
    assert of_x and all(type.startswith(f"{NARROW[dtype]}[") for type in of_x)
