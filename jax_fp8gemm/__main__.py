# SPDX-License-Identifier: Apache-2.0
"""Runs the command line: `python -m jax_fp8gemm`."""

import io
import sys

from jax_fp8gemm._src.tools.cli import main

if __name__ == "__main__":
    # Paths may be what the terminal cannot show, or no text at all.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
