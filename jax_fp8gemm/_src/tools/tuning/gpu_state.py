# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi says of the GPU, and what of it makes timings doubtful."""

import shutil
import subprocess
from collections.abc import Mapping

from jax_fp8gemm._src.native import environment

# Fields of nvidia-smi's query, and the name each has in a record.
_QUERY = {
    "name": "name",
    "driver_version": "driver",
    "compute_cap": "compute_capability",
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "utilization_percent",
    "clocks_event_reasons.active": "slowdown_reasons",
}
# Bits of `slowdown_reasons` that make timings doubtful; idleness, application clocks and the power
# cap are the GPU's ordinary life. From nvml.h.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
POWER_CAP = 0x04
_BUSY_PERCENT = 10


def _of_first_gpu() -> list[str]:
    """Returns the option that has nvidia-smi speak of the first GPU that CUDA shows JAX alone.

    nvidia-smi itself shows all of the machine, whatever CUDA_VISIBLE_DEVICES says.
    """
    return [f"--id={environment.first_visible_gpu()}"]


def query_gpu(run=subprocess.run) -> dict[str, str]:
    """Returns what nvidia-smi says of the first GPU that JAX sees; empty without nvidia-smi.

    Args:
        run: Stands for `subprocess.run` in tests.
    """
    if run is subprocess.run and shutil.which("nvidia-smi") is None:
        return {}
    fields = ",".join(_QUERY)
    # Drivers before 535 know the reasons by another name, and refuse the whole query for it.
    for known in (fields, fields.replace("clocks_event_reasons", "clocks_throttle_reasons")):
        query = (f"--query-gpu={known}", "--format=csv,noheader,nounits")
        command = ["nvidia-smi", *_of_first_gpu(), *query]
        result = run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip():
            values = [value.strip() for value in result.stdout.splitlines()[0].split(",")]
            return dict(zip(_QUERY.values(), values, strict=False))
    return {}


def other_processes(run=subprocess.run) -> int:
    """Returns how many processes compute on that GPU; 0 where nvidia-smi cannot say."""
    if run is subprocess.run and shutil.which("nvidia-smi") is None:
        return 0
    query = "--query-compute-apps=pid"
    command = ["nvidia-smi", *_of_first_gpu(), query, "--format=csv,noheader"]
    result = run(command, capture_output=True, text=True, check=False)
    return len(result.stdout.split()) if result.returncode == 0 else 0


def _reasons(gpu: Mapping[str, str]) -> int:
    """Returns the bits of why the GPU runs slower than it could; 0 where they are unknown."""
    try:
        return int(gpu.get("slowdown_reasons", ""), 16)
    except ValueError:
        return 0


def slowdowns(gpu: Mapping[str, str]) -> list[str]:
    """Returns in words why the GPU runs slower than it could, the power cap left out."""
    return [words for bit, words in _SLOWDOWNS.items() if _reasons(gpu) & bit]


def is_power_capped(gpu: Mapping[str, str]) -> bool:
    """Whether the power cap slows the GPU down, as it does in every long run of tensor cores."""
    return bool(_reasons(gpu) & POWER_CAP)


def warnings_about(gpu: Mapping[str, str], num_processes: int = 0) -> list[str]:
    """Returns what makes timings on this GPU doubtful, asked while nothing of ours runs."""
    if not gpu:
        return ["nvidia-smi says nothing: clocks, driver and load are unknown"]
    found = []
    capability = gpu.get("compute_capability", "unknown")
    if capability != "9.0":
        found.append(f"{gpu.get('name')} is no Hopper GPU (compute capability {capability})")
    utilization = gpu.get("utilization_percent", "")
    if utilization.isdigit() and int(utilization) > _BUSY_PERCENT:
        found.append(f"the GPU is busy: {utilization} % utilized before the run")
    if num_processes > 1:
        found.append(f"{num_processes} processes use the GPU")
    return found + [f"the GPU is slowed down: {reason}" for reason in slowdowns(gpu)]
