# SPDX-License-Identifier: Apache-2.0
"""The kernel cache of the extension against a model: see _cache_machine.py."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import _stand_in_nvrtc
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
HERE = Path(__file__).parent


def test_cache_follows_its_model(tmp_path):
    """In 500 sequences of 30 steps."""
    settings = {
        "JAX_FP8GEMM_NVRTC": _stand_in_nvrtc.build(tmp_path),
        "JAX_FP8GEMM_CACHE_DIR": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, HERE / "_cache_machine.py", tmp_path / "cache", "500"]
    result = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    counts = ast.literal_eval(result.stdout)
    print(counts)
    kinds = "loads builds flip truncate extend remove writable link swap".split()
    assert [kind for kind in kinds if counts.get(kind, 0) < 10] == []
