# SPDX-License-Identifier: Apache-2.0
"""Fails unless wheels hold what an installed package needs: python .ci/check_wheel.py WHEEL..."""

import fnmatch
import pathlib
import sys
import zipfile

WANTED = (
    "jax_fp8gemm/_core.*.so",
    "jax_fp8gemm/_core.pyi",
    "jax_fp8gemm/libjax_fp8gemm_sim.so",
    "jax_fp8gemm/libjax_fp8gemm_sim_kernels.so",
    "jax_fp8gemm/py.typed",
    "jax_fp8gemm/tuned/README.md",
    "jax_fp8gemm-*.dist-info/licenses/LICENSE",
    "jax_fp8gemm-*.dist-info/licenses/THIRD_PARTY_NOTICES.txt",
)


def is_whole(wheel: str) -> bool:
    """Returns whether a wheel is, and says what is wrong with it."""
    names = zipfile.ZipFile(wheel).namelist()
    root = pathlib.Path(__file__).parent.parent
    modules = [str(path.relative_to(root)) for path in root.glob("jax_fp8gemm/**/*.py")]
    missing = [name for name in (*WANTED, *modules) if not fnmatch.filter(names, name)]
    strange = [name for name in names if not name.startswith(("jax_fp8gemm/", "jax_fp8gemm-"))]
    for name in missing:
        print(f"{wheel} lacks {name}", file=sys.stderr)
    for name in strange:
        print(f"{wheel} should not have {name}", file=sys.stderr)
    print(f"{wheel}: {len(names)} files")
    return not missing and not strange


def main(*wheels: str) -> int:
    """Returns the exit status."""
    return 0 if all([is_whole(wheel) for wheel in wheels]) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
