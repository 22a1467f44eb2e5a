# SPDX-License-Identifier: Apache-2.0
"""The environment variables of the package: the only place that reads them."""

import os
import pathlib
import re

# README.md has the type, the default and the meaning of each.
CACHE_DIR = "JAX_FP8GEMM_CACHE_DIR"
CACHE_LIMIT = "JAX_FP8GEMM_CACHE_LIMIT"
PDL = "JAX_FP8GEMM_PDL"
NVRTC = "JAX_FP8GEMM_NVRTC"
TUNED = "JAX_FP8GEMM_TUNED"
VARIABLES = (CACHE_DIR, CACHE_LIMIT, PDL, NVRTC, TUNED)
DEFAULT_CACHE_LIMIT = "1024"  # MiB
# What `tuned` returns where no table is to be used.
NO_TABLES = pathlib.Path("")
# What to say where `cache_dir` returns None.
CACHE_IS_OFF = f"no kernels are kept on disk: {CACHE_DIR} is empty or wrong, or no home is known"

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_LIMIT = re.compile("[1-9][0-9]{0,11}")


def _path(text: str) -> pathlib.Path:
    """Returns a path. A ~ stays where no home is known, as in some containers: it leads nowhere."""
    if not os.environ.get("HOME", "/"):  # empty, which `expanduser` would take for the root
        return pathlib.Path(text)
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        return pathlib.Path(text)


def _is_utf8(text: str) -> bool:
    """Returns whether a text of the environment, where bytes may be anything, can go to C++."""
    try:
        os.fsencode(text).decode()
    except UnicodeDecodeError:
        return False
    return True


def cache_dir() -> pathlib.Path | None:
    """Returns the directory of the kernel cache, or None where kernels stay in memory.

    That is where the variable is empty or wrong, and where there is no home directory.
    """
    text = os.environ.get(CACHE_DIR)
    if text == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # the XDG specification wants relative ones to be ignored
        base = "~/.cache"
    path = _path(text or f"{base}/jax_fp8gemm")
    # A relative path would be another cache in every folder that a program is started in.
    return path if path.is_absolute() and _is_utf8(str(path)) else None


def cache_limit_bytes() -> int:
    """Returns how large the kernel cache on disk may become; by default where that is no number."""
    text = os.environ.get(CACHE_LIMIT, "")
    return int(text if _LIMIT.fullmatch(text) else DEFAULT_CACHE_LIMIT) << 20


def pdl() -> bool:
    """Returns whether kernels launch with programmatic dependent launch."""
    text = os.environ.get(PDL, "0").strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"{PDL} must be one of {_TRUE + _FALSE}, got {text!r}.")


def nvrtc() -> pathlib.Path | None:
    """Returns the libnvrtc that the user chose, or None."""
    text = os.environ.get(NVRTC)
    return _path(text) if text else None


def tuned() -> pathlib.Path | None:
    """Returns the user's table of tuned configurations, None for none, or `NO_TABLES`."""
    text = os.environ.get(TUNED)
    if text is None:
        return None
    return _path(text) if text else NO_TABLES


def cuda_home() -> pathlib.Path | None:
    """Returns the CUDA toolkit that the environment names, or None."""
    text = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return _path(text) if text else None


def first_visible_gpu() -> str:
    """Returns the index or UUID of the first GPU that CUDA shows of the machine's."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def complaints() -> dict[str, str]:
    """Returns what is wrong with the values of variables, for those that have a wrong one."""
    wrong = {}
    try:
        pdl()
    except ValueError as error:
        wrong[PDL] = str(error)
    if os.environ.get(CACHE_DIR) and cache_dir() is None:
        wrong[CACHE_DIR] = (
            "must be an absolute path in UTF-8, or ~ of a user who has a home, got"
            f" {os.environ[CACHE_DIR]!r}; kernels stay in memory."
        )
    limit = os.environ.get(CACHE_LIMIT, DEFAULT_CACHE_LIMIT)
    if not _LIMIT.fullmatch(limit):
        wrong[CACHE_LIMIT] = (
            f"must be a whole number of MiB, at least 1, got {limit!r};"
            f" {DEFAULT_CACHE_LIMIT} are kept."
        )
    for variable, path in ((NVRTC, nvrtc()), (TUNED, tuned())):
        # Unlike Path.is_file, this has an answer where looking is forbidden or the name too long.
        if path not in (None, NO_TABLES) and not os.path.isfile(path):
            wrong[variable] = f"{path} is no file."
    if not _is_utf8(os.environ.get(NVRTC, "")):
        wrong[NVRTC] = f"must be a path in UTF-8, got {os.environ[NVRTC]!r}."
    return wrong


def values() -> dict[str, str]:
    """Returns each variable's text in the environment, "(default)" where it is unset."""
    return {name: os.environ.get(name, "(default)") for name in VARIABLES}
