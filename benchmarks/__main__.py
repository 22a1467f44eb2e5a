# SPDX-License-Identifier: Apache-2.0
"""python -m jax_fp8gemm bench: times, records, reports. `--help` has examples."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
# Behind the installed package, whose sources in this checkout have no extension beside them.
sys.path[:] = [path for path in sys.path if path != str(_FOLDER)] + [str(_FOLDER.parent)]
# Before jax is imported: PyTorch peers need device memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks import compare, plots, record, tables, targets  # noqa: E402
from benchmarks.cases import CPU_SUITES, GPU_SUITES, SUITES, suite  # noqa: E402

_EXAMPLES = """\
examples:
  python -m jax_fp8gemm bench                               everything that suits this machine
  python -m jax_fp8gemm bench --suites deepgemm --budget 400   what fits in 400 seconds
  python -m jax_fp8gemm bench --peers jax_bf16 deep_gemm    ours against two peers
  python -m jax_fp8gemm bench --compare last/record.json    fail where ours became slower
  python -m jax_fp8gemm bench --report build/benchmarks/record.json   tables and plots once more
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jax_fp8gemm bench",
        description=__doc__.partition("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--suites",
        nargs="+",
        choices=[*SUITES, "host"],
        help="default: by platform; host, alone: what a call costs before a kernel runs",
    )
    parser.add_argument("--peers", nargs="+", default=[], help="default: all; ours is always there")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each peer")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds at most")
    parser.add_argument("--require-gpu", action="store_true", help="fail where JAX has no GPU")
    parser.add_argument("--no-extras", action="store_true", help="only the products")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RECORD",
        help=f"fail where ours takes more than {compare.MAX_RATIO} times as long as in that record",
    )
    parser.add_argument("--report", type=Path, help="only report on a record that exists")
    return parser


def _report(content: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(filter(None, (tables.report(content), targets.report(content))))
    (folder / "report.md").write_text(text)
    drawn = plots.draw(content, folder)
    print(text)
    files = [folder / "report.md", *drawn]
    print("written: " + ", ".join(map(str, files)))
    if not drawn:
        print("no plots: matplotlib is not installed, or there is nothing to draw")


def _failed(case: dict) -> bool:
    return case["results"]["ours"]["status"] == "failed"


def _compared(old: dict | None, content: dict) -> int:
    """Says what changed since an earlier record; returns the exit status."""
    if old is None:
        return 0
    try:
        found = compare.changes(old, content)
    except ValueError as error:
        print(f"bench: --compare: {error}", file=sys.stderr)
        return 2
    print(compare.report(found))
    return 1 if any(change.is_worse for change in found) else 0


def _earlier(path: Path | None) -> dict | None:
    """Returns the record to compare with; until one is kept there is none."""
    if path is not None and not path.exists():
        print(f"--compare: there is no {path} yet, so nothing is compared")
        return None
    return record.load(path) if path else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if "host" in (options.suites or ()) and len(options.suites) > 1:
        parser.error("--suites host stands alone: it times no kernel")
    try:
        old = _earlier(options.compare)  # before a new one can take its place
        content = record.load(options.report) if options.report else None
    except (OSError, record.RecordError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if content is not None:
        _report(content, options.output)
        return _compared(old, content)
    if options.suites == ["host"]:
        from benchmarks import host  # here: it starts jax

        return host.run(options.output)
    import jax

    from benchmarks.runner import Run, Settings  # here: it starts jax

    has_gpu = jax.devices()[0].platform == "gpu"
    if options.require_gpu and not has_gpu:
        print(f"bench: JAX has no GPU here, but {jax.devices()}", file=sys.stderr)
        return 2
    suites = options.suites or (GPU_SUITES if has_gpu else CPU_SUITES)
    settings = Settings(
        cases=[case for name in suites for case in suite(name)],
        output=options.output,
        peers=options.peers,
        num_rounds=options.rounds,
        budget_s=options.budget,
        with_extras=not options.no_extras,
    )
    try:
        run = Run(settings)
    except ValueError as error:  # an unknown peer
        print(f"bench: {error}", file=sys.stderr)
        return 2
    content = run.execute()
    _report(content, options.output)
    failed = [case["name"] for case in content["cases"] if _failed(case)]
    if failed:
        print(f"bench: ours failed on {', '.join(failed)}", file=sys.stderr)
        return 1
    return _compared(old, content)


if __name__ == "__main__":
    sys.exit(main())
