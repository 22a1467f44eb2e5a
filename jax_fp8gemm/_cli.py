# SPDX-License-Identifier: Apache-2.0
"""The command line: what is installed, which kernel a problem gets, and the kernel cache."""

import argparse
import concurrent.futures
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jax_fp8gemm import _checks, _config, _doctor
from jax_fp8gemm._plan import plan

_DTYPES = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}
_RESULTS = {"bf16": jnp.bfloat16, "f16": jnp.float16, "f32": jnp.float32}
_PROBLEM = re.compile(r"(\d+)x(\d+)x(\d+)")

_EXAMPLES = """examples:
  python -m jax_fp8gemm doctor
  python -m jax_fp8gemm explain 4096 7168 2048
  python -m jax_fp8gemm explain 64 7168 2048 --result f32 --accumulate --top 5
  python -m jax_fp8gemm precompile 4096x7168x2048 64x7168x2048
  python -m jax_fp8gemm precompile --file problems.txt --jobs 8
  python -m jax_fp8gemm cache list
  python -m jax_fp8gemm cache clear
"""


class Problem(NamedTuple):
    """One dense problem, `(m, k) @ (n, k).T`."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


def _problem(text: str) -> Problem:
    match = _PROBLEM.fullmatch(text.strip())
    if not match or not all(int(extent) for extent in match.groups()):
        raise argparse.ArgumentTypeError(
            f"a problem is MxNxK, such as 4096x7168x2048, not {text!r}"
        )
    return Problem(*map(int, match.groups()))


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an int of at least 1, not {text!r}")
    return int(text)


def _num_sms(text: str) -> int:
    if _positive(text) > _checks.MAX_NUM_SMS:
        raise argparse.ArgumentTypeError(f"must be at most {_checks.MAX_NUM_SMS}, not {text}")
    return int(text)


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

    kind = argparse.ArgumentParser(add_help=False)
    kind.add_argument("--lhs", choices=_DTYPES, default="e4m3", help="dtype of lhs")
    kind.add_argument("--rhs", choices=_DTYPES, default="e4m3", help="dtype of rhs")
    kind.add_argument("--result", choices=_RESULTS, default="bf16", help="dtype of the result")
    kind.add_argument("--accumulate", action="store_true", help="with an accumulator")
    kind.add_argument(
        "--num-sms",
        type=_num_sms,
        help="SMs to plan for (default: those of the first GPU, or of an H100 SXM)",
    )

    explain = commands.add_parser(
        "explain", parents=[kind], help="show which kernel a problem gets and its modelled time"
    )
    for extent in ("m", "n", "k"):
        explain.add_argument(extent, type=_positive, help=f"the problem's {extent.upper()}")
    explain.add_argument("--top", type=_positive, default=3, help="how many candidates to show")
    explain.set_defaults(run=_explain)

    precompile = commands.add_parser(
        "precompile", parents=[kind], help="compile the kernels of problems into the cache"
    )
    precompile.add_argument("problems", nargs="*", type=_problem, help="MxNxK")
    precompile.add_argument(
        "--file", type=pathlib.Path, help="a problem per line; # starts a comment"
    )
    precompile.add_argument("--jobs", type=_positive, default=4, help="compilers at a time")
    precompile.set_defaults(run=_precompile)

    cache = commands.add_parser("cache", help="show or empty the kernel cache")
    cache.add_argument("action", nargs="?", choices=("list", "path", "clear"), default="list")
    cache.set_defaults(run=_cache)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _report(_: argparse.Namespace) -> int:
    lines, is_whole = _doctor.report()
    print("\n".join(lines))
    return 0 if is_whole else 1


def _candidates(problem: Problem, options: argparse.Namespace) -> list[dict[str, Any]]:
    return plan(
        *problem,
        lhs_dtype=_DTYPES[options.lhs],
        rhs_dtype=_DTYPES[options.rhs],
        preferred_element_type=_RESULTS[options.result],
        accumulate=options.accumulate,
        num_sms=options.num_sms,
    )


def _explain(options: argparse.Namespace) -> int:
    problem = Problem(options.m, options.n, options.k)
    candidates = _candidates(problem, options)
    best = candidates[0]
    flops = 2 * problem.m * problem.n * problem.k
    print(f"problem {problem}: {flops:.3g} floating-point operations")
    for name, value in best.items():
        print(f"  {name:<28} {_show(value)}")
    print(f"  {'modelled_tflops':<28} {flops / best['microseconds'] / 1e6:.4g}")
    print(f"{len(candidates)} candidates, best first:")
    for candidate in candidates[: options.top]:
        print(f"  {candidate['microseconds']:10.2f} us  {candidate['config']}")
    return 0


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _read_problems(path: pathlib.Path) -> list[Problem]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [_problem(line) for line in lines if line]


def _precompile(options: argparse.Namespace) -> int:
    try:
        problems = options.problems + (_read_problems(options.file) if options.file else [])
    except (OSError, argparse.ArgumentTypeError) as error:
        print(f"precompile: --file: {error}", file=sys.stderr)
        return 2
    if not problems:
        print("precompile: name at least one problem MxNxK, or a --file of them", file=sys.stderr)
        return 2
    # A program's kernels carry this mark where they launch with programmatic dependent launch.
    suffix = ".pdl" if _config.pdl() else ""
    configs = {p: _candidates(p, options)[0]["config"] + suffix for p in problems}
    try:
        _compile_all(sorted(set(configs.values())), options.jobs)
    except RuntimeError as error:
        print(f"precompile: {error}", file=sys.stderr)
        return 1
    for problem, config in configs.items():
        print(f"{problem}: {config}")
    return 0


def _compile_all(configs: list[str], num_jobs: int) -> None:
    """Compiles kernels into the cache, several at a time, saying what each one took."""
    from jax_fp8gemm import _ffi  # here, so that --help loads no extension

    core = _ffi.core()
    core.nvrtc_version()  # raises once, before the threads do, where there is no compiler

    def compile_one(config: str) -> str:
        start = time.perf_counter()
        size_bytes = core.precompile(config)
        return f"{config}: {size_bytes} bytes in {time.perf_counter() - start:.2f} s"

    with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
        for line in pool.map(compile_one, configs):
            print(line)
    directory = _config.cache_dir()
    if directory is None:
        print(f"{_config.CACHE_DIR.name} is empty: the kernels were not kept", file=sys.stderr)
    else:
        print(f"in {directory}")


def _cache(options: argparse.Namespace) -> int:
    directory = _config.cache_dir()
    if directory is None:
        print(f"{_config.CACHE_DIR.name} is empty: no kernels are kept on disk")
        return 0
    if options.action == "path":
        print(directory)
        return 0
    from jax_fp8gemm import _ffi  # here, so that --help loads no extension

    core = _ffi.core()
    if options.action == "clear":
        print(f"removed {core.clear_disk_cache()} kernels from {directory}")
        return 0
    entries = core.list_disk_cache()
    for path, label, size_bytes in sorted(entries, key=lambda entry: entry[1]):
        print(f"{size_bytes:10} {label}  {pathlib.Path(path).name}")
    total_bytes = sum(size_bytes for _, _, size_bytes in entries)
    print(f"{len(entries)} kernels, {total_bytes} bytes in {directory}")
    return 0
