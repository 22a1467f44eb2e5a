# SPDX-License-Identifier: Apache-2.0
"""Runs the command line: `python -m jax_fp8gemm`."""

import sys

from jax_fp8gemm._src.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
