# SPDX-License-Identifier: Apache-2.0
"""tune on a GPU: it measures every kind, and programs then use what measured fastest."""

import jax
import jax.numpy as jnp
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import environment, extension, gemm_problem, tuned
from jax_fp8gemm._src.tools import cli
from jax_fp8gemm._src.tools.tuning import tune

pytestmark = pytest.mark.hopper

WORDS = (
    "64x512x512",
    "128x256x512:result=f32:rows:accumulate",
    "ragged:300x256x512:groups=3",
    "contiguous:384x256x512:groups=2",
    "masked:128x256x512:groups=4:expected=40",
    "k_grouped:128x256x1024:groups=3:accumulate",
)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Where a table goes that the environment names; forgotten afterwards."""
    path = tmp_path / "tuned.json"
    monkeypatch.setenv(environment.TUNED, str(path))
    tuned.clear()
    jax.clear_caches()
    yield path
    tuned.clear()
    jax.clear_caches()


def test_tuned_configurations_are_used(table, capsys):
    assert cli.main(["tune", *WORDS, "--rounds", "3", "--top", "3"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    entries = tuned.read(table).entries
    sms = extension.planning_num_sms("cuda", None)
    assert set(entries) == {gemm_problem.parse(word, num_sms=sms) for word in WORDS}
    measured = tune.load(table.with_suffix(".measurements.json"))
    assert not measured.simulated and measured.machine.gpu == extension.planning_gpu("cuda")
    samples = [result.samples for m in measured.problems for result in m.results]
    assert all(len(taken) == 3 and min(taken) > 0 for taken in samples)

    lhs = fp8.quantize(jnp.ones((64, 512)))
    rhs = fp8.quantize(jnp.ones((512, 512)), (128, 128))
    product = jax.jit(lambda x, w: fp8.gemm(x, w, implementation="cuda"))
    best = entries[gemm_problem.parse(WORDS[0], num_sms=sms)].best.config
    assert f'config = "{best}"' in product.lower(lhs, rhs).as_text()
    assert (product(lhs, rhs) == 512).all()
