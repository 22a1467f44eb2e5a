# SPDX-License-Identifier: Apache-2.0
"""Nothing in csrc is for x86-64 only: it compiles for aarch64, and the simulator runs there.

With a cross compiler and an emulator: `apt-get install g++-aarch64-linux-gnu qemu-user`. The
emulator shows instructions, types and fibers as they are, not how weakly memory is ordered.
"""

import importlib.util
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from _source import ROOT

pytestmark = pytest.mark.slow
CSRC, CPP = ROOT / "csrc", ROOT / "tests" / "cpp"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = "/usr/aarch64-linux-gnu"  # where the cross compiler's own libraries lie
# Of tests/cpp all of the simulator's but sim_engine_test, whose switches take an emulator minutes.
PROGRAMS = ("sim_driver_test", "sim_numerics_test", "sim_rules_test")
WARNINGS = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def _need(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def _run(*command: object) -> None:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"


def _includes() -> list[str]:
    """Options for every include path that one of the libraries is built with."""
    nanobind = Path(importlib.util.find_spec("nanobind").origin).parent
    libraries = [jax.ffi.include_dir(), nanobind / "include", sysconfig.get_path("include")]
    ours = [CSRC / "sim" / "device", CSRC / "kernels", CSRC]
    return [f"-I{path}" for path in ours] + [f"-isystem{path}" for path in libraries]


def test_every_source_compiles():
    _need(COMPILER)
    sources = sorted(CSRC.rglob("*.cc"))
    assert len(sources) > 50
    options = [*WARNINGS, *_includes(), "-fsyntax-only"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda source: _run(COMPILER, *options, source), sources))


@pytest.mark.parametrize("program", PROGRAMS)
def test_simulator_passes_its_tests(tmp_path, program):
    _need(COMPILER, EMULATOR)
    sources = [*CSRC.glob("sim/*.cc"), *CSRC.glob("sim/engine/*.cc"), CPP / f"{program}.cc"]
    # One unit, as the library is built.
    unit = tmp_path / "unit.cc"
    unit.write_text("".join(f'#include "{source}"\n' for source in sorted(sources)))
    _run(
        COMPILER, *WARNINGS, *_includes(), f"-I{CPP}", "-O1", unit, "-ldl", "-o", tmp_path / program
    )
    _run(EMULATOR, "-L", SYSTEM, tmp_path / program)
