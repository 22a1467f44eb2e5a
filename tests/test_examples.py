# SPDX-License-Identifier: Apache-2.0
"""The examples run from end to end, in settings so small that they learn nothing."""

import importlib.util
import os
import subprocess
import sys

import pytest
from _source import ROOT

# Few steps, for which the loss of FP8 is still that of bfloat16. K stays above a block of 128.
SMALL = ("--steps=4", "--batch=4", "--length=16", "--width=192")
EXAMPLES = {
    "02_train_language_model": (("optax", "matplotlib"), (*SMALL, "--layers=1")),
    "03_flax_nnx": (("flax", "matplotlib"), (*SMALL, "--layers=1")),
    "04_equinox": (("equinox", "optax", "matplotlib"), (*SMALL, "--layers=1")),
    "05_moe": (("optax", "matplotlib"), (*SMALL, "--layers=1", "--experts=4")),
    "06_inference": (("optax", "matplotlib", "safetensors"), (*SMALL, "--generate=4")),
    "07_add_fp8_in_five_lines": (("flax", "matplotlib"), SMALL),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(tmp_path, name):
    packages, arguments = EXAMPLES[name]
    missing = [package for package in packages if not importlib.util.find_spec(package)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install '.[examples]'")
    environment = {
        # Compiled as for users, whatever flags the other tests have.
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    run = subprocess.run(
        [sys.executable, ROOT / f"examples/{name}.py", *arguments, f"--out={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "[##############################]" in run.stderr  # the progress bar came to its end
    if name == "06_inference":
        assert "bytes that decoding and prefill agree on" in run.stdout
    else:
        assert "difference: " in run.stdout
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_every_example_is_tested():
    """01_dense runs in `make demo`."""
    names = {path.stem for path in (ROOT / "examples").glob("[0-9]*.py")}
    assert names == {"01_dense", *EXAMPLES}
