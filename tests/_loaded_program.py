# SPDX-License-Identifier: Apache-2.0
"""Runs what another process exported and compiled: python tests/_loaded_program.py DIRECTORY.

Run by test_export.py, which wrote the files. Nothing of jax_fp8gemm is called: it is imported.
"""

import os
import pickle
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.export  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import serialize_executable  # noqa: E402

if "without" not in sys.argv:
    import jax_fp8gemm  # noqa: F401


def main(directory: Path) -> None:
    """Runs both programs and compares their results with the one in the folder, bit for bit."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    operands, want = pickle.loads(files["arrays"])
    exported = jax.export.deserialize(bytearray(files["exported"]))
    np.testing.assert_array_equal(exported.call(*operands), want)
    compiled = serialize_executable.deserialize_and_load(*pickle.loads(files["compiled"]))
    np.testing.assert_array_equal(compiled(*operands), want)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
