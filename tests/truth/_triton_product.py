# SPDX-License-Identifier: Apache-2.0
"""Writes the PTX that Triton makes of an FP8 product for sm_90: TYPE_A TYPE_B COLUMNS FILE.

A process of its own, since Triton reads the kernel's text from its file. No GPU is used.
"""

import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {"e4m3": "fp8e4nv", "e5m2": "fp8e5"}


@triton.jit
def product(a, b, d, k_blocks, columns: tl.constexpr):
    """d = a b^T, one tile of 128 rows for each program."""
    accum = tl.zeros((128, columns), dtype=tl.float32)
    row = tl.program_id(0) * 128
    column = tl.program_id(1) * columns
    for k in range(k_blocks):
        x = a.load([row, k * 128])
        y = b.load([column, k * 128])
        accum = tl.dot(x, y.T, accum)
    d.store([row, column], accum.to(tl.bfloat16))


if __name__ == "__main__":
    a_type, b_type, columns, path = sys.argv[1:]
    signature = {
        "a": f"tensordesc<{NAMES[a_type]}[128, 128]>",
        "b": f"tensordesc<{NAMES[b_type]}[{columns}, 128]>",
        "d": f"tensordesc<bf16[128, {columns}]>",
        "k_blocks": "i32",
        "columns": "constexpr",
    }
    source = ASTSource(product, signature=signature, constexprs={"columns": int(columns)})
    options = {"num_stages": 3, "num_warps": 8}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    Path(path).write_text(compiled.asm["ptx"])
