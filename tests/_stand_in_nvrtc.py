# SPDX-License-Identifier: Apache-2.0
"""An NVRTC for JAX_FP8GEMM_NVRTC that compiles a kernel to its name, in no time."""

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = """
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


def build(folder: Path) -> str:
    """Returns the path of the library, of version 13.0, or skips the test."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    library = folder / "libnvrtc.so.13"
    flags = ["-x", "c", "-", "-w", "-fPIC", "-shared", "-o", library]
    subprocess.run([compiler, *flags], input=_SOURCE, text=True, check=True)
    return str(library)
