# SPDX-License-Identifier: Apache-2.0
"""A sample of `make fuzz`, that a fault would be seen, and the faults that it has found."""

import collections
import os
import random
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from _made_once import made_once
from _source import ROOT
from fuzz import custom_calls, mutate, native, targets

from jax_fp8gemm._src.native import gemm_problem, ranking, tuned
from jax_fp8gemm._src.tools import cli

pytestmark = pytest.mark.usefixtures("extension")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The command line may clear the cache."""
    monkeypatch.setenv("JAX_FP8GEMM_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_corpus(name):
    """Seeds, what earlier runs have kept, and some changes of both; without what guides a run."""
    rng = random.Random(name)
    with targets.opened(name) as target:
        known = [*target.seeds[:50], *targets.corpus(name)]
        for data in known:
            target.attempt(data)
        for _ in range(100 if target.change else 0):
            try:
                data = target.change(rng, rng.choice(known))
            except (RecursionError, ValueError):
                continue
            target.attempt(data)


@pytest.fixture
def run_python(tmp_path_factory):
    """Returns a function that runs Python where a target can be guided."""
    pytest.importorskip("atheris", reason="it has no wheel for this Python or machine")
    made_once(tmp_path_factory, "coverage", lambda _: native.build())
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)

    return run


@pytest.mark.slow
def test_guided_sample(run_python, tmp_path):
    """Each target reaches code of ours, Python or C++, and has no fault."""
    run = run_python("-m", "tests.fuzz", "--inputs", 1000, "--folder", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    edges = dict(re.findall(r"^(\w+): 1000 inputs, (\d+) edges .* no fault$", run.stdout, re.M))
    assert edges.keys() == targets.TARGETS.keys()
    assert min(map(int, edges.values())) > 100, edges


PLANTED = """
import sys
from fuzz import guided, targets

def attempt(data):
    for i, byte in enumerate(b"fp8!"):
        if data[i:i + 1] != bytes([byte]):
            return
    raise targets.FaultError("planted")

attempt.__module__ = "jax_fp8gemm.planted"
targets.TARGETS["planted"] = lambda folder: targets.Target([b"seed"], attempt)
# Without a limit of memory: Linux counts what the process that started this one has.
options = ["-runs=100000", "-seed=1", "-rss_limit_mb=0", f"-artifact_prefix={sys.argv[1]}/"]
guided.main("planted", *options)
"""


@pytest.mark.slow
def test_a_planted_fault_is_found(run_python, tmp_path):
    """One in 2**32 inputs of four bytes has it."""
    run = run_python("-c", PLANTED, tmp_path)
    assert run.returncode not in (0, 1) and "FaultError: planted" in run.stdout + run.stderr
    (artifact,) = tmp_path.iterdir()
    assert artifact.read_bytes().startswith(b"fp8!")


def test_custom_calls_are_run_and_refused(tmp_path):
    """So that what `custom_call` tries is neither all right nor all wrong."""
    attempt, seeds = custom_calls.target(tmp_path), custom_calls.seeds()
    said = []
    for i in range(300):
        rng = random.Random(i)
        said.append(attempt(custom_calls.change(rng, rng.choice(seeds))))
    assert said.count(None) >= 10
    for part in ("attribute", "must have shape", "operands, got", "results, got", "config"):
        assert sum(part in (text or "") for text in said) >= 3, part


@pytest.mark.slow
def test_custom_calls_through_xla(extension, tmp_path):
    """Attributes that XLA encodes and decodes, and operands of other numbers and dtypes."""
    dtypes = {"f8E4M3FN": "float8_e4m3fn", "bf16": "bfloat16", "f32": "float32", "i32": "int32"}
    known, rng, said = custom_calls.calls(), random.Random(0), collections.Counter()
    extension.core()
    for _ in range(400):
        call = rng.choice(known)
        attributes = custom_calls.change_attributes(rng, call["attributes"])
        operands = [
            jnp.full(shape, 4 if name == "i32" else 0, dtypes[name])
            for name, shape in call["operands"]
        ]
        results = [jax.ShapeDtypeStruct(shape, dtypes[name]) for name, shape in call["results"]]
        if rng.random() < 0.3:
            operands[rng.randrange(len(operands))] = jnp.zeros(rng.choice([(), (3,), (8, 128)]))
        try:
            run = jax.ffi.ffi_call(call["target"], results)
            jax.block_until_ready(run(*operands, **attributes))
            said["nothing"] += 1
        except jax.errors.JaxRuntimeError as error:
            is_refused = "Unsupported backend config" in str(error)
            ours = "ours" if call["target"] in str(error) else str(error)
            said["never called" if is_refused else ours] += 1
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError):
            said["never called"] += 1  # what is no attribute of XLA's
    assert said.keys() <= {"nothing", "ours", "never called"}, said
    assert said["nothing"] >= 10 and said["ours"] >= 200, said


def test_changes_of_json_repeat():
    data = b'{"a": [1, {"b": "c"}], "d": null}'
    changed = [mutate.change_text(random.Random(i), data) for i in range(200)]
    assert changed == [mutate.change_text(random.Random(i), data) for i in range(200)]
    assert len(set(changed)) > 100


@pytest.mark.parametrize("field", ["m", "n", "k", "num_groups", "expected_m", "num_sms"])
@pytest.mark.parametrize("number", [2**63, 10**30])
def test_numbers_of_more_than_64_bits(field, number):
    """They were `RuntimeError: std::bad_cast`."""
    problem = gemm_problem.parse("masked:64x128x256:groups=4")._replace(**{field: number})
    with pytest.raises(ValueError, match=f"^{field} cannot be {number}$"):
        ranking.rank(problem, backend="cuda")


def test_half_of_a_surrogate_pair_in_a_tuned_table(extension, tmp_path):
    """It was a TypeError."""
    path = tmp_path / "table.json"
    timed = tuned.Timed("1d2d.m64n128.w1.s7.c1x1.e4m3.e4m3.bf16", 1.0)
    entries = {gemm_problem.parse("64x256x384"): tuned.Entry(timed)}
    tuned.write(path, tuned.Table("0", "H100", "13", "13", "2026-01-01", "m", entries))
    path.write_text(path.read_text().replace("1d2d.m64", "\\ud800.m64"))
    with pytest.raises(tuned.TableError, match="config"):
        tuned.read(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        # They divided by zero, and the process died; a tuned table may name any key.
        ("1d2d.m0n32.w1.s16.c1x1.e4m3.e5m2.f16.acc", "block_m must be 16, 32 or a multiple"),
        ("1d2d_contiguous.m0n32.w1.s16.c1x1.e4m3.e4m3.bf16", "block_m must be 16, 32 or"),
        # The size of the cluster was 2**32, which is 0.
        ("1d2d.m128n128.w2.s4.c65536x65536.e4m3.e4m3.bf16", "at most two CTAs can share"),
    ],
)
def test_keys_of_impossible_kernels(extension, key, message):
    with pytest.raises(RuntimeError, match=message):
        extension.core().describe_config(key)


@pytest.mark.parametrize("command", ["explain", "precompile"])
@pytest.mark.parametrize("extent", [2**31, 2**63, 10**30])
def test_extents_that_no_kernel_has_are_one_line_on_the_command_line(capsys, command, extent):
    with pytest.raises(SystemExit, match="^2$"):
        sys.exit(cli.main([command, f"{extent}x64x128"]))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{command}: " in line and str(extent) in line
