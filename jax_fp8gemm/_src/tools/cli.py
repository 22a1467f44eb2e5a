# SPDX-License-Identifier: Apache-2.0
"""The command line: what is installed, which kernel a problem gets, and the kernel cache."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jax_fp8gemm._src.native import bundle, environment, extension
from jax_fp8gemm._src.tools import cli_bench, cli_kernels
from jax_fp8gemm._src.tools import doctor as doctor_lib
from jax_fp8gemm._src.tools.progress import progress

_INTERRUPTED = 130  # as a shell has it

_EXAMPLES = """examples:
  python -m jax_fp8gemm doctor
  python -m jax_fp8gemm doctor --check
  python -m jax_fp8gemm explain 4096 7168 2048
  python -m jax_fp8gemm explain 64x7168x2048 --result f32 --accumulate --top 5
  python -m jax_fp8gemm explain masked:1024x4096x7168:groups=4:expected=192
  python -m jax_fp8gemm precompile 4096x7168x2048 ragged:8192x4096x7168:groups=8
  python -m jax_fp8gemm precompile --file problems.txt --jobs 8 --bundle kernels.bundle
  python -m jax_fp8gemm tune --file problems.txt --output h100.json
  python -m jax_fp8gemm tune 64x136x256 --simulate --rounds 2
  python -m jax_fp8gemm bench --suites headline --budget 400
  python -m jax_fp8gemm cache show
  python -m jax_fp8gemm cache verify
  python -m jax_fp8gemm cache import kernels.bundle
  python -m jax_fp8gemm cache clear
"""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m jax_fp8gemm",
        description="Block-scaled FP8 matrix multiplication for NVIDIA Hopper GPUs in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="say what is installed and what works here")
    doctor.add_argument(
        "--check", action="store_true", help="also compute every kind of product on every device"
    )
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.set_defaults(run=_report)

    cli_kernels.add_parsers(commands)

    # Its options, --help too, are those of the benchmarks.
    bench = commands.add_parser(
        "bench", add_help=False, help="time everything beside its peers (in a checkout)"
    )
    bench.set_defaults(run=None)

    cache = commands.add_parser("cache", help="show, check, fill or empty the kernel cache")
    cache.add_argument("action", nargs="?", choices=("path", "import", *_CACHE), default="show")
    cache.add_argument(
        "file", nargs="?", type=pathlib.Path, help="of import: what precompile --bundle wrote"
    )
    cache.set_defaults(run=_cache)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if options.command == "bench":
        return cli_bench.run(others)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"{options.command}: {error}", file=sys.stderr)
        return 2


def _report(options: argparse.Namespace) -> int:
    report = doctor_lib.report()
    if not options.json:
        print("\n".join(doctor_lib.lines(report)), flush=True)
    if options.check:
        checks = doctor_lib.checks(report)
        for check in checks if options.json else progress(checks, "check"):
            report["checks"].append(check)
            if not options.json:
                print(doctor_lib.check_line(check), flush=True)
    report["ok"] = report["ok"] and all(check["ok"] for check in report["checks"])
    if options.json:
        print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


def _cache(options: argparse.Namespace) -> int:
    imports = options.action == "import"
    if imports != (options.file is not None):
        print(f"cache: import takes a file, {options.action} takes none", file=sys.stderr)
        return 2
    directory = environment.cache_dir()
    if directory is None:
        print(environment.CACHE_IS_OFF)
        return 1 if imports else 0
    if options.action == "path":
        print(directory)
        return 0
    core = extension.core()
    if refusal := core.disk_cache_refusal():
        print(f"cache: {refusal}", file=sys.stderr)
        return 1
    return _import(options.file, directory) if imports else _CACHE[options.action](core, directory)


def _import(file: pathlib.Path, directory: pathlib.Path) -> int:
    try:
        configs = bundle.unpack(file)
    except (RuntimeError, ValueError) as error:
        print(f"cache: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print("\n".join(configs))
    print(f"{len(configs)} kernels of {file} in {directory}")
    return 0


def _show_cache(core: Any, directory: pathlib.Path) -> int:
    entries = core.list_disk_cache()
    for name, label, size_bytes in sorted(entries, key=lambda entry: entry[1]):
        print(f"{size_bytes:10} {label}  {name}")
    total_bytes = sum(size_bytes for _, _, size_bytes in entries)
    limit_bytes = environment.cache_limit_bytes()
    print(f"{len(entries)} kernels, {total_bytes} bytes of at most {limit_bytes}, in {directory}")
    return 0


def _verify_cache(core: Any, directory: pathlib.Path) -> int:
    faults = list(doctor_lib.kernel_faults(core))
    for name, fault in faults:
        print(f"{directory / name}: {fault}")
    print(f"{len(core.list_disk_cache())} kernels, {len(faults)} bad, in {directory}")
    if faults:
        print("a bad one is never loaded, and is replaced when its kernel is compiled again")
    return 1 if faults else 0


def _clear_cache(core: Any, directory: pathlib.Path) -> int:
    print(f"removed {core.clear_disk_cache()} kernels from {directory}")
    return 0


_CACHE = {"show": _show_cache, "verify": _verify_cache, "clear": _clear_cache}
