# SPDX-License-Identifier: Apache-2.0
"""Runs suites: prepares the peers of a case, checks results, samples in turns, keeps record."""

import concurrent.futures
import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import environment, extras, limits, record
from benchmarks.cases import BenchCase
from benchmarks.operands import Operands, operands_for
from benchmarks.peer import NotApplicableError, Peer, PeerMissingError, Prepared
from benchmarks.peers import all_peers
from jax_fp8gemm._src.tools.progress import progress
from jax_fp8gemm._src.tools.tuning import operands as tuning_operands
from jax_fp8gemm._src.tools.tuning import sampling, timers

_WARM_UPS = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    cases: Sequence[BenchCase]
    output: Path
    peers: Sequence[str] = ()  # names; all where empty
    num_rounds: int = 20
    budget_s: float = float("inf")
    with_extras: bool = True


class Run:
    """One run and its record."""

    def __init__(self, settings: Settings) -> None:
        """Looks at machine and peers; prints what makes the numbers doubtful."""
        self._settings = settings
        self._deadline = time.monotonic() + settings.budget_s
        self._environment = environment.describe()
        self._platform = self._environment.platform
        self._timer = timers.best_timer(self._platform)
        if self._platform == "gpu" and isinstance(self._timer, timers.WallTimer):
            self._environment = self._environment.warned(timers.WITHOUT_CUPTI)
        self._peers = self._choose(all_peers(self._platform))
        self.record = {
            "format": record.FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": sys.argv[1:],
            "environment": self._environment.as_record(),
            "limits": {},
            "peers": {peer.name: self._describe(peer) for peer in self._peers},
            "cases": [],
            "extras": {},
        }

    def execute(self) -> dict:
        """Runs everything within the budget, saving after each case; returns the record."""
        env = self._environment
        print(f"{env.device}, driver {env.driver}, commit {env.commit}, {self._timer.method}")
        for warning in env.warnings:
            print(f"WARNING: {warning}")
        for name, peer in self.record["peers"].items():
            if peer["missing"]:
                print(f"missing: {name}: {peer['missing']}")
        if not self._is_over():
            self.record["limits"] = limits.measure(self._timer, self._platform)
        cases = self._settings.cases
        for index, case in enumerate(progress(cases, "bench", len(cases))):
            self._add(case)
            # After the first suite, so that a budget leaves them in.
            ends_first = case.suite == cases[0].suite != cases[min(index + 1, len(cases) - 1)].suite
            if self._settings.with_extras and (ends_first or index == len(cases) - 1):
                self._add_extras()
        if self._platform == "gpu":
            self._warn_afterwards()
        self._save()
        return self.record

    def _choose(self, peers: list[Peer]) -> list[Peer]:
        wanted = self._settings.peers
        unknown = set(wanted) - {peer.name for peer in peers}
        if unknown:
            names = ", ".join(peer.name for peer in peers)
            raise ValueError(f"no peer {', '.join(sorted(unknown))} here: choose of {names}")
        return [peer for peer in peers if not wanted or peer.name in wanted or peer.name == "ours"]

    def _describe(self, peer: Peer) -> dict:
        try:
            peer.probe()
            missing = ""
        except PeerMissingError as error:
            missing = str(error)
        return {"label": peer.label, "semantics": peer.semantics, "missing": missing}

    def _is_over(self) -> bool:
        return time.monotonic() > self._deadline

    def _not_reached(self) -> dict[str, str]:
        reason = f"the budget of {self._settings.budget_s:g} s was spent"
        return {"status": "not reached", "reason": reason}

    def _save(self) -> None:
        record.save(self.record, self._settings.output / "record.json")

    def _add(self, case: BenchCase) -> None:
        entry = dataclasses.asdict(case) | {
            "flops": case.flops,
            "bytes": case.bytes,
            "published": dict(case.published),
        }
        if self._is_over():
            entry["results"] = {peer.name: self._not_reached() for peer in self._peers}
        else:
            entry["results"], entry["gpu_under_load"] = self._results(case)
        self.record["cases"].append(entry)
        self._save()
        if self._platform == "gpu":
            jax.clear_caches()  # programs keep device memory

    def _results(self, case: BenchCase) -> tuple[dict[str, dict], dict[str, str]]:
        """Returns what became of every peer, and what nvidia-smi says while ours runs."""
        operands = operands_for(case)
        prepared: dict[str, Prepared] = {}
        results: dict[str, dict] = {}
        for peer in self._peers:
            if self._is_over():
                results[peer.name] = self._not_reached()
                continue
            try:
                prepared[peer.name], results[peer.name] = self._prepare(peer, operands)
            except NotApplicableError as error:
                results[peer.name] = {"status": "not applicable", "reason": str(error)}
            except PeerMissingError as error:
                results[peer.name] = {"status": "missing", "reason": str(error)}
            except Exception as error:  # a peer may fail in any way; the record says how
                reason = f"{type(error).__name__}: {error}"[:500]
                results[peer.name] = {"status": "failed", "reason": reason}
        if not prepared:
            return results, {}
        samplers = {
            name: lambda call=call: self._timer.sample(call) for name, call in prepared.items()
        }
        taken, failures = sampling.sample_rounds(
            samplers, self._settings.num_rounds, lambda: not self._is_over()
        )
        for name, reason in failures.items():
            results[name] = {"status": "failed", "reason": reason[:500]}
        for name, seconds in taken.items():
            results[name] |= {"samples_s": seconds, "summary": sampling.summary(seconds)}
        self._print(case, results)
        measured = [n for n, result in results.items() if result["status"] == "measured"]
        return results, self._under_load(prepared[measured[0]]) if measured else {}

    def _under_load(self, call: Prepared) -> dict[str, str]:
        """Asks for clocks and power while a call is repeated: between calls the GPU is idle."""
        if self._platform != "gpu":
            return {}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(environment.query_gpu)
            while not answer.done():
                call.finish(call.start())
        return answer.result()

    def _prepare(self, peer: Peer, operands: Operands) -> tuple[Prepared, dict]:
        """Prepares, warms up and checks a peer on a case."""
        if operands.case.kind not in peer.kinds:
            raise NotApplicableError(f"has no {operands.case.kind}")
        missing = self.record["peers"][peer.name]["missing"]
        if missing:
            raise PeerMissingError(missing)
        call = peer.prepare(operands)
        out = call.start()
        call.finish(out)
        # The first result: later ones of a weight gradient add to it.
        error = operands.error_of(call.rows(out, operands.checked_rows))
        if peer.same_product:
            tuning_operands.check_error(error)
        for _ in range(_WARM_UPS):
            call.finish(call.start())
        kernels = [name for name, _ in self._timer.kernels(call)]
        notes = call.notes | ({"kernels": kernels} if kernels else {})
        return call, {
            "status": "measured",
            "method": self._timer.method,
            "relative_error": error,
            "notes": notes,
        }

    def _print(self, case: BenchCase, results: dict[str, dict]) -> None:
        parts = []
        for name, result in results.items():
            if result["status"] == "measured":
                parts.append(f"{name} {result['summary']['median'] * 1e6:.1f} us")
            elif result["status"] == "failed":
                parts.append(f"{name} FAILED ({result['reason'][:60]})")
        print(f"{case}: " + ", ".join(parts), flush=True)

    def _add_extras(self) -> None:
        """Adds what fits in the budget, once; a failure is recorded in place of the numbers."""
        if self.record["extras"]:
            return
        platform, timer = self._platform, self._timer
        parts = {
            "host_cost": lambda: extras.host_cost(platform),
            "quantizer": lambda: extras.quantizer(timer, platform),
            "mlp": lambda: extras.mlp_steps(timer, platform),
            "moe": lambda: extras.moe_steps(timer, platform),
            "compile": lambda: extras.compile_times(self._settings.cases),
        }
        for name, part in parts.items():
            if self._is_over():
                self.record["extras"][name] = {"not reached": "the budget was spent"}
                continue
            try:
                self.record["extras"][name] = part()
            except Exception as error:  # recorded, so that the cases are not lost
                self.record["extras"][name] = {"failed": f"{type(error).__name__}: {error}"[:500]}

    def _warn_afterwards(self) -> None:
        found = {
            words
            for c in self.record["cases"]
            for words in environment.slowdowns(c.get("gpu_under_load", {}))
        }
        for words in sorted(found):
            text = f"the GPU was slowed down during the run: {words}"
            print(f"WARNING: {text}")
            self.record["environment"]["warnings"].append(text)
