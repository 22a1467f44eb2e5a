# SPDX-License-Identifier: Apache-2.0
"""Where NVIDIA's wheels put their files."""

import importlib.util
import pathlib


def nvidia_folders() -> list[pathlib.Path]:
    """Returns the roots of the `nvidia` namespace package; empty where no wheel is installed."""
    spec = importlib.util.find_spec("nvidia")
    return [pathlib.Path(p) for p in spec.submodule_search_locations or ()] if spec else []
