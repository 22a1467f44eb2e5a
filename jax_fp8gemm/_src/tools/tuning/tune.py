# SPDX-License-Identifier: Apache-2.0
"""Measures every configuration of a problem, in turns, and keeps what was measured.

Two files: the table that the heuristics use (native/tuned.py), and beside it the measurements, with
every sample of every configuration, which calibrate the model.
"""

import datetime
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax_fp8gemm._src.native import extension, files, gemm_problem, precompile, ranking, tuned
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.native.version import __version__
from jax_fp8gemm._src.tools.progress import progress
from jax_fp8gemm._src.tools.tuning import gpu_state, sampling, timers
from jax_fp8gemm._src.tools.tuning import operands as tuning_operands

FORMAT = 1
SIMULATOR = "simulator"
# Part of the name of every kernel of this package.
_KERNEL = "sm90_fp8_gemm"
_WARM_UPS = 2


class CannotTuneError(RuntimeError):
    """This machine or these files allow no measurement; the message says why."""


class Settings(NamedTuple):
    """How to measure.

    Attributes:
        rounds: Samples of each configuration.
        top: Measure only so many configurations, best by the model; None for all.
        jobs: Kernels compiled at a time.
        simulate: In the simulator: a dry run, whose numbers say nothing of a GPU.
        deadline: `time.monotonic()` after which no further problem or round begins.
    """

    rounds: int = 20
    top: int | None = None
    jobs: int = 4
    simulate: bool = False
    deadline: float = float("inf")

    @property
    def backend(self) -> str:
        """The implementation that is measured."""
        return "sim" if self.simulate else "cuda"


class Machine(NamedTuple):
    """What measures, as both files name it."""

    gpu: str
    driver: str
    nvrtc: str
    method: str
    warnings: tuple[str, ...]


class Result(NamedTuple):
    """One configuration on one problem: samples in microseconds, or why there are none."""

    config: str
    predicted: float
    samples: tuple[float, ...] = ()
    failed: str = ""

    @property
    def microseconds(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)


class Measured(NamedTuple):
    """All configurations of one problem, best by the model first."""

    problem: Problem
    results: tuple[Result, ...]

    def entry(self) -> tuned.Entry | None:
        """Returns the entry of a table; None if no configuration ran."""
        ran = [tuned.Timed(r.config, r.microseconds) for r in self.results if r.samples]
        return tuned.best_of(ran, self.results[0].config) if ran else None


class Measurements(NamedTuple):
    """One file of measurements."""

    machine: Machine
    package: str
    created: str
    simulated: bool
    problems: tuple[Measured, ...]


def machine(simulate: bool) -> tuple[Machine, Any]:
    """Returns what measures, and its timer.

    Raises:
        CannotTuneError: There is no Hopper GPU that JAX uses, and none is to be simulated.
    """
    core = extension.core()
    if simulate:
        timer = timers.WallTimer()
        warning = "simulated on a CPU: these are no times of a GPU"
        return Machine(SIMULATOR, "none", "none", timer.method, (warning,)), timer
    gpu = extension.planning_gpu("cuda")
    try:
        info = core.device_info()
        nvrtc = core.nvrtc_version()
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise CannotTuneError(f"there is no usable Hopper GPU: {reason}") from None
    if not gpu:
        raise CannotTuneError("JAX finds no CUDA device; install jax[cuda13] or jax[cuda12]")
    if info["compute_capability"] != (9, 0):
        raise CannotTuneError(f"{gpu} is no Hopper GPU")
    major, minor = divmod(info["driver_version"], 1000)
    state = gpu_state.query_gpu()
    found = gpu_state.warnings_about(state, gpu_state.other_processes())
    timer = timers.best_timer("gpu")
    if isinstance(timer, timers.WallTimer):
        found.append(timers.WITHOUT_CUPTI)
    driver = f"{state.get('driver', 'unknown')}, CUDA {major}.{minor // 10}"
    return Machine(gpu, driver, "{}.{}".format(*nvrtc), timer.method, tuple(found)), timer


def seen_after(used: Machine) -> Machine:
    """Returns what measures with warnings of what slows its GPU down now, after a problem."""
    now = gpu_state.slowdowns(gpu_state.query_gpu())
    texts = (f"the GPU was slowed down during the run: {words}" for words in now)
    new = (text for text in texts if text not in used.warnings)
    return used._replace(warnings=(*used.warnings, *new))


def configurations(problem: Problem, settings: Settings) -> list[tuple[str, float]]:
    """Returns keys and modelled microseconds of what is to be measured, best by the model first."""
    ranked = ranking.rank(problem, backend=settings.backend, gpu="")
    return [(c["config"], c["microseconds"]) for c in ranked[: settings.top]]


def measure(
    problems: Sequence[Problem],
    settings: Settings,
    timer: Any,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Measured]:
    """Yields the measurements of one problem after the other, until the deadline."""
    chosen = {problem: configurations(problem, settings) for problem in problems}
    if not settings.simulate:
        keys = sorted({key for configs in chosen.values() for key, _ in configs})
        compiled = precompile.compile_keys(keys, settings.jobs)
        for done in progress(compiled, "compile", len(keys)):
            say(str(done))
    for problem, configs in chosen.items():
        if time.monotonic() > settings.deadline:
            say(f"{problem}: not reached")
            continue
        if settings.simulate and problem.flops > 2 * tuning_operands.MAX_SIMULATED_MACS:
            say(f"{problem}: too large to simulate")
            continue
        yield _measure_one(problem, configs, settings, timer)


def _measure_one(
    problem: Problem, configs: Sequence[tuple[str, float]], settings: Settings, timer: Any
) -> Measured:
    given = tuning_operands.operands(problem)
    expected = tuning_operands.reference(problem, given)
    calls, failures = {}, {}
    for key, _ in configs:
        try:
            calls[key] = _prepared(problem, given, key, settings.backend, expected)
        except Exception as error:  # recorded: a configuration may fail in any way
            failures[key] = f"{type(error).__name__}: {error}"[:500]
    samplers = {key: lambda call=call: _seconds(timer, call) for key, call in calls.items()}
    taken: dict[str, list[float]] = {}
    if samplers:
        taken, late = sampling.sample_rounds(
            samplers, settings.rounds, lambda: time.monotonic() < settings.deadline
        )
        failures |= {key: text[:500] for key, text in late.items()}
    results = [
        Result(
            key,
            predicted,
            tuple(round(seconds * 1e6, 4) for seconds in taken.get(key, ())),
            failures.get(key, ""),
        )
        for key, predicted in configs
    ]
    return Measured(problem, tuple(results))


def _prepared(problem: Problem, given: Any, key: str, backend: str, expected: Any) -> Any:
    """Returns a call that is compiled, warm and gives the right product."""
    call = tuning_operands.prepare(problem, given, key, backend)
    out = call.finish(call.start())
    # The first result: later ones of an accumulating problem add to it.
    tuning_operands.check_error(float(tuning_operands.relative_error(problem, out, expected)))
    for _ in range(_WARM_UPS):
        call.finish(call.start())
    return call


def _seconds(timer: Any, call: Any) -> float:
    """Returns the time of the kernel alone where the timer tells kernels apart."""
    if not isinstance(timer, timers.CuptiTimer):
        return timer.sample(call)
    kernels = timer.kernels(call)
    seconds = sum(seconds for name, seconds in kernels if _KERNEL in name)
    if not seconds:
        raise RuntimeError(f"the profiler saw none of our kernels, but {[n for n, _ in kernels]}")
    return seconds


# ---- The two files -------------------------------------------------------------------------------


def today() -> str:
    """Returns the date and time as ISO 8601 writes it, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def extend_table(path: pathlib.Path, used: Machine, measured: Sequence[Measured]) -> tuned.Table:
    """Writes what measured fastest into a table, beside what it holds of other problems.

    Raises:
        CannotTuneError: The numbers are of a simulator, or the table is of another GPU model or
            package version.
        TableError: The table is damaged.
    """
    if used.gpu == SIMULATOR:
        raise CannotTuneError("what a simulator took does not tune a GPU")
    entries = {}
    if path.exists():
        old = tuned.read(path)
        if reason := tuned.why_not_used(old, used.gpu):
            raise CannotTuneError(f"{path} is left alone: {reason}")
        entries |= old.entries
    entries |= {m.problem: entry for m in measured if (entry := m.entry())}
    new = tuned.Table(
        package=__version__,
        gpu=used.gpu,
        driver=used.driver,
        nvrtc=used.nvrtc,
        created=today(),
        method=used.method,
        entries=entries,
    )
    tuned.write(path, new)
    return new


def measurements(used: Machine, simulated: bool, measured: Sequence[Measured]) -> Measurements:
    """Returns the content of a file of measurements."""
    return Measurements(used, __version__, today(), simulated, tuple(measured))


def save(path: pathlib.Path, content: Measurements) -> None:
    """Writes measurements, whole or not at all."""
    fields = {
        "format": FORMAT,
        "package": content.package,
        "created": content.created,
        "simulated": content.simulated,
        "machine": content.machine._asdict(),
        "problems": [
            {
                "problem": m.problem._asdict(),
                "results": [r._asdict() | {"samples": list(r.samples)} for r in m.results],
            }
            for m in content.problems
        ],
    }
    files.write(path, (json.dumps(fields) + "\n").encode())


def _machine_of(fields: dict[str, Any]) -> Machine:
    values: dict[str, Any] = fields | {"warnings": tuple(fields["warnings"])}
    return Machine(**values)


def load(path: pathlib.Path) -> Measurements:
    """Reads measurements.

    Raises:
        ValueError: The file is damaged; the message names it.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}, got {content['format']}")
        return Measurements(
            machine=_machine_of(content["machine"]),
            package=content["package"],
            created=content["created"],
            simulated=content["simulated"],
            problems=tuple(
                Measured(
                    gemm_problem.from_fields(m["problem"]),
                    tuple(Result(**r | {"samples": tuple(r["samples"])}) for r in m["results"]),
                )
                for m in content["problems"]
            ),
        )
    except KeyError as error:
        raise ValueError(f"{path}: has no {error}") from None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
