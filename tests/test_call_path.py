# SPDX-License-Identifier: Apache-2.0
"""The path of a call, as a reader walks it: docs/architecture.md lists it, and this follows it."""

import re
import sys
from pathlib import Path

import cases
import jax
import jax.ffi
import pytest
from _source import ROOT

import jax_fp8gemm as fp8

MAX_PYTHON_CALLS, MAX_PYTHON_FILES = 8, 6
PACKAGE = Path(fp8.__file__).parent


def listed(page: str) -> list[str]:
    """Returns the files that a page lists between its marks."""
    text = (ROOT / page).read_text()
    part = re.search(r"<!-- path:begin -->(.*?)<!-- path:end -->", text, re.DOTALL)
    assert part, f"{page} has no marks"
    return re.findall(r"^\d+\. \[`([^`]+)`\]", part[1], re.MULTILINE)


@pytest.fixture
def frames(monkeypatch, extension):
    """Returns the functions of the package that are running when a custom call is made."""
    found = []
    real = jax.ffi.ffi_call

    def recording(*args, **kwargs):
        if not found:
            frame = sys._getframe(1)
            while frame:
                path = Path(frame.f_code.co_filename)
                if path.is_relative_to(PACKAGE):
                    found.append((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name))
                frame = frame.f_back
            found.reverse()
        return real(*args, **kwargs)

    monkeypatch.setattr(jax.ffi, "ffi_call", recording)
    jax.clear_caches()  # what is traced already makes no calls
    return found


def test_the_python_path_is_short_and_listed(frames):
    lhs, rhs = cases.gemm_operands(cases.GemmCase("path", 16, 128, 128))
    jax.jit(fp8.gemm).trace(lhs, rhs).lower(lowering_platforms=("cuda",))
    assert frames[0] == ("_src/ops/gemm.py", "gemm")
    assert frames[-1] == ("_src/native/calls.py", "matmul")
    assert len(frames) <= MAX_PYTHON_CALLS, frames
    files = list(dict.fromkeys(file for file, _ in frames))
    assert len(files) <= MAX_PYTHON_FILES
    assert listed("docs/architecture.md") == [f"jax_fp8gemm/{file}" for file in files]
