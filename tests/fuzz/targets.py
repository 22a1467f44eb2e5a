# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: a reader, the good inputs to begin with, and what a reader may raise."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from _checkpoints import QUANTIZATION, quantized, write  # noqa: E402
from _schemes import AUTO_FP8, compressed_tensors, modelopt  # noqa: E402

from fuzz import custom_calls, mutate  # noqa: E402
from jax_fp8gemm import checkpoint  # noqa: E402
from jax_fp8gemm._src.native import (  # noqa: E402
    bundle,
    extension,
    gemm_problem,
    precompile,
    ranking,
    tuned,
)
from jax_fp8gemm._src.tools import cli  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
W = "m.q_proj.weight"
CONFIGS = (
    {"quantization_config": {**QUANTIZATION, "modules_to_not_convert": ["a"]}},
    {"quantization_config": AUTO_FP8},
    {"text_config": {"quantization_config": compressed_tensors("block")}},
    {"quantization_config": modelopt("FP8")},
    {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}},
    {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8_PB_WO"}},
)
PROBLEMS = (
    "4096x7168x2048",
    "64x136x256:rows:accumulate:result=f32:lhs=e5m2",
    "masked:1024x4096x7168:groups=4:expected=192:unspecified",
    "contiguous:512x256x384:groups=4",
    "k_grouped:72x136x512:groups=4",
    "ragged:300x256x384:groups=4:rhs=e5m2",
)
COMMANDS = (
    ["explain", PROBLEMS[1], "--top", "2", "--no-code"],
    ["explain", "64", "136", "256", "--no-code", "--num-sms", "64"],
    ["precompile", *PROBLEMS[:2], "--jobs", "2", "--result", "f32", "--gpu", "H100"],
    ["precompile", "--file", "problems.txt"],
    ["tune", PROBLEMS[0], "--rounds", "2", "--budget", "1", "--output", "table.json"],
    ["cache", "verify"],
    ["cache", "import", "problems.txt"],
)
TOKENS = (
    "\n",
    *(word for command in COMMANDS for word in command),
    *("--help", "--lhs", "--rhs", "--accumulate", "e5m2", "--", "-1", "clear", "--version"),
)


class Target(NamedTuple):
    """A reader.

    seeds: Good inputs.
    attempt: Gives it an input; raises where it does what it must not.
    change: Changes what an input is made of, where that is more than bytes; a ValueError leaves
        an input to libFuzzer.
    words: What libFuzzer may put into an input.
    """

    seeds: Sequence[bytes]
    attempt: Callable[[bytes], object]
    change: Callable[[random.Random, bytes], bytes] | None = None
    words: Sequence[str] = ()


class FaultError(Exception):
    """A reader did what it must not."""


def _json_seeds(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _load(folder: Path) -> None:
    try:
        checkpoint.load(folder)
    except (FileNotFoundError, TypeError, ValueError) as error:
        if not str(error).startswith("checkpoint"):
            raise FaultError("refused in other words") from error


def _good_checkpoint(folder: Path, scale_suffix: str = "_scale_inv") -> None:
    values, scales, _ = quantized(np.random.default_rng(0), (4, 8))
    write(folder, {W: values, W + scale_suffix: scales, "norm": np.ones(3, np.float32)})


def _file_of_checkpoint(folder: Path, name: str, seeds: Sequence[bytes]) -> Target:
    def attempt(data: bytes) -> None:
        (folder / name).write_bytes(data)
        _load(folder)

    return Target(seeds, attempt, mutate.change_text)


def safetensors(folder: Path) -> Target:
    """Files of tensors: their headers, and where their data begin and end."""
    _good_checkpoint(folder)

    def change(rng: random.Random, data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        text = mutate.change_text(rng, data[8:end])
        return len(text).to_bytes(8, "little") + text + data[end:]

    seeds = [(folder / FILE).read_bytes()]
    return _file_of_checkpoint(folder, FILE, seeds)._replace(change=change)


def index(folder: Path) -> Target:
    """Indices of checkpoints."""
    _good_checkpoint(folder)
    names = {W: FILE, W + "_scale_inv": FILE, "norm": FILE}
    seeds = _json_seeds({"metadata": {"total_size": 9}, "weight_map": names})
    return _file_of_checkpoint(folder, INDEX, seeds)


def config(folder: Path) -> Target:
    """config.json of checkpoints of every scheme, and ModelOpt's file beside it."""
    codes, exponents = np.zeros((1, 8, 2, 16), np.uint8), np.full((1, 8, 2), 127, np.uint8)
    _good_checkpoint(folder / "inverse")
    _good_checkpoint(folder / "scale", "_scale")
    _good_checkpoint(folder / "modelopt", "_scale")
    (folder / "modelopt" / CONFIG).unlink()
    write(folder / "mxfp4", {"experts.up_blocks": codes, "experts.up_scales": exponents})
    names = {name: CONFIG for name in ("inverse", "scale", "mxfp4")}
    names["modelopt"] = "hf_quant_config.json"

    def attempt(data: bytes) -> None:
        for place, name in names.items():
            (folder / place / name).write_bytes(data)
            _load(folder / place)

    return Target(_json_seeds(*CONFIGS), attempt, mutate.change_text)


def tuned_table(folder: Path) -> Target:
    """Tables of tuned configurations."""
    timed = {"config": "1d2d.m64n128.w1.s7.c1x1.e4m3.e4m3.bf16", "microseconds": 3.5}
    problem = gemm_problem.parse("64x256x384")
    entry = tuned.Entry(tuned.Timed(**timed), tuned.Timed(**timed), tuned.Timed(**timed))
    path = folder / "table.json"
    tuned.write(path, tuned.Table("0", "H100", "13", "13", "2026-01-01", "m", {problem: entry}))
    seeds = [path.read_bytes()]

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(tuned.TableError):
            tuned.read(path)

    return Target(seeds, attempt, mutate.change_text)


def bundles(folder: Path) -> Target:
    """Lists of kernels in bundles, under a digest that is right."""
    configs, image = extension.core().quantize_configs()[:3], b"machine code"
    keys = [extension.core().cache_key(config) for config in configs]
    seeds = _json_seeds(
        [
            {"config": config, "key": key, "size_bytes": len(image)}
            for config, key in zip(configs, keys, strict=True)
        ]
    )
    path = folder / "kernels.bundle"

    def attempt(data: bytes) -> None:
        content = data + b"\n" + image * len(configs)
        digest = hashlib.sha256(content).hexdigest().encode()
        path.write_bytes(b"\n".join([bundle._FORMAT, digest, content]))
        with contextlib.suppress(ValueError):
            if stored := [config for config in bundle.unpack(path) if config not in configs]:
                raise FaultError(f"took {stored}")

    return Target(seeds, attempt, mutate.change_text)


def problem_word(_: Path) -> Target:
    """Words of problems, and the heuristics' answer to those that are right."""

    def attempt(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            word = data.decode(errors="surrogateescape")
            ranking.rank(gemm_problem.parse(word), backend="cuda")

    pieces = {piece for word in PROBLEMS for piece in re.split(r"[:=x]", word) if piece}
    return Target([word.encode() for word in PROBLEMS], attempt, words=sorted(pieces))


def kernel_key(_: Path) -> Target:
    """Keys of kernels, as C++ decodes them; one that it takes is what it writes."""
    core = extension.core()
    keys = [*core.candidate_configs(), *core.quantize_configs()]

    def attempt(data: bytes) -> None:
        try:
            source = core.kernel_source(data.decode(errors="surrogateescape"))
        except (RuntimeError, TypeError, ValueError):  # TypeError: a surrogate
            return
        if "__global__" not in source and "template" not in source:
            raise FaultError(f"no kernel: {source!r}")

    return Target([key.encode() for key in keys], attempt)


def problem_fields(_: Path) -> Target:
    """Fields of problems, as C++ decodes those of a custom call too."""
    core = extension.core()

    def attempt(data: bytes) -> None:
        try:
            fields, backend = json.loads(data)
        except (RecursionError, TypeError, ValueError):
            return
        with contextlib.suppress(KeyError, RuntimeError, TypeError, ValueError):
            core.ranked_configs(fields, backend)

    seeds = [
        (gemm_problem.parse(word)._asdict(), backend)
        for word in PROBLEMS
        for backend in ("cuda", "sim")
    ]
    return Target(_json_seeds(*seeds), attempt, mutate.change_text)


def custom_call(folder: Path) -> Target:
    """Attributes, operands and results of custom calls, as XLA hands them to the simulator's."""
    return Target(custom_calls.seeds(), custom_calls.target(folder), custom_calls.change)


def command_line(folder: Path) -> Target:
    """Arguments of the command line. Nothing is compiled, measured or looked up on a GPU."""
    (folder / "problems.txt").write_text("\n".join(PROBLEMS))

    def attempt(data: bytes) -> None:
        arguments = data.decode(errors="surrogateescape").split("\n")
        is_simulated = any(len(word) > 2 and "--simulate".startswith(word) for word in arguments)
        if arguments[0] in ("bench", "doctor") or is_simulated:
            return
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                status = cli.main([*arguments, *["--no-code"] * (arguments[0] == "explain")])
        except SystemExit as end:
            status = end.code
        if status not in (0, 1, 2):
            raise FaultError(f"exit status {status}")

    return Target(["\n".join(words).encode() for words in COMMANDS], attempt, words=TOKENS)


TARGETS: dict[str, Callable[[Path], Target]] = {
    target.__name__: target
    for target in (
        safetensors,
        index,
        config,
        tuned_table,
        bundles,
        problem_word,
        kernel_key,
        problem_fields,
        custom_call,
        command_line,
    )
}


def _compile_nothing(keys: Any, jobs: int) -> Iterator[Any]:
    del keys, jobs
    yield from ()


@contextlib.contextmanager
def opened(name: str) -> Iterator[Target]:
    """Yields a target, in a folder with a kernel cache of its own."""
    with (
        mock.patch.object(precompile, "compile_keys", _compile_nothing),
        mock.patch.object(bundle, "write"),
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {"JAX_FP8GEMM_CACHE_DIR": str(Path(folder) / "cache")}),
    ):
        yield TARGETS[name](Path(folder))


def corpus(name: str) -> list[bytes]:
    """Returns what reaches more of the code of a target than its seeds."""
    path = CORPUS / f"{name}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line).encode("latin-1") for line in lines]
