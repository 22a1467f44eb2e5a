# SPDX-License-Identifier: Apache-2.0
"""Runs a test of this folder on the GPU and, so that it is known to work, simulated."""

import pytest


@pytest.fixture(params=["sim", pytest.param("cuda", marks=pytest.mark.hopper)])
def implementation(request):
    """The simulator, which every machine has, and the GPU."""
    request.getfixturevalue("simulated" if request.param == "sim" else "extension")
    return request.param


@pytest.fixture
def simulated(simulator_library, monkeypatch):
    """Needs the simulator; launches without dependent ones, of which few kernels are built in."""
    monkeypatch.setenv("JAX_FP8GEMM_PDL", "0")
