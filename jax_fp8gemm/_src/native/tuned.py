# SPDX-License-Identifier: Apache-2.0
"""Tuned tables: which configuration measured fastest for a problem, one JSON file per GPU model.

The package's own tables are in its folder `tuned`; JAX_FP8GEMM_TUNED names a user's, which goes
before. A table of another package version or GPU model is not used. docs/tuning.md has the schema.
"""

import functools
import json
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jax_fp8gemm._src.native import environment, extension, files, gemm_problem
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.native.version import __version__

FORMAT = 1
FOLDER = pathlib.Path(__file__).parents[2] / "tuned"

# What describe_config calls the fields of a problem that a configuration is made for.
_CONFIG_FIELDS = {
    "kind": "kind",
    "scaling": "scaling",
    "a_dtype": "a_type",
    "b_dtype": "b_type",
    "d_dtype": "d_type",
    "accumulate": "accumulate",
}


class TableError(ValueError):
    """A file is no tuned table; the message names the file and the field."""


class Timed(NamedTuple):
    """A configuration and its measured time."""

    config: str
    microseconds: float


class Entry(NamedTuple):
    """What was measured for one problem.

    Attributes:
        best: The fastest configuration.
        runner_up: The second fastest; None where only one was measured.
        model: What the cost model had chosen; None where it was not measured.
    """

    best: Timed
    runner_up: Timed | None = None
    model: Timed | None = None


class Table(NamedTuple):
    """One file. `created` is a date as ISO 8601 writes it, `method` how times were taken."""

    package: str
    gpu: str
    driver: str
    nvrtc: str
    created: str
    method: str
    entries: Mapping[Problem, Entry]


# What JSON has of them.
_TOP = {"format": int, **Table.__annotations__, "entries": list}
_TIMED = Timed.__annotations__
_ENTRY = {"problem": dict, **_TIMED, "runner_up": dict, "model": dict}


def read(path: pathlib.Path) -> Table:
    """Reads and checks a table.

    Raises:
        TableError: It cannot be read, is not JSON, or a field is missing or wrong.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise TableError(f"{path}: {error}") from None
    try:
        return _table(content)
    except ValueError as error:
        raise TableError(f"{path}: {error}") from None


def write(path: pathlib.Path, table: Table) -> None:
    """Writes a table, whole or not at all, an entry per line in a fixed order."""
    head = {"format": FORMAT, **table._asdict()}
    del head["entries"]
    lines = [json.dumps(_entry_fields(p, table.entries[p])) for p in sorted(table.entries)]
    text = json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + ",\n".join(lines) + "\n]}\n"
    files.write(path, text.encode())


def lookup(problem: Problem, gpu: str) -> Entry | None:
    """Returns what is known of a problem on a GPU model, or None.

    The same for the life of the process: files are read once.

    Raises:
        TableError: A table is damaged, or the one that the user named is missing.
    """
    return _entries(environment.tuned(), gpu).get(problem)


def count(gpu: str) -> int:
    """Returns how many problems the tables in force know for a GPU model."""
    return len(_entries(environment.tuned(), gpu))


def clear() -> None:
    """Forgets what was read."""
    _entries.cache_clear()


def why_not_used(table: Table, gpu: str) -> str:
    """Returns why a table must not be used here; empty if it may."""
    if table.package != __version__:
        return f"it is for version {table.package} of the package, this is {__version__}"
    if table.gpu != gpu:
        return f"it is for {table.gpu}, this GPU is {gpu}"
    return ""


@functools.cache
def _entries(chosen: pathlib.Path | None, gpu: str) -> dict[Problem, Entry]:
    """Returns the entries for a GPU model: the package's, and over them those of a user's file."""
    if chosen is environment.NO_TABLES:
        return {}
    entries: dict[Problem, Entry] = {}
    for path in sorted(FOLDER.glob("*.json")):
        table = read(path)
        # Beside the table of this GPU the package has others.
        if table.gpu == gpu:
            entries |= _used(path, table, gpu)
    if chosen is not None:
        entries |= _used(chosen, read(chosen), gpu)
    return entries


def _used(path: pathlib.Path, table: Table, gpu: str) -> Mapping[Problem, Entry]:
    """Returns a table's entries, or none and a warning."""
    if reason := why_not_used(table, gpu):
        warnings.warn(f"jax_fp8gemm: {path} is ignored: {reason}", RuntimeWarning, stacklevel=2)
        return {}
    return table.entries


# ---- The schema ----------------------------------------------------------------------------------


def _table(content: Any) -> Table:
    _require("the file", content, _TOP)
    if content["format"] != FORMAT:
        raise ValueError(f"format must be {FORMAT}, got {content['format']}")
    entries: dict[Problem, Entry] = {}
    for index, fields in enumerate(content["entries"]):
        op_name = f"entries[{index}]"
        problem, entry = _entry(op_name, fields)
        if problem in entries:
            raise ValueError(f"{op_name}.problem is there twice: {problem}")
        entries[problem] = entry
    heads = {name: content[name] for name in Table._fields if name != "entries"}
    return Table(**heads, entries=entries)


def _entry(op_name: str, fields: Any) -> tuple[Problem, Entry]:
    # JSON has null for what was not measured.
    absent = [n for n in ("runner_up", "model") if isinstance(fields, dict) and not fields.get(n)]
    present = {name: kind for name, kind in _ENTRY.items() if name not in absent}
    _require(op_name, fields, present)
    try:
        problem = gemm_problem.from_fields(fields["problem"])
    except ValueError as error:
        raise ValueError(f"{op_name}.problem.{error}") from None
    best = _timed(op_name, fields, problem)
    others = {
        name: _timed(f"{op_name}.{name}", fields[name], problem)
        for name in ("runner_up", "model")
        if name in present
    }
    return problem, Entry(best, **others)


def _timed(op_name: str, fields: Any, problem: Problem) -> Timed:
    _require(op_name, fields, _TIMED)
    config, microseconds = fields["config"], float(fields["microseconds"])
    if not 0 < microseconds < float("inf"):
        raise ValueError(f"{op_name}.microseconds must be positive, got {microseconds}")
    try:
        described = extension.core().describe_config(config)
    except (RuntimeError, TypeError) as error:  # TypeError: half of a surrogate pair
        raise ValueError(f"{op_name}.config: {error}") from None
    computes = all(described[c] == getattr(problem, p) for p, c in _CONFIG_FIELDS.items())
    if described["pdl"] or not computes:
        raise ValueError(f"{op_name}.config: {config} is not for {problem}")
    return Timed(config, microseconds)


def _require(op_name: str, value: Any, fields: Mapping[str, type]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{op_name} must be an object, got {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{op_name} has no {name}")
        got = value[name]
        is_number = kind is float and isinstance(got, int) and not isinstance(got, bool)
        if not isinstance(got, kind) and not is_number:
            wanted = kind.__name__
            raise ValueError(f"{op_name}.{name} must be {wanted}, got {type(got).__name__}")


def _entry_fields(problem: Problem, entry: Entry) -> dict[str, Any]:
    return {
        "problem": problem._asdict(),
        **entry.best._asdict(),
        "runner_up": entry.runner_up and entry.runner_up._asdict(),
        "model": entry.model and entry.model._asdict(),
    }


def best_of(times: Iterable[Timed], model: str) -> Entry:
    """Returns the entry for a problem from the times of its configurations.

    Args:
        times: At least one.
        model: What the cost model chooses.
    """
    ordered = sorted(times, key=lambda timed: timed.microseconds)
    modelled = next((timed for timed in ordered if timed.config == model), None)
    return Entry(ordered[0], ordered[1] if len(ordered) > 1 else None, modelled)
