# SPDX-License-Identifier: Apache-2.0
"""Golden files: what a GPU made of every case, to which models and simulator are held for ever.

A file is JSON::

    {"format": 1,
     "machine": {"gpu": ..., "driver_cuda_version": ..., "nvrtc": ..., "date": ..., "commit": ...},
     "cases": {name: {"problem": digest of the inputs, "output": digest of the bytes,
                      "bytes": base64 of the zlib-compressed bytes; only where they are not what the
                               model says, so that the difference can be looked at}}}

Only `update_golden.py` writes one, and only from a run on a GPU.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from problems import Case

FORMAT = 1
FOLDER = Path(__file__).with_name("golden")
REQUIRED = ("gpu", "driver_cuda_version", "nvrtc", "date", "commit")


class GoldenError(ValueError):
    """A golden file is damaged or of another format; the message names file and field."""


def digest(data: bytes) -> str:
    """Returns a short digest of bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def problem_digest(case: Case) -> str:
    """Returns a digest of everything that a case gives to its kernel."""
    problem = case.problem
    parts = [case.kernel.encode(), problem.words.tobytes(), repr(problem.args).encode()]
    parts.append(f"{problem.out_words} {problem.num_ctas}".encode())
    for tensor in problem.tensors:
        shape = (tensor.shape, tensor.box, tensor.type, tensor.swizzle, tensor.pitch_bytes)
        parts += [repr(shape).encode(), tensor.memory().tobytes()]
    return digest(b"\0".join(parts))


def entry(case: Case, output: bytes) -> dict[str, str]:
    """Returns what a golden file says of one case."""
    result = {"problem": problem_digest(case), "output": digest(output)}
    if output != case.expected:
        result["bytes"] = base64.b64encode(zlib.compress(output, 9)).decode()
    return result


def write(path: Path, machine: Mapping[str, str], entries: Mapping[str, Mapping[str, str]]) -> None:
    """Writes a golden file.

    Raises:
        GoldenError: `machine` does not say which GPU it was.
    """
    for name in REQUIRED:
        if not machine.get(name):
            raise GoldenError(
                f"{path.name}: machine has no {name!r}: only a run on a GPU may write"
            )
    content = {"format": FORMAT, "machine": dict(machine), "cases": dict(sorted(entries.items()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> dict:
    """Reads and checks a golden file."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise GoldenError(f"{path.name}: not JSON: {error}") from error
    if content.get("format") != FORMAT:
        raise GoldenError(f"{path.name}: format must be {FORMAT}, got {content.get('format')!r}")
    for name in REQUIRED:
        if not content.get("machine", {}).get(name):
            raise GoldenError(f"{path.name}: machine has no {name!r}")
    for name, case in content.get("cases", {}).items():
        if not {"problem", "output"} <= case.keys():
            raise GoldenError(f"{path.name}: case {name!r} has no digests")
    return content


def output_bytes(case: Case, golden: Mapping[str, str]) -> bytes:
    """Returns the bytes that the GPU gave for a case."""
    if "bytes" not in golden:
        return case.expected
    return zlib.decompress(base64.b64decode(golden["bytes"]))
