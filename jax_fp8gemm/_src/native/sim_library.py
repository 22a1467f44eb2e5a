# SPDX-License-Identifier: Apache-2.0
"""The simulator's options and counts, through its library's C interface (csrc/sim/options.h)."""

import ctypes
import functools

from jax_fp8gemm._src.native import extension

KERNELS = "libjax_fp8gemm_sim_kernels.so"  # beside the simulator itself
OPTION_NAMES = ("seed", "timing", "scheduler", "numerics", "shadow", "num_sms")


class _Options(ctypes.Structure):
    """`fp8gemm::sim::SimOptions`."""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("timing", ctypes.c_int32),
        ("scheduler", ctypes.c_int32),
        ("numerics", ctypes.c_int32),
        ("shadow", ctypes.c_int32),
        ("num_sms", ctypes.c_int32),
    ]


STAT_NAMES = (
    "launches",
    "switches",
    "wgmma",
    "loads",
    "stores",
    "bytes_loaded",
    "bytes_stored",
    "bank_conflicts",
)


class _Stats(ctypes.Structure):
    """`fp8gemm::sim::SimStats`."""

    _fields_ = [(name, ctypes.c_uint64) for name in STAT_NAMES]


def missing() -> str:
    """Returns what of the simulator this installation lacks, empty if nothing."""
    library = extension.sim_library()
    if not library.exists():
        return "this build left it out"
    if not library.with_name(KERNELS).exists():
        return "installed without its kernels, which `make develop` builds"
    return ""


def available() -> bool:
    """Returns whether this installation has the simulator and its kernels."""
    return not missing()


@functools.cache
def _library() -> ctypes.CDLL:
    extension.core()  # the runtime, which the library may need
    return ctypes.CDLL(str(extension.sim_library()))


def options() -> dict[str, int]:
    """Returns the options that the next simulated launch uses."""
    current = _Options()
    _library().Fp8GemmSimGetOptions(ctypes.byref(current))
    return {name: getattr(current, name) for name in OPTION_NAMES}


def set_options(options: dict[str, int]) -> None:
    """Sets every option, for the simulated launches that follow in this process."""
    _library().Fp8GemmSimSetOptions(ctypes.byref(_Options(**options)))


def stats() -> dict[str, int]:
    """Returns what simulated launches did since the last `reset_stats`."""
    counted = _Stats()
    _library().Fp8GemmSimGetStats(ctypes.byref(counted))
    return {name: getattr(counted, name) for name in STAT_NAMES}


def reset_stats() -> None:
    """Sets every count to zero."""
    _library().Fp8GemmSimResetStats()
