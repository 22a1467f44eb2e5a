# SPDX-License-Identifier: Apache-2.0
"""The command line: what is installed, which kernel a problem gets, and the kernel cache."""

import argparse
import pathlib
from collections.abc import Sequence

from jax_fp8gemm._src.native import environment, extension
from jax_fp8gemm._src.tools import cli_bench, cli_kernels
from jax_fp8gemm._src.tools import doctor as doctor_lib

_EXAMPLES = """examples:
  python -m jax_fp8gemm doctor
  python -m jax_fp8gemm explain 4096 7168 2048
  python -m jax_fp8gemm explain 64x7168x2048 --result f32 --accumulate --top 5
  python -m jax_fp8gemm explain masked:1024x4096x7168:groups=4:expected=192
  python -m jax_fp8gemm precompile 4096x7168x2048 ragged:8192x4096x7168:groups=8
  python -m jax_fp8gemm precompile --file problems.txt --jobs 8
  python -m jax_fp8gemm tune --file problems.txt --output h100.json
  python -m jax_fp8gemm tune 64x136x256 --simulate --rounds 2
  python -m jax_fp8gemm bench --suites headline --budget 400
  python -m jax_fp8gemm cache list
  python -m jax_fp8gemm cache clear
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jax_fp8gemm",
        description="Block-scaled FP8 matrix multiplication for NVIDIA Hopper GPUs in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="say what is installed and what works here")
    doctor.set_defaults(run=_report)

    cli_kernels.add_parsers(commands)

    # Its options, --help too, are those of the benchmarks.
    bench = commands.add_parser(
        "bench", add_help=False, help="time everything beside its peers (in a checkout)"
    )
    bench.set_defaults(run=None)

    cache = commands.add_parser("cache", help="show or empty the kernel cache")
    cache.add_argument("action", nargs="?", choices=("list", "path", "clear"), default="list")
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
    return options.run(options)


def _report(_: argparse.Namespace) -> int:
    lines, is_whole = doctor_lib.report()
    print("\n".join(lines))
    return 0 if is_whole else 1


def _cache(options: argparse.Namespace) -> int:
    directory = environment.cache_dir()
    if directory is None:
        print(environment.CACHE_IS_OFF)
        return 0
    if options.action == "path":
        print(directory)
        return 0
    core = extension.core()
    if options.action == "clear":
        print(f"removed {core.clear_disk_cache()} kernels from {directory}")
        return 0
    entries = core.list_disk_cache()
    for path, label, size_bytes in sorted(entries, key=lambda entry: entry[1]):
        print(f"{size_bytes:10} {label}  {pathlib.Path(path).name}")
    total_bytes = sum(size_bytes for _, _, size_bytes in entries)
    print(f"{len(entries)} kernels, {total_bytes} bytes in {directory}")
    return 0
