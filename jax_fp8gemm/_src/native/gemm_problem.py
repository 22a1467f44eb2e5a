# SPDX-License-Identifier: Apache-2.0
"""Problem: what one call computes, as far as its kernel depends on it; csrc/gemm/problem.h's twin.

It is the key of tuned tables, the argument of `ranking.rank`, and one word on the command line.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.tables import BLOCK, KINDS, MAX_EXTENT, MAX_GROUPS

FP8_DTYPES = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
RESULT_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
# Scaling by block of rhs.
SCALINGS = {checks.SQUARE_BLOCK: "1d2d", checks.ROW_BLOCK: "1d1d"}
SYNTAX = (
    "[KIND:]MxNxK[:OPTION...], where KIND is ragged, contiguous, masked or k_grouped and OPTION"
    " groups=G, expected=M, lhs=e5m2, rhs=e5m2, result=bf16|f16|f32, rows (1x128 scales of rhs),"
    " accumulate or unspecified (padding of masked groups)"
)

_EXTENTS = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


class Problem(NamedTuple):
    """One problem, fields as in csrc/gemm/problem.h.

    Attributes:
        m: Rows of one output matrix; for "ragged" and "contiguous" of all groups together.
        n: Columns of the result.
        k: For "k_grouped" of all groups together.
        kind: One of `KINDS`.
        scaling: "1d2d", or "1d1d" for 1x128 scales of both operands.
        num_groups: 1 for "dense".
        a_dtype: Of lhs.
        b_dtype: Of rhs.
        d_dtype: Of the result.
        accumulate: Whether an accumulator is added.
        expected_m: Rows that a masked group is likely to have; 0 if unknown.
        zero_padding: Whether rows of masked groups that are not valid become zeros.
        num_sms: SMs to plan for.
    """

    m: int
    n: int
    k: int
    kind: str = "dense"
    scaling: str = "1d2d"
    num_groups: int = 1
    a_dtype: str = "float8_e4m3fn"
    b_dtype: str = "float8_e4m3fn"
    d_dtype: str = "bfloat16"
    accumulate: bool = False
    expected_m: int = 0
    zero_padding: bool = False
    num_sms: int = 132

    def __str__(self) -> str:
        """Returns the word that `parse` reads back, the SM count left out."""
        short = {name: key for key, name in (FP8_DTYPES | RESULT_DTYPES).items()}
        lead = "" if self.kind == "dense" else f"{self.kind}:"
        options = {
            f":groups={self.num_groups}": self.num_groups != 1,
            f":expected={self.expected_m}": self.expected_m != 0,
            f":lhs={short[self.a_dtype]}": self.a_dtype != "float8_e4m3fn",
            f":rhs={short[self.b_dtype]}": self.b_dtype != "float8_e4m3fn",
            f":result={short[self.d_dtype]}": self.d_dtype != _default_result(self.kind),
            ":rows": self.scaling == "1d1d" and self.kind == "dense",
            ":accumulate": self.accumulate,
            ":unspecified": self.kind == "masked" and not self.zero_padding,
        }
        words = "".join(text for text, is_shown in options.items() if is_shown)
        return f"{lead}{self.m}x{self.n}x{self.k}{words}"

    @property
    def a_rows(self) -> int:
        """Rows of lhs, of all groups."""
        return self.m * (self.num_groups if KINDS[self.kind].has_group_rows else 1)

    @property
    def b_rows(self) -> int:
        """Rows of rhs, of all groups."""
        return self.n * (self.num_groups if KINDS[self.kind].has_group_weights else 1)

    @property
    def d_rows(self) -> int:
        """Rows of the result, of all groups."""
        return self.m * (self.num_groups if KINDS[self.kind].has_group_results else 1)

    @property
    def group_rows(self) -> int:
        """Rows a masked group is taken to have."""
        return min(self.expected_m or self.m, self.m)

    @property
    def flops(self) -> int:
        """Operations, a multiply-add counted as two; groups as full as the cost model has them."""
        rows = self.num_groups * self.group_rows if self.kind == "masked" else self.m
        return 2 * rows * self.n * self.k

    @property
    def least_bytes(self) -> int:
        """Bytes of device memory that any kernel moves: operands, scales and results, once."""
        k_blocks = -(-self.k // BLOCK)
        is_masked = self.kind == "masked"
        lhs_rows = self.num_groups * self.group_rows if is_masked else self.a_rows
        scale_rows = self.b_rows
        if self.scaling == "1d2d":
            scale_rows = self.b_rows // self.n * -(-self.n // BLOCK)
        d_rows = lhs_rows if is_masked and not self.zero_padding else self.d_rows
        d_bytes = np.dtype(self.d_dtype).itemsize * (2 if self.accumulate else 1)
        operands = (lhs_rows + self.b_rows) * self.k + 4 * (lhs_rows + scale_rows) * k_blocks
        return operands + d_rows * self.n * d_bytes


def problem_of(
    kind: str,
    factors: Sequence[Any],
    *,
    rhs_block: tuple[int, int],
    result_dtype: Any,
    num_groups: int = 1,
    **fields: Any,
) -> Problem:
    """Returns the problem of operands, groups one after the other or a dimension of their own.

    Args:
        kind: One of `KINDS`.
        factors: Values and scales of lhs and of rhs.
        rhs_block: Block of rhs.
        result_dtype: Dtype of the result.
        num_groups: Number of groups, 1 for "dense".
        fields: Others of `Problem`.
    """
    lhs, _, rhs, _ = factors
    lhs_rows, rhs_rows = (math.prod(x.shape[:-1]) for x in (lhs, rhs))
    return Problem(
        m=lhs_rows // num_groups if KINDS[kind].has_group_rows else lhs_rows,
        n=rhs_rows // num_groups if KINDS[kind].has_group_weights else rhs_rows,
        k=lhs.shape[-1],
        kind=kind,
        scaling=SCALINGS[rhs_block],
        num_groups=num_groups,
        a_dtype=lhs.dtype.name,
        b_dtype=rhs.dtype.name,
        d_dtype=np.dtype(result_dtype).name,
        **fields,
    )


def _default_result(kind: str) -> str:
    return "float32" if kind == "k_grouped" else "bfloat16"


def parse(text: str, **defaults: Any) -> Problem:
    """Returns the problem that a word names, see `SYNTAX`.

    Args:
        text: Such as `4096x7168x2048` or `masked:1024x4096x7168:groups=4:expected=192`.
        defaults: Fields of `Problem` for what the word leaves open.

    Raises:
        ValueError: The word is not of that form, or the kind has no such option.
    """
    words = text.strip().split(":")
    kind = words.pop(0) if words[0] in KINDS else "dense"
    extents = _EXTENTS.fullmatch(words.pop(0)) if words else None
    if not extents:
        raise ValueError(f"a problem is {SYNTAX}; got {text!r}")
    fields = {
        "d_dtype": _default_result(kind),
        "zero_padding": kind == "masked",
        **defaults,
        "kind": kind,
    }
    if kind == "k_grouped":
        fields["scaling"] = "1d1d"
    m, n, k = map(int, extents.groups())
    for word in words:
        fields |= _option(word, text)
    problem = Problem(m, n, k, **fields)
    _check_combination(problem, text)
    return problem


def _option(word: str, text: str) -> dict[str, Any]:
    """Returns the fields that one option sets."""
    flags = {
        "rows": {"scaling": "1d1d"},
        "accumulate": {"accumulate": True},
        "unspecified": {"zero_padding": False},
    }
    name, _, value = word.partition("=")
    if word in flags:
        return flags[word]
    if name in ("groups", "expected") and value.isdecimal() and int(value):
        return {"num_groups" if name == "groups" else "expected_m": int(value)}
    if name in ("lhs", "rhs") and value in FP8_DTYPES:
        return {"a_dtype" if name == "lhs" else "b_dtype": FP8_DTYPES[value]}
    if name == "result" and value in RESULT_DTYPES:
        return {"d_dtype": RESULT_DTYPES[value]}
    raise ValueError(f"a problem is {SYNTAX}; {word!r} of {text!r} is no such option")


def _check_combination(problem: Problem, text: str) -> None:
    kind = problem.kind
    extents = (problem.m, problem.n, problem.k, problem.expected_m)
    rules = (
        (max(extents) <= MAX_EXTENT, f"no extent is above {MAX_EXTENT}"),
        (problem.num_groups <= MAX_GROUPS, f"there are at most {MAX_GROUPS} groups"),
        (problem.num_groups == 1 or kind != "dense", "a dense problem has no groups"),
        (problem.expected_m == 0 or kind == "masked", "only a masked problem has expected"),
        (problem.scaling in KINDS[kind].scalings, "only a dense problem has rows"),
        (
            not problem.accumulate or KINDS[kind].accumulates,
            "only dense and k_grouped problems accumulate",
        ),
    )
    for holds, rule in rules:
        if not holds:
            raise ValueError(f"{rule}; got {text!r}")


def from_fields(fields: Mapping[str, Any]) -> Problem:
    """Returns the problem with exactly these fields.

    Raises:
        ValueError: A field is missing, unknown, or of the wrong type; the message begins with it.
    """
    for name, kind in Problem.__annotations__.items():
        if name not in fields:
            raise ValueError(f"{name} is missing")
        if type(fields[name]) is not kind:
            got = type(fields[name]).__name__
            raise ValueError(f"{name} must be {kind.__name__}, got {got}")
    if unknown := sorted(set(fields) - set(Problem._fields)):
        raise ValueError(f"{unknown[0]} is no field of a problem")
    choices = {
        "kind": KINDS,
        "scaling": ("1d2d", "1d1d"),
        "a_dtype": FP8_DTYPES.values(),
        "b_dtype": FP8_DTYPES.values(),
        "d_dtype": RESULT_DTYPES.values(),
    }
    for name, allowed in choices.items():
        if fields[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {fields[name]!r}")
    for name in ("m", "n", "k", "num_groups", "num_sms"):
        if fields[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {fields[name]}")
    return Problem(**fields)
