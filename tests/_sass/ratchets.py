# SPDX-License-Identifier: Apache-2.0
"""Ratchets: numbers that may improve freely and worsen by 5% at most against a golden file.

One golden file per NVRTC version, since each version schedules a little differently.
`python tests/update_sass_golden.py` rewrites them; commit the difference with its reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jax_fp8gemm._src.tools.sass.facts import KernelFacts

_FOLDER = Path(__file__).parent / "golden"
_ALLOWED = 0.05


@dataclass(frozen=True)
class Golden:
    """Accepted numbers of every kernel under one NVRTC version."""

    path: Path
    kernels: Mapping[str, Mapping[str, int]]

    @classmethod
    def load(cls, nvrtc_name: str) -> "Golden | None":
        """Reads the file of an NVRTC version such as `13.5`; None if there is none."""
        path = golden_path(nvrtc_name)
        return cls(path, json.loads(path.read_text())) if path.exists() else None


def golden_path(nvrtc_name: str) -> Path:
    """Where the numbers of one NVRTC version live."""
    return _FOLDER / f"nvrtc-{nvrtc_name}.json"


def save_golden(nvrtc_name: str, kernels: Mapping[str, KernelFacts]) -> Path:
    """Writes the file of one NVRTC version, a line per kernel, and returns its path."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(measure(facts))}" for key, facts in sorted(kernels.items())
    ]
    path = golden_path(nvrtc_name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def measure(facts: KernelFacts) -> dict[str, int]:
    """The numbers under a ratchet; all are better when smaller."""
    loop = facts.loop
    return {
        "loop_instructions": loop.length,
        "loop_stall_cycles": loop.stall_cycles,
        "loop_exposed_cycles": loop.exposed_cycles,
        "ffma_without_yield": loop.ffma - loop.ffma_yields,
        "cubin_bytes": facts.image_bytes,
    }


def ratchet_failures(facts: KernelFacts, accepted: Mapping[str, int]) -> list[str]:
    """Returns one sentence per number that is more than 5% above the accepted one."""
    return [
        f"{name} is {value}, accepted {accepted[name]}"
        for name, value in measure(facts).items()
        if value > accepted[name] * (1 + _ALLOWED)
    ]
