# SPDX-License-Identifier: Apache-2.0
"""What a run ran on: GPU, driver, clocks, versions, commit; and what makes its numbers doubtful."""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax

from jax_fp8gemm._src.tools.tuning.gpu_state import POWER_CAP as POWER_CAP
from jax_fp8gemm._src.tools.tuning.gpu_state import other_processes as other_processes
from jax_fp8gemm._src.tools.tuning.gpu_state import query_gpu as query_gpu
from jax_fp8gemm._src.tools.tuning.gpu_state import slowdowns as slowdowns
from jax_fp8gemm._src.tools.tuning.gpu_state import warnings_about as warnings_about

_BUSY_SHARE = 0.5  # of the cores
ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "torch",
    "triton",
    "deep-gemm",
    "numpy",
)


@dataclasses.dataclass(frozen=True)
class Environment:
    """The machine as it was when the run began."""

    platform: str
    device: str
    driver: str
    versions: Mapping[str, str]
    commit: str
    clocks: Mapping[str, str]
    warnings: tuple[str, ...]

    def warned(self, text: str) -> "Environment":
        """Returns the same with one more warning."""
        return dataclasses.replace(self, warnings=(*self.warnings, text))

    def as_record(self) -> dict:
        """Returns the record's `environment`."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings)}


def versions() -> dict[str, str]:
    """Returns versions of Python and of every installed package that matters."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Returns the commit of the sources, marked where they were changed; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe() -> Environment:
    """Looks at the machine."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        found = ["no GPU: these are times of XLA and of a simulator on a CPU, not of kernels"]
        load, cores = os.getloadavg()[0], os.cpu_count()
        if load > _BUSY_SHARE * cores:
            found.append(f"the machine is busy: {load:.1f} running processes on {cores} cores")
        name = f"{_cpu_name()} ({cores} cores)"
        return Environment("cpu", name, "none", versions(), commit(), {}, tuple(found))
    gpu = query_gpu()
    driver = gpu.get("driver", "unknown")
    found = tuple(warnings_about(gpu, other_processes()))
    return Environment("gpu", device.device_kind, driver, versions(), commit(), gpu, found)
