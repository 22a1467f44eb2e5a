# SPDX-License-Identifier: Apache-2.0
"""Commands about the kernels of problems: explain, precompile and tune."""

import argparse
import pathlib
import re
import sys
import time
from typing import Any

from jax_fp8gemm._src.native import bundle, environment, extension, gemm_problem, ranking
from jax_fp8gemm._src.native import precompile as precompile_lib
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.tools.progress import progress

_FP8 = gemm_problem.FP8_DTYPES
_RESULTS = gemm_problem.RESULT_DTYPES


def _word(text: str) -> str:
    """Returns the text of a problem after checking its form."""
    try:
        gemm_problem.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an int of at least 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        if float(text) > 0:  # which nan is not
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")


def _num_sms(text: str) -> int:
    if _positive(text) > checks.MAX_NUM_SMS:
        raise argparse.ArgumentTypeError(f"must be at most {checks.MAX_NUM_SMS}, not {text}")
    return int(text)


def add_parsers(commands: Any) -> None:
    """Adds the commands to the parser of the command line."""
    kind = argparse.ArgumentParser(add_help=False)
    kind.add_argument("--lhs", choices=_FP8, help="dtype of lhs (default: e4m3)")
    kind.add_argument("--rhs", choices=_FP8, help="dtype of rhs (default: e4m3)")
    kind.add_argument(
        "--result", choices=_RESULTS, help="dtype of the result (default: bf16; f32 for k_grouped)"
    )
    kind.add_argument("--accumulate", action="store_true", help="with an accumulator")
    kind.add_argument(
        "--num-sms",
        type=_num_sms,
        help="SMs to plan for (default: those of the first GPU, or of an H100 SXM)",
    )
    plural = argparse.ArgumentParser(add_help=False)
    plural.add_argument(
        "problems", nargs="*", type=_word, metavar="PROBLEM", help=gemm_problem.SYNTAX
    )
    plural.add_argument("--file", type=pathlib.Path, help="a problem per line; # starts a comment")
    plural.add_argument("--jobs", type=_positive, default=4, help="compilers at a time")
    gpu = argparse.ArgumentParser(add_help=False)
    gpu.add_argument("--gpu", help="GPU model whose tuned table applies (default: the first GPU's)")
    _add_explain(commands, [kind, gpu])
    precompile = commands.add_parser(
        "precompile",
        parents=[plural, kind, gpu],
        help="compile the kernels of problems into the cache; needs no GPU",
    )
    precompile.add_argument(
        "--bundle",
        type=pathlib.Path,
        metavar="FILE",
        help="write them into one file as well, for `cache import FILE` on other machines",
    )
    precompile.set_defaults(run=_precompile_problems)
    _add_tune(commands, [plural, kind])


def _add_explain(commands: Any, parents: list) -> None:
    explain = commands.add_parser(
        "explain", parents=parents, help="show which kernel a problem gets, why, and its code"
    )
    explain.add_argument(
        "problem", nargs="+", help=f"{gemm_problem.SYNTAX}; or M N K of a dense problem"
    )
    explain.add_argument("--top", type=_positive, default=3, help="how many candidates to show")
    explain.add_argument(
        "--no-code", action="store_true", help="without compiling and disassembling the kernel"
    )
    explain.set_defaults(run=_explain_problem)


def _add_tune(commands: Any, parents: list) -> None:
    tune = commands.add_parser(
        "tune", parents=parents, help="measure every configuration and keep the fastest in a table"
    )
    tune.add_argument("--top", type=_positive, help="only the best so many by the model")
    tune.add_argument("--rounds", type=_positive, default=20, help="samples of each (default: 20)")
    tune.add_argument("--budget", type=_seconds, default=float("inf"), help="seconds at most")
    tune.add_argument(
        "--output",
        type=pathlib.Path,
        help=f"the table (default: what {environment.TUNED} names, or one named after the"
        " GPU); the measurements go beside it",
    )
    tune.add_argument(
        "--simulate",
        action="store_true",
        help="a dry run of small problems in the simulator; writes no table",
    )
    tune.set_defaults(run=_tune_problems)


# ---- Problems ------------------------------------------------------------------------------------


class _UsageError(Exception):
    """What the user asked for cannot be; the message says why."""


def _defaults(options: argparse.Namespace, num_sms: int) -> dict[str, Any]:
    """Returns the fields of a problem that the options set."""
    given = {
        "a_dtype": _FP8.get(options.lhs),
        "b_dtype": _FP8.get(options.rhs),
        "d_dtype": _RESULTS.get(options.result),
        "accumulate": options.accumulate or None,
    }
    return {"num_sms": num_sms} | {n: value for n, value in given.items() if value is not None}


def _problems(options: argparse.Namespace, backend: str = "cuda") -> list[Problem]:
    """Returns the problems of the command line and of --file, each once."""
    words = list(options.problems)
    try:
        if options.file:
            text = options.file.read_text()
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            words += [line for line in lines if line]
        defaults = _defaults(options, extension.planning_num_sms(backend, options.num_sms))
        problems = [gemm_problem.parse(word, **defaults) for word in words]
    except (OSError, UnicodeError) as error:
        raise _UsageError(f"--file: {options.file}: {error}") from None
    except ValueError as error:
        raise _UsageError(str(error)) from None
    if not problems:
        raise _UsageError(f"name at least one problem, or a --file of them: {gemm_problem.SYNTAX}")
    return list(dict.fromkeys(problems))


def _complain(command: str, error: Exception, status: int) -> int:
    print(f"{command}: {error}", file=sys.stderr)
    return status


# ---- Commands ------------------------------------------------------------------------------------


def _explain_problem(options: argparse.Namespace) -> int:
    from jax_fp8gemm._src.tools import (
        explain as explain_lib,  # here, so that --help loads no extension
    )

    words = options.problem
    if len(words) == 3 and all(word.isdecimal() for word in words):
        words = ["x".join(words)]
    try:
        if len(words) != 1:
            raise ValueError("explain takes one problem")
        defaults = _defaults(options, extension.planning_num_sms("cuda", options.num_sms))
        problem = gemm_problem.parse(words[0], **defaults)
        ranked = ranking.rank(problem, backend="cuda", gpu=options.gpu)
    except ValueError as error:
        return _complain("explain", error, 2)
    print("\n".join(explain_lib.lines(problem, ranked, options.top)))
    if not options.no_code:
        print("\n".join(explain_lib.code_lines(ranked[0]["config"])))
    return 0


def _precompile_problems(options: argparse.Namespace) -> int:
    try:
        # A program's kernels carry this mark where they launch with programmatic dependent launch.
        suffix = ".pdl" if environment.pdl() else ""
        problems = _problems(options)
        if options.bundle is not None:
            bundle.checked_path("precompile", options.bundle)
        configs = {p: precompile_lib.best_key(p, options.gpu) + suffix for p in problems}
    except (_UsageError, FileNotFoundError, RuntimeError, ValueError) as error:
        return _complain("precompile", error, 2)
    try:
        keys = sorted(set(configs.values()))
        compiled = precompile_lib.compile_keys(keys, options.jobs)
        for i, done in enumerate(progress(compiled, "compile", len(keys)), 1):
            print(f"[{i}/{len(keys)}] {done}", flush=True)
        if options.bundle is not None:
            bundle.write(options.bundle, keys)
            print(f"in {options.bundle}")
    except RuntimeError as error:
        return _complain("precompile", error, 1)
    directory = environment.cache_dir()
    if directory is None:
        print(environment.CACHE_IS_OFF, file=sys.stderr)
    elif refusal := extension.core().disk_cache_refusal():
        return _complain("precompile", RuntimeError(f"no kernel was kept: {refusal}"), 1)
    else:
        print(f"in {directory}")
    for problem, config in configs.items():
        print(f"{problem}: {config}")
    return 0


def _table_path(options: argparse.Namespace, gpu: str) -> pathlib.Path:
    """Returns where the table goes."""
    named = environment.tuned()
    if options.output:
        return options.output
    if named and named is not environment.NO_TABLES:
        return named
    return pathlib.Path(re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def _tune_problems(options: argparse.Namespace) -> int:
    from jax_fp8gemm._src.tools.tuning import (
        tune as tune_lib,  # here, so that --help loads no extension
    )

    settings = tune_lib.Settings(
        rounds=options.rounds,
        top=options.top,
        jobs=options.jobs,
        simulate=options.simulate,
        deadline=time.monotonic() + options.budget,
    )
    try:
        problems = _problems(options, settings.backend)
        machine, timer = tune_lib.machine(options.simulate)
    except _UsageError as error:
        return _complain("tune", error, 2)
    except tune_lib.CannotTuneError as error:
        print(f"tune: {error}; --simulate makes a dry run in the simulator", file=sys.stderr)
        return 1
    print(f"{machine.gpu}, driver {machine.driver}, NVRTC {machine.nvrtc}, {machine.method}")
    for warning in machine.warnings:
        print(f"WARNING: {warning}")
    path = _table_path(options, machine.gpu)
    measured = []
    try:
        results = tune_lib.measure(problems, settings, timer, print)
        for done in progress(results, "tune", len(problems)):
            measured.append(done)
            _show(done)
            before = machine.warnings
            machine = machine if options.simulate else tune_lib.seen_after(machine)
            for warning in machine.warnings[len(before) :]:
                print(f"WARNING: {warning}")
            # After each problem, so that what ends the run loses little.
            if not options.simulate:
                tune_lib.extend_table(path, machine, [done])
            if not options.simulate or options.output:
                tune_lib.save(
                    _beside(path), tune_lib.measurements(machine, options.simulate, measured)
                )
    except (tune_lib.CannotTuneError, RuntimeError, ValueError) as error:
        return _complain("tune", error, 1)
    if options.simulate:
        print("simulated: no table is written")
    else:
        print(f"written: {path}, {_beside(path)}; to use it: {environment.TUNED}={path}")
    return 0


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".measurements.json")


def _show(measured: Any) -> None:
    """Prints what was fastest, and what the model's choice cost."""
    entry = measured.entry()
    failed = [result for result in measured.results if result.failed]
    for result in failed:
        print(f"{measured.problem}: FAILED {result.config}: {result.failed}")
    if entry is None:
        print(f"{measured.problem}: no configuration ran")
        return
    best, model = entry.best, entry.model
    note = "the model's choice failed"
    if model:
        note = f"the model's choice took {model.microseconds / best.microseconds:.3f} times as long"
    print(f"{measured.problem}: {best.config} {best.microseconds:.2f} us; {note}")
