# SPDX-License-Identifier: Apache-2.0
"""Rewrites the tables that Python has of csrc's kinds and limits: python tests/update_tables.py.

The package needs them where its extension does not load, so they are a file, made from the one
place where each is stated: csrc/gemm/kinds.h and the limits that csrc/bindings/module.cc names.
"""

from _source import ROOT

from jax_fp8gemm._src.native import extension

PATH = ROOT / "jax_fp8gemm/_src/tables.py"
_HEAD = '''# SPDX-License-Identifier: Apache-2.0
"""Kinds of products and limits of the kernels, from csrc: written by tests/update_tables.py."""

from typing import NamedTuple


class Kind(NamedTuple):
    """What sets one kind of product apart.

    Attributes:
        scalings: What `Problem.scaling` may be, the usual one first.
        accumulates: Whether the kernels can add an accumulator.
        group_data: What the array that divides the work has an int32 for: "groups", "rows", or
            "none" where there is no such array.
        has_group_rows: Whether each group has as many rows of lhs, `Problem.m`.
        has_group_weights: Whether each group has a matrix rhs of its own.
        has_group_results: Whether each group has a result of its own.
    """

    scalings: tuple[str, ...]
    accumulates: bool
    group_data: str
    has_group_rows: bool
    has_group_weights: bool
    has_group_results: bool


'''


def _literal(value) -> str:
    return repr(tuple(value) if isinstance(value, list) else value).replace("'", '"')


def text() -> str:
    """Returns the module as the extension says it must be."""
    kinds = ["KINDS = {\n"]
    for name, fields in extension.core().kinds().items():
        arguments = "".join(f"        {k}={_literal(v)},\n" for k, v in fields.items())
        kinds.append(f"    {_literal(name)}: Kind(\n{arguments}    ),\n")
    limits = "".join(
        f"{name.upper()} = {value}\n" for name, value in extension.core().limits().items()
    )
    return f"{_HEAD}{''.join(kinds)}}}\n{limits}"


if __name__ == "__main__":
    PATH.write_text(text())
