# SPDX-License-Identifier: Apache-2.0
"""Rewrites the tables that Python has of csrc's kinds and limits: python tests/update_tables.py.

The package needs them where its extension does not load, so they are a file, made from the one
place where each is stated: csrc/gemm/kinds.h and the limits that csrc/bindings/module.cc names.
"""

from _source import ROOT

from jax_fp8gemm._src.native import extension

PATH = ROOT / "jax_fp8gemm/_src/tables.py"
_FIRST = "KINDS = {\n"  # what is before it is written by hand


def _literal(value) -> str:
    return repr(tuple(value) if isinstance(value, list) else value).replace("'", '"')


def text() -> str:
    """Returns the module as the extension says it must be."""
    head, _, _ = PATH.read_text().partition(_FIRST)
    kinds = [_FIRST]
    for name, fields in extension.core().kinds().items():
        arguments = "".join(f"        {k}={_literal(v)},\n" for k, v in fields.items())
        kinds.append(f"    {_literal(name)}: Kind(\n{arguments}    ),\n")
    limits = "".join(
        f"{name.upper()} = {value}\n" for name, value in extension.core().limits().items()
    )
    return f"{head}{''.join(kinds)}}}\n{limits}"


if __name__ == "__main__":
    PATH.write_text(text())
