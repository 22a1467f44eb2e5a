# SPDX-License-Identifier: Apache-2.0
"""Ratchets: numbers that may improve freely and worsen by 5% at most against a golden file.

One golden file per NVRTC version, since each version schedules a little differently. It also says
of which sources every kernel was compiled and passed, by update_sass_golden.py, which writes it.
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
    """What was accepted under one NVRTC version."""

    sources: Mapping[str, str]  # family -> digest of what all its kernels passed with
    kernels: Mapping[str, Mapping[str, int]]  # key -> numbers

    @classmethod
    def load(cls, nvrtc_name: str) -> "Golden | None":
        """Reads the file of an NVRTC version such as `13.5`; None if there is none."""
        path = golden_path(nvrtc_name)
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def save(self, nvrtc_name: str) -> None:
        """Writes the file of one NVRTC version, a line per family and per kernel."""
        parts = [
            f'"{name}": {{\n' + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in rows) + "\n}"
            for name, rows in (
                ("sources", sorted(self.sources.items())),
                ("kernels", sorted(self.kernels.items())),
            )
        ]
        path = golden_path(nvrtc_name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def golden_path(nvrtc_name: str) -> Path:
    """Where the numbers of one NVRTC version live."""
    return _FOLDER / f"nvrtc-{nvrtc_name}.json"


def measure(facts: KernelFacts) -> dict[str, int]:
    """The numbers under a ratchet; all are better when smaller. Quantizers have no main loop."""
    loop = facts.loop
    numbers = {"cubin_bytes": facts.image_bytes}
    if loop is None:
        return {"registers": facts.registers, **numbers}
    return {
        "loop_instructions": loop.length,
        "loop_stall_cycles": loop.stall_cycles,
        "loop_exposed_cycles": loop.exposed_cycles,
        "ffma_without_yield": loop.ffma - loop.ffma_yields,
        **numbers,
    }


def ratchet_failures(facts: KernelFacts, accepted: Mapping[str, int]) -> list[str]:
    """Returns one sentence per number that is more than 5% above the accepted one."""
    return [
        f"{name} is {value}, accepted {accepted[name]}"
        for name, value in measure(facts).items()
        if value > accepted[name] * (1 + _ALLOWED)
    ]
