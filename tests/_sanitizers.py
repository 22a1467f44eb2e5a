# SPDX-License-Identifier: Apache-2.0
"""With FP8GEMM_SANITIZE=address or thread, C++ tests are built with sanitizers: `make asan`."""

import os

_FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def flags(kind: str) -> list[str]:
    """Returns what g++ is to be told, to compile and to link; nothing for ""."""
    return [*_FLAGS[kind], "-g1", "-fno-omit-frame-pointer"] if kind else []


FLAGS = flags(os.environ.get("FP8GEMM_SANITIZE", ""))
