# SPDX-License-Identifier: Apache-2.0
"""With FP8GEMM_SANITIZE=address or thread, C++ tests are built with sanitizers: `make asan`."""

import os

_FLAGS = {
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
FLAGS = _FLAGS[os.environ.get("FP8GEMM_SANITIZE", "")]
if FLAGS:
    FLAGS = [*FLAGS, "-g1", "-fno-omit-frame-pointer"]
