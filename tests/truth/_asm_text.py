# SPDX-License-Identifier: Apache-2.0
"""Reads asm statements in the text of C++."""

import re

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def asm_body(text: str, start: int = 0) -> str:
    """Returns what the first asm statement from `start` on has in its parentheses."""
    opening = re.compile(r"asm\s+volatile\s*\(").search(text, start).end()
    depth = 1
    for match in re.compile(r'"(?:[^"\\]|\\.)*"|[()]').finditer(text, opening):
        depth += (match[0] == "(") - (match[0] == ")")
        if depth == 0:
            return text[opening : match.start()]
    raise ValueError("asm without an end")


def asm_parts(body: str) -> list[str]:
    """Splits what is between the parentheses of an asm statement at its colons."""
    parts, depth = [""], 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|::|.', body, re.DOTALL):
        depth += (token == "(") - (token == ")")
        if token == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def literals(text: str) -> str:
    """Returns the string literals of a text as the compiler joins them."""
    return "".join(_STRING.findall(text)).replace("\\n", "\n")
