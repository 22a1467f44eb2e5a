# SPDX-License-Identifier: Apache-2.0
"""The environment variables of the package: the only place that reads them."""

import os
import pathlib
from typing import NamedTuple


class Variable(NamedTuple):
    """One environment variable."""

    name: str
    type: str
    default: str
    meaning: str


CACHE_DIR = Variable(
    "JAX_FP8GEMM_CACHE_DIR",
    "path",
    "$XDG_CACHE_HOME/jax_fp8gemm, or ~/.cache/jax_fp8gemm",
    "Where compiled kernels are kept between processes; empty: nowhere.",
)
PDL = Variable(
    "JAX_FP8GEMM_PDL",
    "bool",
    "0",
    "Launch with programmatic dependent launch: a kernel's prologue overlaps its predecessor.",
)
NVRTC = Variable(
    "JAX_FP8GEMM_NVRTC",
    "path",
    "unset",
    "Full path of the libnvrtc to use, 12.9 or newer, instead of any that is found.",
)
TUNED = Variable(
    "JAX_FP8GEMM_TUNED",
    "path",
    "the package's own tables",
    "A table of tuned configurations, before the package's own; empty: none at all.",
)
VARIABLES = (CACHE_DIR, PDL, NVRTC, TUNED)
# What `tuned` returns where no table is to be used.
NO_TABLES = pathlib.Path("")

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def cache_dir() -> pathlib.Path | None:
    """Returns the directory of the kernel cache, or None where disk caching is off."""
    text = os.environ.get(CACHE_DIR.name)
    if text is not None:
        return pathlib.Path(text).expanduser() if text else None
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        root = pathlib.Path(base) if base else pathlib.Path("~/.cache").expanduser()
    except RuntimeError:  # a user without a home, as in some containers: keep kernels in memory
        return None
    return root / "jax_fp8gemm"


def pdl() -> bool:
    """Returns whether kernels launch with programmatic dependent launch."""
    text = os.environ.get(PDL.name, PDL.default).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"{PDL.name} must be one of {_TRUE + _FALSE}, got {text!r}.")


def nvrtc() -> pathlib.Path | None:
    """Returns the libnvrtc that the user chose, or None."""
    text = os.environ.get(NVRTC.name)
    return pathlib.Path(text).expanduser() if text else None


def tuned() -> pathlib.Path | None:
    """Returns the user's table of tuned configurations, None for none, or `NO_TABLES`."""
    text = os.environ.get(TUNED.name)
    if text is None:
        return None
    return pathlib.Path(text).expanduser() if text else NO_TABLES


def cuda_home() -> pathlib.Path | None:
    """Returns the CUDA toolkit that the environment names, or None."""
    text = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return pathlib.Path(text).expanduser() if text else None


def first_visible_gpu() -> str:
    """Returns the index or UUID of the first GPU that CUDA shows of the machine's."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def complaints() -> dict[str, str]:
    """Returns what is wrong with the values of variables, for those that have a wrong one."""
    wrong = {}
    try:
        pdl()
    except ValueError as error:
        wrong[PDL.name] = str(error)
    for variable, path in ((NVRTC, nvrtc()), (TUNED, tuned())):
        if path not in (None, NO_TABLES) and not path.is_file():
            wrong[variable.name] = f"{path} is no file."
    return wrong


def values() -> dict[str, str]:
    """Returns each variable's text in the environment, "(default)" where it is unset."""
    return {v.name: os.environ.get(v.name, "(default)") for v in VARIABLES}
