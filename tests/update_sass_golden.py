# SPDX-License-Identifier: Apache-2.0
"""Compiles and judges every kernel whose sources changed, with every NVRTC at hand.

    python tests/update_sass_golden.py            all must pass, and no number be 5% worse
    python tests/update_sass_golden.py --accept   all must pass; today's numbers are accepted

Then writes the golden files, to be committed: that the kernels of each family passed with these
sources, and the numbers of new kernels; with --accept all numbers, whose reason the commit gives.
"""

import argparse
import sys

from _kernels import Job, KernelFarm, device_headers, families, source_digests
from _nvrtc import Nvrtc, NvrtcError, find_all
from _sass import Golden, kernel_failures, ratchet_failures
from _sass.ratchets import measure

from jax_fp8gemm._src.native.extension import core


def update(nvrtc: Nvrtc, *, accept: bool) -> list[str]:
    """Judges what changed and writes the file of one NVRTC; if something fails, returns that."""
    digests, golden = source_digests(core()), Golden.load(nvrtc.name)
    accepted = golden.kernels if golden and not accept else {}
    passed = golden.sources if golden and not accept else {}
    kernels, judged, failures = {}, [], []
    for family, keys in families(core()).items():
        if passed.get(family) == digests[family]:
            kernels |= {key: accepted[key] for key in keys}
        else:
            judged += keys
    farm = KernelFarm([Job(nvrtc, key) for key in judged], core())
    for key in judged:
        try:
            kernel = farm.get(Job(nvrtc, key))
        except NvrtcError as error:
            failures.append(f"{key}: {error}")
            continue
        kernels[key] = accepted.get(key, measure(kernel.facts))
        wrong = kernel_failures(key, kernel.facts, kernel.opcodes, kernel.log)
        wrong += ratchet_failures(kernel.facts, kernels[key])
        failures += [f"{key}: {failure}" for failure in wrong]
    farm.close()
    if not failures:
        Golden(digests, kernels).save(nvrtc.name)
    print(f"NVRTC {nvrtc.name}: {len(judged)} kernels compiled, {len(failures)} failures")
    return failures


def main(arguments: list[str] | None = None) -> None:
    """Updates one file per NVRTC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accept", action="store_true", help="today's numbers are accepted")
    accept = parser.parse_args(arguments).accept
    if dict(core().embedded_headers()) != dict(device_headers()):
        sys.exit("the extension was built from other kernels: run `make develop` first")
    failures = [f for nvrtc in find_all() for f in update(nvrtc, accept=accept)]
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
