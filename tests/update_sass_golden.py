# SPDX-License-Identifier: Apache-2.0
"""Rewrites the golden SASS numbers of every NVRTC at hand: python tests/update_sass_golden.py.

Commit what changed together with the reason: the ratchets then start from the new numbers.
"""

import sys

from _kernels import Job, KernelFarm, device_headers
from _nvrtc import find_all
from _sass.ratchets import save_golden

from jax_fp8gemm._src.native.extension import core


def main() -> None:
    """Compiles every candidate with every NVRTC and writes one file per NVRTC."""
    if dict(core().embedded_headers()) != dict(device_headers()):
        sys.exit("the extension was built from other kernels: run `make develop` first")
    keys = core().candidate_configs()
    farm = KernelFarm([Job(nvrtc, key) for nvrtc in find_all() for key in keys], core())
    for nvrtc in find_all():
        path = save_golden(nvrtc.name, {key: farm.get(Job(nvrtc, key)).facts for key in keys})
        print(f"{path}: {len(keys)} kernels")
    farm.close()


if __name__ == "__main__":
    main()
