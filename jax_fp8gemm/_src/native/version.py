# SPDX-License-Identifier: Apache-2.0
"""The version of the package: of its installation, or of the source tree that it runs from."""

import functools
import importlib.metadata
import pathlib
import tomllib


@functools.cache
def package_version() -> str:
    """Returns the version, such as "0.1.0"; "unknown" where nothing says it."""
    try:
        return importlib.metadata.version("jax-fp8gemm")
    except importlib.metadata.PackageNotFoundError:
        pass
    project = pathlib.Path(__file__).parents[3] / "pyproject.toml"
    if not project.exists():
        return "unknown"
    return tomllib.loads(project.read_text())["project"]["version"]
