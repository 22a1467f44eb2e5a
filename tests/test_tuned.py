# SPDX-License-Identifier: Apache-2.0
"""Tuned tables: what is written is read, what is damaged is refused, and they are used."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import environment, gemm_problem, ranking, tuned
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.native.tuned import Entry, Table, Timed
from jax_fp8gemm._src.native.version import __version__

GPU = "NVIDIA H100 80GB HBM3"
PROBLEM = Problem(64, 256, 384)
SLOW, FAST = (f"1d2d.m64n{n}.w1.s{s}.c1x1.e4m3.e4m3.bf16" for n, s in ((128, 7), (96, 10)))
ENTRY = Entry(Timed(FAST, 3.5), Timed(SLOW, 4.25), Timed(SLOW, 4.25))


def table(**changes) -> Table:
    """Returns a table of one problem."""
    fields = {
        "package": __version__,
        "gpu": GPU,
        "driver": "13.0",
        "nvrtc": "13.0",
        "created": "2026-11-24",
        "method": "by hand",
        "entries": {PROBLEM: ENTRY},
    }
    return Table(**fields | changes)


@pytest.fixture
def path(extension, tmp_path, monkeypatch):
    """A table that the environment names."""
    path = tmp_path / "tuned.json"
    tuned.write(path, table())
    monkeypatch.setenv(environment.TUNED, str(path))
    tuned.clear()
    yield path
    tuned.clear()


@pytest.fixture
def on_h100(extension, monkeypatch):
    """Lets programs be planned as where the first GPU is an H100."""
    monkeypatch.setattr(extension, "planning_gpu", lambda backend: GPU if backend == "cuda" else "")
    jax.clear_caches()  # what was traced without that GPU
    yield ranking
    jax.clear_caches()


def _attributes(function, *arguments) -> str:
    """Returns the StableHLO of a function for CUDA."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def _operands(m: int = PROBLEM.m):
    return (
        fp8.quantize(jnp.ones((m, PROBLEM.k))),
        fp8.quantize(jnp.ones((PROBLEM.n, PROBLEM.k)), (128, 128)),
    )


def test_table_is_read_as_written(path, extension):
    alone = Entry(Timed(SLOW, 9.0), None, None)
    written = table(entries={PROBLEM._replace(m=8): alone, PROBLEM: ENTRY})
    tuned.write(path, written)
    assert tuned.read(path) == written
    first = path.read_text()
    tuned.write(path, written._replace(entries=dict(reversed(written.entries.items()))))
    assert path.read_text() == first


def test_best_of():
    times = [Timed("a", 3.0), Timed("b", 1.0), Timed("c", 2.0)]
    assert tuned.best_of(times, "a") == Entry(times[1], times[2], times[0])
    assert tuned.best_of(times[:1], "b") == Entry(times[0], None, None)


def _without(name):
    return lambda content, entry: content.pop(name)


def _entry_with(name, value):
    return lambda content, entry: entry.__setitem__(name, value)


def _problem_with(name, value):
    return lambda content, entry: entry["problem"].__setitem__(name, value)


DAMAGE = {
    "has no gpu": _without("gpu"),
    "entries": lambda c, e: c.__setitem__("entries", {}),
    "format must be 1, got 2": lambda c, e: c.__setitem__("format", 2),
    r"entries\[0\] must be an object, got int": lambda c, e: c.__setitem__("entries", [3]),
    r"entries\[0\] has no config": lambda c, e: e.pop("config"),
    r"entries\[0\].microseconds must be float, got str": _entry_with("microseconds", "3"),
    r"entries\[0\].microseconds must be positive": _entry_with("microseconds", 0),
    r"entries\[0\].config: 'x' is not a kernel configuration": _entry_with("config", "x"),
    r"entries\[0\].config: configuration .* cannot run": _entry_with(
        "config", SLOW.replace("s7", "s16")
    ),
    r"entries\[0\].config: .* is not for": _entry_with("config", SLOW.replace("bf16", "f16")),
    r"entries\[0\].runner_up.config: ": _entry_with(
        "runner_up", {"config": "y", "microseconds": 1.0}
    ),
    r"entries\[0\].runner_up must be dict, got str": _entry_with("runner_up", "y"),
    r"entries\[0\].problem.m must be at least 1, got 0": _problem_with("m", 0),
    r"entries\[0\].problem.m must be int, got float": _problem_with("m", 1.5),
    r"entries\[0\].problem.kind must be one of": _problem_with("kind", "sparse"),
    r"entries\[0\].problem.q is no field": _problem_with("q", 1),
    r"entries\[0\].problem.num_sms is missing": lambda c, e: e["problem"].pop("num_sms"),
    r"entries\[1\].problem is there twice": lambda c, e: c["entries"].append(e),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_an_error_that_names_file_and_field(path, on_h100, message):
    content = json.loads(path.read_text())
    DAMAGE[message](content, content["entries"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(tuned.TableError, match=message) as info:
        on_h100.rank(PROBLEM, backend="cuda")
    assert str(info.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"\\ud800'])
def test_a_file_that_is_no_table_is_an_error(path, on_h100, text):
    path.write_text(text)
    with pytest.raises(tuned.TableError, match=re.escape(str(path))):
        on_h100.rank(PROBLEM, backend="cuda")


def test_a_missing_file_is_an_error(path, on_h100):
    path.unlink()
    with pytest.raises(tuned.TableError, match="No such file"):
        on_h100.rank(PROBLEM, backend="cuda")


@pytest.mark.parametrize("changes", [{"package": "0.0.1"}, {"gpu": "NVIDIA H200"}], ids=str)
def test_another_version_or_gpu_is_ignored_with_a_warning(path, on_h100, changes):
    tuned.write(path, table(**changes))
    with pytest.warns(RuntimeWarning, match=f"{path} is ignored: .*{next(iter(changes.values()))}"):
        ranked = on_h100.rank(PROBLEM, backend="cuda")
    assert ranked[0]["config"] != FAST
    on_h100.rank(PROBLEM, backend="cuda")  # says it once


def test_heuristics_use_the_table_first(path, on_h100):
    ranked = on_h100.rank(PROBLEM, backend="cuda")
    assert ranked[0]["config"] == FAST and ranked[0]["measured_microseconds"] == 3.5
    assert sum(c["config"] == FAST for c in ranked) == 1
    assert {c["config"] for c in ranked} == {
        c["config"] for c in on_h100.rank(PROBLEM, backend="cuda", gpu="")
    }
    best = fp8.plan(*PROBLEM[:3], num_sms=132)[0]
    assert best["config"] == FAST


@pytest.mark.parametrize(
    "change", [{"m": 63}, {"num_sms": 78}, {"d_dtype": "float16"}, {"accumulate": True}], ids=str
)
def test_only_the_same_problem_is_looked_up(path, on_h100, change):
    ranked = on_h100.rank(PROBLEM._replace(**change), backend="cuda")
    assert "measured_microseconds" not in ranked[0]


def test_without_a_gpu_no_table_is_read(path, extension, monkeypatch):
    monkeypatch.setattr(extension, "_first_gpu", lambda: None)
    path.write_text("damaged")
    assert ranking.rank(PROBLEM, backend="cuda")
    assert ranking.rank(PROBLEM, backend="sim")


def test_calls_carry_the_tuned_configuration(path, on_h100):
    def product(lhs, rhs):
        return fp8.gemm(lhs, rhs, implementation="cuda")

    assert f'config = "{FAST}"' in _attributes(product, *_operands())
    assert 'config = ""' in _attributes(product, *_operands(63))

    def on_few_sms(lhs, rhs):
        return fp8.gemm(lhs, rhs, implementation="cuda", num_sms=16)

    assert 'config = ""' in _attributes(on_few_sms, *_operands())


def test_empty_variable_means_no_tables(path, on_h100, monkeypatch):
    monkeypatch.setenv(environment.TUNED, "")
    assert on_h100.tuned_entry(PROBLEM, GPU) is None


def test_package_tables_are_used_and_the_users_go_before(path, on_h100, monkeypatch, tmp_path):
    folder = tmp_path / "package"
    other = PROBLEM._replace(m=128)
    entries = {PROBLEM: Entry(Timed(SLOW, 1.0)), other: Entry(Timed(SLOW, 2.0))}
    tuned.write(folder / "h100.json", table(entries=entries))
    tuned.write(folder / "h200.json", table(gpu="NVIDIA H200"))  # of another GPU: no warning
    monkeypatch.setattr(tuned, "FOLDER", folder)
    assert on_h100.tuned_entry(PROBLEM, GPU).best.config == FAST
    assert on_h100.tuned_entry(other, GPU).best.config == SLOW
    assert tuned.count(GPU) == 2
    monkeypatch.delenv(environment.TUNED)
    assert on_h100.tuned_entry(PROBLEM, GPU).best.config == SLOW


SHIPPED = sorted(tuned.FOLDER.glob("*.json"))


@pytest.mark.skipif(not SHIPPED, reason="no table is shipped: no GPU has been measured")
@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_shipped_table_is_of_this_version(extension, shipped):
    content = tuned.read(shipped)
    assert tuned.why_not_used(content, content.gpu) == ""


# ---- The word for a problem ----------------------------------------------------------------------

WORDS = {
    "4096x7168x2048": Problem(4096, 7168, 2048),
    "1x2x3:lhs=e5m2:result=f32:rows:accumulate": Problem(
        1, 2, 3, scaling="1d1d", a_dtype="float8_e5m2", d_dtype="float32", accumulate=True
    ),
    "ragged:8x64x128:groups=4": Problem(8, 64, 128, "ragged", num_groups=4),
    "contiguous:256x64x128:groups=2": Problem(256, 64, 128, "contiguous", num_groups=2),
    "masked:64x64x128:groups=2:expected=8": Problem(
        64, 64, 128, "masked", num_groups=2, expected_m=8, zero_padding=True
    ),
    "masked:64x64x128:unspecified": Problem(64, 64, 128, "masked"),
    "k_grouped:64x64x512:groups=3:result=bf16": Problem(
        64, 64, 512, "k_grouped", "1d1d", num_groups=3
    ),
}


@pytest.mark.parametrize("word", WORDS)
def test_word_of_a_problem(word):
    assert gemm_problem.parse(word) == WORDS[word]
    assert gemm_problem.parse(str(WORDS[word])) == WORDS[word]


@pytest.mark.parametrize(
    "word",
    [
        "",
        "64x64",
        "0x64x64",
        "sparse:64x64x64",
        "64x64x64:groups=2",
        "64x64x64:groups=0",
        "64x64x64:expected=3",
        "64x64x64:result=f64",
        "64x64x64:fast",
        "ragged:64x64x64:accumulate",
        "ragged:64x64x64:rows",
        "ragged",
    ],
)
def test_word_that_is_no_problem(word):
    with pytest.raises(ValueError, match=re.escape(repr(word))):
        gemm_problem.parse(word)


@pytest.mark.parametrize(
    ("word", "flops", "num_bytes"),
    [
        ("128x256x512", 2 * 128 * 256 * 512, 384 * 512 + 4 * (128 + 2) * 4 + 2 * 128 * 256),
        (
            "masked:64x128x256:groups=4:expected=8:unspecified",
            2 * 4 * 8 * 128 * 256,
            4 * (136 * 256 + 4 * 9 * 2 + 2 * 8 * 128),
        ),
        (
            "k_grouped:64x128x256:groups=2:accumulate",
            2 * 64 * 128 * 256,
            192 * 256 + 4 * 192 * 2 + 2 * 64 * 128 * 4 * 2,
        ),
    ],
)
def test_work_of_a_problem(word, flops, num_bytes):
    problem = gemm_problem.parse(word)
    assert (problem.flops, problem.least_bytes) == (flops, num_bytes)
