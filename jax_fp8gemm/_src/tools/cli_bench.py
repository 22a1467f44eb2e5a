# SPDX-License-Identifier: Apache-2.0
"""The command `bench`: runs the benchmarks of the repository, which no wheel carries.

They stay outside the package because their peers (PyTorch, Triton, DeepGEMM) are no part of it.
"""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

_REMEDY = (
    "bench needs the repository's folder benchmarks/, which is not part of the installed package:"
    " run it in a checkout of jax_fp8gemm, at its root, not {here}"
)


def _folder() -> pathlib.Path | None:
    """Returns benchmarks/ beside the package, or of the checkout that is the current folder."""
    beside_package = pathlib.Path(__file__).resolve().parents[3]
    for root in (pathlib.Path.cwd(), beside_package):
        folder = root / "benchmarks"
        if (folder / "__main__.py").is_file() and (root / "jax_fp8gemm/__main__.py").is_file():
            return folder
    return None


def run(arguments: Sequence[str]) -> int:
    """Runs the benchmarks with their own arguments, in a process; returns its exit status."""
    folder = _folder()
    if folder is None:
        print(_REMEDY.format(here=pathlib.Path.cwd()), file=sys.stderr)
        return 2
    # A process of its own: it settles how much device memory XLA takes before JAX starts.
    return subprocess.run([sys.executable, str(folder), *arguments], check=False).returncode
