# SPDX-License-Identifier: Apache-2.0
"""Builds mutants, runs them and judges: a mutant is caught if any of its runs fails."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from jax_fp8gemm._src.native.extension import core
from mutation.build import Engine, build_library
from mutation.mutant import ROOT, Mutant

_TIMEOUT_SECONDS = 300

# Tried in this order. Late timings starve loads, wgmma, stores and each warpgroup's wgmma in turn.
MODES = (
    {"timing": "random", "scheduler": "random", "seed": 1},
    {"timing": "late", "scheduler": "lifo", "seed": 1},
    {"timing": "late", "scheduler": "random", "seed": 2},
    {"timing": "late", "scheduler": "starve_warp", "seed": 3},
    {"timing": "early", "scheduler": "lifo", "seed": 1},
    {"timing": "late", "scheduler": "random", "seed": 4},
    {"timing": "late", "scheduler": "starve_warp", "seed": 5},
    {"timing": "random", "scheduler": "starve_warp", "seed": 2},
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a library failed: hazard, deadlock, wrong, crash or timeout; "" if it did not."""

    outcome: str
    detail: str
    runs: int

    @property
    def is_caught(self) -> bool:
        """Whether any run failed."""
        return self.outcome != ""


def kernel_key(tile: str) -> str:
    """Returns the key of a configuration from a key without its number of stages.

    Keys of quantizers are what they are.
    """
    if tile in core().quantize_configs():
        return tile
    plain = tile.removesuffix(".pdl")
    for key in core().candidate_configs():
        if re.sub(r"\.s\d+", "", key, count=1) == plain:
            return key + tile[len(plain) :]
    raise ValueError(f"{tile} is not a candidate")


def runs_of(mutant: Mutant) -> list[tuple[str, str, dict]]:
    """Returns kernel, problem name and mode of every run of a mutant."""
    return [
        (kernel_key(tile), problem, mode)
        for mode in MODES
        for tile in mutant.kernels
        for problem in mutant.problems or ("",)
    ]


def run_library(library: Path, runs: Sequence[tuple[str, str, dict]]) -> Verdict:
    """Runs a simulator library in a process of its own until a run fails."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "mutation.worker", str(library), json.dumps(runs)]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict("timeout", f"no end after {_TIMEOUT_SECONDS} s", 0)
    if result.returncode < 0:
        return Verdict("crash", f"signal {-result.returncode}", 0)
    if result.returncode > 0:
        raise RuntimeError(f"the worker failed:\n{result.stderr[-3000:]}")
    return Verdict(**json.loads(result.stdout.splitlines()[-1]))


def try_mutant(folder: Path, engine: Engine, mutant: Mutant) -> Verdict:
    """Builds and runs one mutant; `folder` is removed."""
    keys = [kernel_key(tile) for tile in mutant.kernels]
    library = build_library(folder, engine, keys, mutant)
    verdict = run_library(library, runs_of(mutant))
    shutil.rmtree(folder)
    return verdict


def try_original(folder: Path, engine: Engine, mutants: Iterable[Mutant]) -> Verdict:
    """Builds every kernel of the mutants from the sources as they are and makes the same runs."""
    runs = {json.dumps(run): run for mutant in mutants for run in runs_of(mutant)}
    keys = dict.fromkeys(key for key, _, _ in runs.values())
    library = build_library(folder, engine, list(keys))
    return run_library(library, list(runs.values()))
