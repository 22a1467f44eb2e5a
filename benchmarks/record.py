# SPDX-License-Identifier: Apache-2.0
"""The record of a run: JSON with everything that tables and plots are made of. See README.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_fp8gemm._src.native import files

FORMAT = 1
PLATFORMS = ("gpu", "cpu")
# What became of a peer on a case.
STATUSES = ("measured", "missing", "failed", "not applicable", "not reached")
_TOP = {
    "format": int,
    "created": str,
    "command": list,
    "environment": dict,
    "limits": dict,
    "peers": dict,
    "cases": list,
    "extras": dict,
}
_ENVIRONMENT = {
    "platform": str,
    "device": str,
    "driver": str,
    "versions": dict,
    "commit": str,
    "clocks": dict,
    "warnings": list,
}
_CASE = {"suite": str, "name": str, "m": int, "n": int, "k": int, "kind": str}
_CASE |= {"flops": int, "bytes": int, "published": dict, "results": dict}
_MEASURED = {"method": str, "samples_s": list, "summary": dict}


class RecordError(ValueError):
    """A record breaks the schema; the message says where."""


def _fields(where: str, value: Any, fields: Mapping[str, type]) -> None:
    if not isinstance(value, dict):
        raise RecordError(f"{where} must be an object, got {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise RecordError(f"{where} has no {name!r}")
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            got = type(value[name]).__name__
            raise RecordError(f"{where}.{name} must be {kind.__name__}, got {got}")


def _result(where: str, result: Any) -> None:
    _fields(where, result, {"status": str})
    if result["status"] not in STATUSES:
        raise RecordError(f"{where}.status must be one of {STATUSES}, got {result['status']!r}")
    if result["status"] == "measured":
        _fields(where, result, _MEASURED)
        if not result["samples_s"]:
            raise RecordError(f"{where}.samples_s is empty")
    elif result["status"] != "not applicable" and not result.get("reason"):
        raise RecordError(f"{where} is {result['status']} and gives no reason")


def validate(record: Any) -> None:
    """Checks a record.

    Raises:
        RecordError: It breaks the schema.
    """
    _fields("record", record, _TOP)
    if record["format"] != FORMAT:
        raise RecordError(f"record.format must be {FORMAT}, got {record['format']}")
    _fields("environment", record["environment"], _ENVIRONMENT)
    if record["environment"]["platform"] not in PLATFORMS:
        raise RecordError(f"environment.platform must be one of {PLATFORMS}")
    for name, peer in record["peers"].items():
        _fields(f"peers.{name}", peer, {"label": str, "semantics": str})
    for index, case in enumerate(record["cases"]):
        _fields(f"cases[{index}]", case, _CASE)
        for name, result in case["results"].items():
            if name not in record["peers"]:
                raise RecordError(f"cases[{index}].results names {name!r}, which is no peer")
            _result(f"cases[{index}].results.{name}", result)


def save(record: dict, path: Path) -> None:
    """Validates and writes a record, whole or not at all."""
    validate(record)
    files.write(path, (json.dumps(record, indent=1) + "\n").encode())


def load(path: Path) -> dict:
    """Reads and validates a record.

    Raises:
        RecordError: The file is not JSON or breaks the schema; the message names it.
    """
    try:
        content = json.loads(path.read_text())
        validate(content)
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: not JSON: {error}") from error
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    return content
