# SPDX-License-Identifier: Apache-2.0
"""Fails unless a wheel holds what an installed package needs: python .ci/check_wheel.py WHEEL."""

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
)


def main(wheel: str) -> int:
    """Returns the exit status."""
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
    return 1 if missing or strange else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
