# SPDX-License-Identifier: Apache-2.0
"""Prints requirements for pip, one a line: python .ci/requirements.py test|build|xla-gpu...

`test` and every other extra as pyproject.toml has it, `build` what builds the package, `xla-gpu`
the part of jax[cuda13] that compiles for a GPU without one, in the version of the installed jaxlib.
"""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

# Neither cuDNN nor cuBLAS: XLA needs them on a GPU, not to compile for one.
_XLA_GPU_LIBRARIES = (
    "nvidia-cuda-cupti",
    "nvidia-cuda-nvcc",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-nvjitlink",
    "nvidia-nvvm",
)


def requirements(name: str) -> list[str]:
    """Returns the requirements called `name`."""
    if name == "xla-gpu":
        version = importlib.metadata.version("jaxlib")
        plugin = [f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}"]
        return [*plugin, *_XLA_GPU_LIBRARIES]
    path = Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text())
    if name == "build":
        return project["build-system"]["requires"]
    return project["project"]["optional-dependencies"][name]


if __name__ == "__main__":
    print("\n".join(line for name in sys.argv[1:] for line in requirements(name)))
