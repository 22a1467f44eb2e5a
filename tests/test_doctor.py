# SPDX-License-Identifier: Apache-2.0
"""`doctor --check` and `--json`: every kind of product, wrong ones, and mistakes of users."""

import json
import os
import subprocess
import sys

import pytest

from jax_fp8gemm._src.tools import cli, cli_kernels, doctor, doctor_checks


def _report(capsys, *options: str) -> tuple[int, dict]:
    status = cli.main(["doctor", "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def test_json_is_without_progress(extension, monkeypatch, capsys):
    check = {"kind": "kernel cache", "ok": True, "problem": ""}
    monkeypatch.setattr(doctor, "checks", lambda report: iter([check]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.main(["doctor", "--json", "--check"])
    assert capsys.readouterr().err == ""
    cli.main(["doctor", "--check"])
    assert "check: 1, " in capsys.readouterr().err


def test_json_has_what_the_terminal_has(extension, capsys):
    status, report = _report(capsys)
    assert status == 0 and report["ok"] and report["checks"] == []
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == doctor.lines(report)
    # What is bad has a remedy, and nothing else has.
    assert all(finding["ok"] == (not finding["remedy"]) for finding in report["findings"])


def test_every_kind_has_a_check():
    grouped = {"grouped_gemm", "grouped_gemm_contiguous", "grouped_gemm_masked", "k_grouped_gemm"}
    others = {"quantize", "gemm", "gemm, scales per row", "dot, its gradients"}
    assert set(doctor_checks.KINDS) == grouped | others


@pytest.mark.slow
def test_every_kind_passes_here(simulator_library, capsys):
    status, report = _report(capsys, "--check")
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert status == 0
    computed = {(c["implementation"], c["kind"]) for c in report["checks"] if "device" in c}
    assert computed >= {(i, kind) for i in ("xla", "sim") for kind in doctor_checks.KINDS}


@pytest.mark.parametrize("kind", ["quantize", "gemm", "dot, its gradients"])
def test_wrong_product_is_found(extension, monkeypatch, capsys, kind):
    name = kind.partition(",")[0]
    right = getattr(doctor_checks, name)
    if name == "quantize":
        # Values of the next binade: what a wrong scale looks like.
        def wrong(x, **options):
            return right(2 * x, **options)
    else:

        def wrong(lhs, rhs, **options):
            return right(lhs, rhs, **options) * 1.125

    monkeypatch.setattr(doctor_checks, name, wrong)
    monkeypatch.setattr(doctor_checks, "KINDS", {kind: doctor_checks.KINDS[kind]})
    monkeypatch.setattr(doctor_checks, "_implementations", lambda device: ["xla"])
    status, report = _report(capsys, "--check")
    checks = [check for check in report["checks"] if "device" in check]
    assert status == 1 and not report["ok"]
    assert checks and not any(check["ok"] or not check["problem"] for check in checks)
    assert cli.main(["doctor", "--check"]) == 1
    assert checks[0]["problem"] in capsys.readouterr().out


def test_damaged_cache_is_found(extension, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor_checks, "run", lambda: iter(()))

    class Damaged:
        def __getattr__(self, name):
            return getattr(extension.core(), name)

        def disk_cache_refusal(self):
            return ""

        def list_disk_cache(self):
            return [("a.bin", "a", 1), ("b.bin", "b", 1)]

        def disk_entry_fault(self, name):
            return "its checksum is wrong" if name == "a.bin" else ""

    damaged = Damaged()
    monkeypatch.setattr(doctor, "extension", _WithCore(extension, damaged))
    monkeypatch.setenv("JAX_FP8GEMM_CACHE_DIR", str(tmp_path))
    status, report = _report(capsys, "--check")
    assert status == 1
    assert report["checks"][0]["problem"] == "1 bad: python -m jax_fp8gemm cache clear"


@pytest.mark.parametrize(("capability", "is_good"), [((9, 0), True), ((8, 0), False)])
def test_gpu_is_named_with_its_capability_and_driver(monkeypatch, capability, is_good):
    class Core:
        def device_info(self):
            known = {"name": "NVIDIA X", "sm_count": 132, "driver_version": 13000}
            return known | {"compute_capability": capability}

    monkeypatch.setattr(doctor, "_mapped", {"libcuda.so": "/lib/libcuda.so.1"}.get)
    finding = doctor._driver(Core())
    numbers = f"compute capability {capability[0]}.{capability[1]}, 132 SMs"
    assert finding.text == f"NVIDIA X, {numbers}, driver for CUDA 13.0, /lib/libcuda.so.1"
    assert finding.is_good == is_good
    assert is_good or "CUDA_VISIBLE_DEVICES" in finding.remedy


def test_path_of_a_library_is_that_of_this_process():
    path = doctor._mapped("libc.so")
    assert path.startswith("/") and "/libc.so" in path
    assert doctor._mapped("libnosuch.so") == "libnosuch.so"


class _WithCore:
    """The native module with another core."""

    def __init__(self, module, core):
        self.module, self.core = module, lambda: core

    def __getattr__(self, name):
        return getattr(self.module, name)


def test_unforeseen_errors_are_one_line(monkeypatch, capsys):
    def unreadable(options):
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(cli_kernels, "_precompile_problems", unreadable)
    assert cli.main(["precompile", "64x64x64"]) == 2
    error = "precompile: [Errno 13] Permission denied: '/somewhere'\n"
    assert capsys.readouterr().err == error

    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_kernels, "_precompile_problems", interrupted)
    assert cli.main(["precompile", "64x64x64"]) == 130


def test_reader_that_leaves_is_no_error(extension):
    command = f"{sys.executable} -m jax_fp8gemm explain 64x64x64 --no-code --top 99 | head -n 1"
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert "Traceback" not in run.stderr and "BrokenPipe" not in run.stderr
    assert run.stdout.startswith("problem 64x64x64")
