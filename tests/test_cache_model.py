# SPDX-License-Identifier: Apache-2.0
"""The kernel cache of the extension against a model: see _cache_machine.py."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("extension")]
HERE = Path(__file__).parent

# An NVRTC of version 13.0 that compiles a program to its name.
_NVRTC = """
#include <stdlib.h>
#include <string.h>
int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
const char* nvrtcGetErrorString(int result) { return ""; }
int nvrtcCreateProgram(void** program, const char* source, const char* name) {
  return *program = strdup(name), 0;
}
int nvrtcDestroyProgram(void** program) { return free(*program), 0; }
int nvrtcCompileProgram(void* program) { return 0; }
int nvrtcGetCUBINSize(void* program, size_t* bytes) { return *bytes = strlen(program), 0; }
int nvrtcGetCUBIN(void* program, char* cubin) { return memcpy(cubin, program, strlen(program)), 0; }
int nvrtcGetProgramLogSize(void* program, size_t* bytes) { return *bytes = 0, 0; }
int nvrtcGetProgramLog(void* program, char* log) { return 0; }
int nvrtcSetFlowCallback(void* program, void* callback, void* payload) { return 0; }
"""


def test_cache_follows_its_model(tmp_path):
    """In 500 sequences of 30 steps."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    library = tmp_path / "libnvrtc.so.13"
    flags = ["-x", "c", "-", "-w", "-fPIC", "-shared", "-o", library]
    subprocess.run([compiler, *flags], input=_NVRTC, text=True, check=True)
    settings = {
        "JAX_FP8GEMM_NVRTC": str(library),
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
