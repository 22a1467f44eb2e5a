# SPDX-License-Identifier: Apache-2.0
"""The command line: exit statuses and what it says, with and without a compiler."""

import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

from jax_fp8gemm._src.native import environment, plan
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.tools import cli

CONFIGS = [{"config": "best"}, {"config": "second"}]


class Core(types.SimpleNamespace):
    """What the command line uses of the extension."""

    ffi_api_minor = 2

    def __init__(self):
        super().__init__(
            compiled=[],
            ranked=[],
            entries=[("a.bin", "a", 100)],
            faults={},
            nvrtc=(13, 0),
            refusal="",
        )

    def nvrtc_version(self):
        if self.nvrtc is None:
            raise RuntimeError("no NVRTC: pip install nvidia-cuda-nvrtc\ndetails")
        return self.nvrtc

    def nvrtc_path(self):
        return "/wheels/libnvrtc.so.13"

    def device_info(self):
        raise RuntimeError("no libcuda.so.1")

    def kernel_image(self, config):
        self.compiled.append(config)
        return bytes(1234)

    def disk_cache_refusal(self):
        return self.refusal

    def disk_entry_fault(self, name):
        return self.faults.get(name, "")

    def list_disk_cache(self):
        return self.entries

    def clear_disk_cache(self):
        count = len(self.entries)
        self.entries.clear()
        return count


@pytest.fixture
def core(replace_ffi, monkeypatch, tmp_path):
    """Puts a recording stand-in in the place of the extension."""
    core = Core()
    replace_ffi(
        core=lambda: core,
        sim_library=lambda: tmp_path / "none.so",
        planning_gpu=lambda backend: "",
        planning_num_sms=lambda backend, num_sms: num_sms or 132,
        rank=lambda problem, **kwargs: core.ranked.append((problem, kwargs)) or CONFIGS,
    )
    monkeypatch.setenv(environment.CACHE_DIR, str(tmp_path))
    return core


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    commands = re.findall(r"python -m jax_fp8gemm (\w+)", text.partition("examples:")[2])
    assert set(commands) == {"bench", "doctor", "explain", "precompile", "tune", "cache"}


def test_doctor_succeeds_without_a_gpu(core, capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    names = ("jax_fp8gemm", "jax devices", "extension", "nvrtc", "kernel cache", "tuned table")
    for name in names:
        assert re.search(rf"^{name} +\S", text, re.MULTILINE)
    assert re.search(r"^gpu +NOT AVAILABLE: no libcuda.so.1\n +remedy: ", text, re.MULTILINE)
    assert "'xla'" in text.splitlines()[-1]
    assert all(name in text for name in environment.VARIABLES)


@pytest.mark.parametrize("name", ["JAX_FP8GEMM_PDL", "JAX_FP8GEMM_TUNED", "JAX_FP8GEMM_NVRTC"])
def test_doctor_names_wrong_values_of_variables(core, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "/no/such/place")
    assert cli.main(["doctor"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(name))
    assert "WRONG VALUE" in line and "/no/such/place" in line


def test_doctor_says_why_the_cache_is_not_used(core, capsys):
    core.refusal = "/shared can be written to by other users: run `chmod go-w /shared`"
    assert cli.main(["doctor"]) == 0
    assert f"kernel cache           NOT AVAILABLE: {core.refusal}" in capsys.readouterr().out


def test_doctor_fails_where_the_extension_does_not_load(replace_ffi, capsys):
    def broken():
        raise RuntimeError("handler's API version is incompatible")

    replace_ffi(core=broken)
    assert cli.main(["doctor"]) == 1
    assert "extension              NOT AVAILABLE: handler's API" in capsys.readouterr().out


def test_doctor_names_a_damaged_table(core, replace_ffi, monkeypatch, tmp_path, capsys):
    core.describe_config = lambda key: {}
    replace_ffi(
        core=lambda: core,
        sim_library=lambda: tmp_path / "none.so",
        planning_gpu=lambda backend: "H100",
    )
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{}")
    monkeypatch.setenv(environment.TUNED, str(damaged))
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"tuned table            NOT AVAILABLE: {damaged}: the file has no format" in text


@pytest.mark.parametrize("words", [["64", "7168", "2048"], ["64x7168x2048"]], ids=str)
def test_explain_shows_the_choice_and_the_runners_up(extension, words, capsys):
    arguments = [*words, "--num-sms", "132", "--top", "2", "--no-code"]
    assert cli.main(["explain", *arguments]) == 0
    text = capsys.readouterr().out
    best, second = plan.plan(64, 7168, 2048, num_sms=132)[:2]
    assert f"chosen  {best['config']}" in text and f"[2] {second['config']}" in text
    assert "machine code" not in text


def test_options_complete_a_problem(core, monkeypatch):
    monkeypatch.setenv(environment.PDL, "0")
    options = ["--lhs", "e5m2", "--result", "f32", "--accumulate", "--num-sms", "8"]
    assert cli.main(["precompile", "4x5x6", *options, "--gpu", "NVIDIA H200"]) == 0
    problem = Problem(4, 5, 6, a_dtype="float8_e5m2", d_dtype="float32", accumulate=True, num_sms=8)
    assert core.ranked == [(problem, {"backend": "cuda", "gpu": "NVIDIA H200"})]


def test_precompile_compiles_each_kernel_once(core, monkeypatch, tmp_path, capsys):
    file = tmp_path / "problems.txt"
    file.write_text("# two more\n128x128x128\n\n1x2x3  # odd\n")
    monkeypatch.setenv(environment.PDL, "1")
    assert cli.main(["precompile", "64x64x64", "--file", str(file), "--jobs", "2"]) == 0
    assert core.compiled == ["best.pdl"]
    text = capsys.readouterr().out
    assert "best.pdl: 1234 bytes" in text and "1x2x3: best.pdl" in text
    monkeypatch.setenv(environment.PDL, "0")
    assert cli.main(["precompile", "64x64x64"]) == 0
    assert core.compiled == ["best.pdl", "best"]


def test_terminal_sees_how_far_it_is(core, monkeypatch, capsys):
    monkeypatch.setenv(environment.PDL, "0")
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda here=is_terminal: here)
        assert cli.main(["precompile", "64x64x64"]) == 0
        assert ("compile: 0 of 1, " in capsys.readouterr().err) == is_terminal


def test_precompile_without_a_compiler_says_what_to_install(core, capsys):
    core.nvrtc = None
    assert cli.main(["precompile", "64x64x64"]) == 1
    assert "pip install nvidia-cuda-nvrtc" in capsys.readouterr().err


def test_precompile_that_keeps_nothing_fails(core, capsys):
    core.refusal = "/shared can be written to by other users"
    assert cli.main(["precompile", "64x64x64"]) == 1
    output = capsys.readouterr()
    assert f"no kernel was kept: {core.refusal}" in output.err and "in /" not in output.out


def test_precompile_without_problems_is_a_usage_error(core, tmp_path, capsys):
    assert cli.main(["precompile"]) == 2
    assert cli.main(["precompile", "--file", str(tmp_path / "missing")]) == 2
    (tmp_path / "binary").write_bytes(b"\xd0")
    assert cli.main(["precompile", "--file", str(tmp_path / "binary")]) == 2
    assert str(tmp_path / "binary") in capsys.readouterr().err
    (tmp_path / "bad").write_text("64x64\n")
    assert cli.main(["precompile", "--file", str(tmp_path / "bad")]) == 2
    assert "'64x64'" in capsys.readouterr().err
    assert cli.main(["precompile", "ragged:8x8x8", "--accumulate"]) == 2
    assert "only dense and k_grouped problems accumulate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["precompile", "64x64"],
        ["precompile", "0x64x64"],
        ["precompile", "64x64x64:groups=2"],
        ["precompile", "2147483648x64x64"],
        ["precompile", f"{10**30}x64x64"],
        ["tune", "64x64x64", "--rounds", "0"],
        ["tune", "64x64x64", "--budget", "nan"],
        ["doctor", "--jsn"],
        ["explain", "1", "1", "1", "--num-sms", "2000"],
        ["explain", "1", "1", "1", "--result", "f64"],
        [],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2


@pytest.mark.parametrize("words", [["0", "1", "1"], ["1", "1"], ["1x1x1", "1x1x1"], ["ragged:1"]])
def test_explain_of_no_problem_is_a_usage_error(extension, words, capsys):
    assert cli.main(["explain", *words]) == 2
    assert capsys.readouterr().err.startswith("explain: ")


def test_cache_shows_and_clears(core, tmp_path, capsys):
    assert cli.main(["cache"]) == 0
    assert f"1 kernels, 100 bytes of at most {1 << 30}" in capsys.readouterr().out
    assert cli.main(["cache", "clear"]) == 0
    assert "removed 1 kernels" in capsys.readouterr().out and not core.entries
    assert cli.main(["cache", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)


def test_cache_verify_fails_where_an_entry_is_bad(core, tmp_path, capsys):
    assert cli.main(["cache", "verify"]) == 0
    assert "1 kernels, 0 bad" in capsys.readouterr().out
    (entry,) = core.entries
    core.faults = {entry[0]: "its checksum is wrong"}
    assert cli.main(["cache", "verify"]) == 1
    assert f"{tmp_path}/{entry[0]}: its checksum is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["show", "verify", "clear"])
def test_cache_that_is_not_used_is_an_error(core, action, capsys):
    core.refusal = "/shared can be written to by other users"
    assert cli.main(["cache", action]) == 1
    assert core.refusal in capsys.readouterr().err and core.entries


def test_cache_can_be_off(monkeypatch, capsys):
    monkeypatch.setenv(environment.CACHE_DIR, "")
    assert cli.main(["cache"]) == 0
    assert "no kernels are kept" in capsys.readouterr().out


def test_commands_with_the_extension(extension, monkeypatch, tmp_path, capsys):
    assert cli.main(["doctor"]) == 0
    assert cli.main(["explain", "4096", "7168", "2048", "--num-sms", "132"]) == 0
    best = plan.plan(4096, 7168, 2048, num_sms=132)[0]
    text = capsys.readouterr().out
    assert f"chosen  {best['config']}" in text and "machine code" in text


# ---- Environment variables ---------------------------------------------------------------------


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(environment.CACHE_DIR, raising=False)
    assert environment.cache_dir() == tmp_path / "jax_fp8gemm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environment.cache_dir().parts[-2:] == (".cache", "jax_fp8gemm")
    monkeypatch.setenv(environment.CACHE_DIR, "/elsewhere")
    assert str(environment.cache_dir()) == "/elsewhere"
    monkeypatch.setenv(environment.CACHE_DIR, "")
    assert environment.cache_dir() is None
    assert environment.complaints() == {}


def test_cache_dir_without_a_home(monkeypatch):
    monkeypatch.delenv(environment.CACHE_DIR, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is ignored
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        assert environment.cache_dir() is None
    monkeypatch.setenv("HOME", "/home/me")
    assert environment.cache_dir() == pathlib.Path("/home/me/.cache/jax_fp8gemm")


def test_cache_limit(monkeypatch):
    monkeypatch.delenv(environment.CACHE_LIMIT, raising=False)
    assert environment.cache_limit_bytes() == 1 << 30
    monkeypatch.setenv(environment.CACHE_LIMIT, "5")
    assert environment.cache_limit_bytes() == 5 << 20 and environment.complaints() == {}


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1 GiB", "9" * 5000])
def test_wrong_cache_limits_are_named(monkeypatch, text):
    monkeypatch.setenv(environment.CACHE_LIMIT, text)
    assert environment.cache_limit_bytes() == 1 << 30
    assert "whole number of MiB" in environment.complaints()[environment.CACHE_LIMIT]


NO_PATHS = {
    "nobody's": "~no_such_user/x",
    "relative": "relative/x",
    "no text": "/tmp/\udcff",
    "long": "/" + 5000 * "x",
}


@pytest.mark.parametrize("text", NO_PATHS.values(), ids=NO_PATHS)
def test_wrong_paths_are_named(monkeypatch, text):
    for variable in (environment.CACHE_DIR, environment.NVRTC, environment.TUNED):
        monkeypatch.setenv(variable, text)
    wrong = environment.complaints()
    assert environment.NVRTC in wrong and environment.TUNED in wrong
    # Only the operating system knows what is too long; the first kernel says so.
    assert (environment.CACHE_DIR in wrong) == (text != NO_PATHS["long"])
    assert (environment.cache_dir() is None) == (text != NO_PATHS["long"])


@pytest.mark.parametrize("kind", ["nobody's", "no text", "long"])
def test_import_and_doctor_outlive_wrong_paths(extension, tmp_path, kind):
    text = NO_PATHS[kind]
    paths = (environment.CACHE_DIR, environment.NVRTC, environment.TUNED)
    variables = dict.fromkeys(paths, text)
    variables |= {"HOME": "", "CUDA_HOME": text, "JAX_PLATFORMS": "cpu"}
    variables[environment.CACHE_LIMIT] = text
    run = subprocess.run(
        [sys.executable, "-m", "jax_fp8gemm", "doctor"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
    )
    assert run.returncode == 0, run.stderr.decode(errors="replace")[-3000:]
    lines = run.stdout.decode().splitlines()
    assert any(re.match(r"extension +loaded", line) for line in lines)
    wrong = {line.split()[0] for line in lines if "WRONG VALUE" in line}
    names = {environment.NVRTC, environment.TUNED, environment.CACHE_LIMIT}
    assert wrong >= names
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "want"), [("1", True), ("On", True), ("0", False), ("no", False)])
def test_pdl(monkeypatch, text, want):
    monkeypatch.setenv(environment.PDL, text)
    assert environment.pdl() is want


def test_pdl_names_the_variable_in_its_error(monkeypatch):
    monkeypatch.setenv(environment.PDL, "maybe")
    with pytest.raises(ValueError, match=r"JAX_FP8GEMM_PDL.*'maybe'"):
        environment.pdl()


def test_paths(monkeypatch):
    for name, function in (
        ("JAX_FP8GEMM_NVRTC", environment.nvrtc),
        ("CUDA_HOME", environment.cuda_home),
    ):
        monkeypatch.delenv("CUDA_PATH", raising=False)
        monkeypatch.delenv(name, raising=False)
        assert function() is None
        monkeypatch.setenv(name, "/opt/x")
        assert str(function()) == "/opt/x"
