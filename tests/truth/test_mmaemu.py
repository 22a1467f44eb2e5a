# SPDX-License-Identifier: Apache-2.0
"""The simulator's sums of a wgmma, bit for bit those of `mmaemu`, a model of Hopper's tensor core.

mmaemu's model was held against an H100's results by its authors. It needs torch, so what it gives
for every case is also recorded, as a digest, in mmaemu.json, which each machine compares with;
update_mmaemu.py writes it. The operands are those of _mma_operands.py.
"""

import ctypes
import hashlib
import importlib.util
import itertools
import json

import _mma_operands as operands
import numpy as np
import pytest
from _source import ROOT
from _witness_packages import TRUTH, compile_program, needs

RECORDED = TRUTH / "mmaemu.json"
PAIRS = list(itertools.product(operands.TYPES, operands.TYPES))
_MMA = ROOT / "csrc" / "sim" / "engine" / "mma_math.cc"
# Changes of the simulator's arithmetic by one bit or one rule.
FAULTS = {
    "a bit less": ("kFractionBits = 13;", "kFractionBits = 12;"),
    "a bit more": ("kFractionBits = 13;", "kFractionBits = 14;"),
    "a sum that is not truncated": (
        "const float result = TruncateFraction(static_cast<float>(sum[i])) * unit;",
        "const float result = static_cast<float>(sum[i]) * unit;",
    ),
    "an accumulator that is not aligned": (
        "largest[i] = exponent == kExponentMask ? kSmallest : std::bit_cast<float>(exponent);",
        "largest[i] = kSmallest;",
    ),
    "exponents of normalized subnormals": (
        "significand == 0 ? 0.0f : std::ldexp(1.0f, exponent);",
        "significand == 0 ? 0.0f : std::exp2(std::floor(std::log2(std::fabs(table.value[code]))));",
    ),
    "a NaN that keeps its bits": (
        "std::isnan(sum) ? std::bit_cast<float>(0x7fffffffu) : sum",
        "sum",
    ),
    "a negative zero": ("TruncateFraction(start[i]) + 0.0f", "TruncateFraction(start[i])"),
}


def _library(factory, name: str, *mma_sources):
    flags = ["-shared", "-fPIC", "-ffp-contract=off", *mma_sources]
    path = compile_program(factory, name, ["simulated_mma"], flags=flags)
    function = ctypes.CDLL(str(path)).SimulatedMma
    pointer = np.ctypeslib.ndpointer
    codes, tile = pointer(np.uint8, flags="C"), pointer(np.float32, flags="C")
    function.argtypes = [codes, codes, *[ctypes.c_uint32] * 3, tile]
    function.restype = None

    def multiply(a, b, accumulators, a_type, b_type):
        result = accumulators.copy()
        types = operands.TYPES.index(a_type), operands.TYPES.index(b_type)
        function(a, b, operands.COLUMNS, *types, result)
        return result

    return multiply


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Returns the simulator's product, as a function."""
    return _library(tmp_path_factory, "simulated_mma", _MMA)


def emulated(a, b, accumulators, a_type, b_type):
    """Returns mmaemu's product."""
    import torch
    from mmaemu.formats import DTYPE_OF
    from mmaemu.model.chain import dot

    rows, columns, depth = operands.ROWS, operands.COLUMNS, operands.DEPTH
    shape = rows, columns, depth
    a = torch.from_numpy(a).view(DTYPE_OF[a_type])[:, None].expand(shape)
    b = torch.from_numpy(b).view(DTYPE_OF[b_type])[None].expand(shape)
    return dot(a, b, torch.from_numpy(accumulators), preset="hopper").numpy()


def digest(result: np.ndarray) -> str:
    """Returns what a case is recorded as."""
    return hashlib.sha256(result.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_sums_are_those_that_mmaemu_gave(simulated, a_type, b_type):
    recorded = json.loads(RECORDED.read_text())["digests"]
    for name, *numbers in operands.cases(a_type, b_type):
        assert digest(simulated(*numbers, a_type, b_type)) == recorded[name], name
    assert len(recorded) == 4 * len(list(operands.cases(a_type, b_type)))


@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_sums_are_those_of_mmaemu(simulated, a_type, b_type):
    for package in ("torch", "mmaemu"):
        if importlib.util.find_spec(package) is None:
            needs(package, extra="truth-mmaemu")
    recorded = json.loads(RECORDED.read_text())["digests"]
    for name, *numbers in operands.cases(a_type, b_type):
        got, wanted = simulated(*numbers, a_type, b_type), emulated(*numbers, a_type, b_type)
        wrong = got.view(np.uint32) != wanted.view(np.uint32)
        row, column = np.argwhere(wrong)[0] if wrong.any() else (0, 0)
        assert not wrong.any(), (
            f"{name}: {wrong.sum()} of {wrong.size}; ({row}, {column}) is {got[row, column]},"
            f" mmaemu {wanted[row, column]}, from {numbers[2][row, column]}"
        )
        assert digest(wanted) == recorded[name], name


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(tmp_path_factory, tmp_path, fault):
    right, wrong = FAULTS[fault]
    text = _MMA.read_text()
    assert right in text
    source = tmp_path / "mma_math.cc"
    source.write_text(text.replace(right, wrong))
    multiply = _library(tmp_path_factory, f"mma with {fault}", source)
    recorded = json.loads(RECORDED.read_text())["digests"]
    assert any(
        digest(multiply(*numbers, *pair)) != recorded[name]
        for pair in PAIRS
        for name, *numbers in operands.cases(*pair)
    )
