# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: a reader, the good inputs that are changed, and what a reader may raise."""

import collections
import contextlib
import hashlib
import io
import json
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
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

FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
W = "m.q_proj.weight"
SCALES = ("_scale_inv", "_scale", "_scale_inv.of_another")
CONFIGS = (
    {"quantization_config": {**QUANTIZATION, "modules_to_not_convert": ["a"]}},
    {"quantization_config": AUTO_FP8},
    {"text_config": {"quantization_config": compressed_tensors("block")}},
    {"quantization_config": modelopt("FP8")},
    {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}},
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
    *(word for command in COMMANDS for word in command),
    *("--help", "--lhs", "--rhs", "--accumulate", "e5m2", "--", "-1", "clear", "--version"),
)

Try = Callable[[random.Random], None]


class FaultError(Exception):
    """A reader did what it must not."""


def _load(folder: Path) -> None:
    try:
        checkpoint.load(folder)
    except (FileNotFoundError, TypeError, ValueError) as error:
        if not str(error).startswith("checkpoint"):
            raise FaultError("refused in other words") from error


def _good_checkpoint(folder: Path) -> None:
    values, scales, _ = quantized(np.random.default_rng(0), (128, 256))
    write(folder, {W: values, W + "_scale_inv": scales, "norm": np.ones(3, np.float32)})


def safetensors(folder: Path) -> Try:
    """Headers of files, and where their data begin and end."""
    _good_checkpoint(folder)
    data = (folder / FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def attempt(rng: random.Random) -> None:
        text = mutate.json_bytes(rng, header)
        length = len(text) if rng.random() < 0.9 else rng.choice(mutate.NUMBERS) % 2**64
        content = length.to_bytes(8, "little") + text + body
        if rng.random() < 0.1:
            content = mutate.change_bytes(rng, data)
        (folder / FILE).write_bytes(content)
        _load(folder)

    return attempt


def _json_file(folder: Path, name: str, seeds: tuple) -> Try:
    def attempt(rng: random.Random) -> None:
        (folder / name).write_bytes(mutate.json_bytes(rng, rng.choice(seeds)))
        _load(folder)

    return attempt


def index(folder: Path) -> Try:
    """Indices of checkpoints."""
    _good_checkpoint(folder)
    names = {W: FILE, W + "_scale_inv": FILE, "norm": FILE}
    return _json_file(folder, INDEX, ({"metadata": {"total_size": 9}, "weight_map": names},))


def config(folder: Path) -> Try:
    """config.json of checkpoints of every scheme."""
    _good_checkpoint(folder)
    return _json_file(folder, CONFIG, CONFIGS)


def tuned_table(folder: Path) -> Try:
    """Tables of tuned configurations."""
    timed = {"config": "1d2d.m64n128.w1.s7.c1x1.e4m3.e4m3.bf16", "microseconds": 3.5}
    problem = gemm_problem.parse("64x256x384")
    entry = tuned.Entry(tuned.Timed(**timed), tuned.Timed(**timed), tuned.Timed(**timed))
    path = folder / "table.json"
    tuned.write(path, tuned.Table("0", "H100", "13", "13", "2026-01-01", "m", {problem: entry}))
    good = json.loads(path.read_text())
    describe = extension.core().describe_config

    def attempt(rng: random.Random) -> None:
        path.write_bytes(mutate.json_bytes(rng, good))
        with contextlib.suppress(tuned.TableError):
            tuned.read(path, describe)

    return attempt


def bundles(folder: Path) -> Try:
    """Lists of kernels in bundles, under a digest that is right."""
    configs, image = extension.core().quantize_configs()[:3], b"machine code"
    keys = [extension.core().cache_key(config) for config in configs]
    good = [
        {"config": config, "key": key, "size_bytes": len(image)}
        for config, key in zip(configs, keys, strict=True)
    ]
    path = folder / "kernels.bundle"

    def attempt(rng: random.Random) -> None:
        content = mutate.json_bytes(rng, good) + b"\n" + image * len(good)
        digest = hashlib.sha256(content).hexdigest().encode()
        path.write_bytes(b"\n".join([bundle._FORMAT, digest, content]))
        with contextlib.suppress(ValueError):
            if stored := [config for config in bundle.unpack(path) if config not in configs]:
                raise FaultError(f"took {stored}")

    return attempt


def problem_word(_: Path) -> Try:
    """Words of problems, and the planner's answer to those that are right."""

    def attempt(rng: random.Random) -> None:
        word = mutate.change_word(rng, rng.choice(PROBLEMS))
        with contextlib.suppress(ValueError):
            ranking.rank(gemm_problem.parse(word), backend="cuda")

    return attempt


def kernel_key(_: Path) -> Try:
    """Keys of kernels, as C++ decodes them; one that it takes is what it writes."""
    core = extension.core()
    keys = [*core.candidate_configs(), *core.quantize_configs()]

    def attempt(rng: random.Random) -> None:
        key = mutate.change_word(rng, rng.choice(keys))
        try:
            source = core.kernel_source(key)
        except (RuntimeError, TypeError, ValueError):  # TypeError: a surrogate
            return
        if "__global__" not in source and "template" not in source:
            raise FaultError(f"no kernel: {source!r}")

    return attempt


def problem_fields(_: Path) -> Try:
    """Fields of problems, as C++ decodes those of a custom call too."""
    core = extension.core()
    problems = [gemm_problem.parse(word)._asdict() for word in PROBLEMS]

    def attempt(rng: random.Random) -> None:
        fields = mutate.change_json(rng, rng.choice(problems))
        with contextlib.suppress(KeyError, RuntimeError, TypeError, ValueError):
            core.ranked_configs(fields, rng.choice(("cuda", "sim")))

    return attempt


def custom_call(folder: Path) -> Try:
    """Attributes, operands and results of custom calls, as XLA hands them to the simulator's."""
    return cast(Try, custom_calls.target(folder))


def command_line(folder: Path) -> Try:
    """Arguments of the command line. Nothing is compiled, measured or looked up on a GPU."""
    (folder / "problems.txt").write_text("\n".join(PROBLEMS))

    def attempt(rng: random.Random) -> None:
        arguments = mutate.change_words(rng, rng.choice(COMMANDS), TOKENS)
        if arguments[:1] in (["bench"], ["doctor"]) or "--simulate" in arguments:
            return
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                status = cli.main([*arguments, *["--no-code"] * (arguments[:1] == ["explain"])])
        except SystemExit as end:
            status = end.code
        if status not in (0, 1, 2):
            raise FaultError(f"exit status {status}")

    return attempt


TARGETS: dict[str, Callable[[Path], Try]] = {
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


def fuzz(name: str, num_inputs: int, seed: int) -> dict[str, int]:
    """Tries inputs; returns how many times each kind of fault came, with the first of its kind."""
    counts: collections.Counter = collections.Counter()
    texts: dict = {}
    with (
        mock.patch.object(precompile, "compile_keys", _compile_nothing),
        mock.patch.object(bundle, "write"),
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):
        attempt = TARGETS[name](Path(folder))
        for i in range(num_inputs):
            try:
                attempt(random.Random(f"{seed} {name} {i}"))
            except Exception as error:  # what is not refused as it must be is the fault looked for
                kind = type(error.__cause__ or error).__name__
                place = traceback.extract_tb(error.__traceback__)[-1]
                texts.setdefault((kind, place.name), f"input {i}: {str(error)[:200]}")
                counts[kind, place.name] += 1
    return {f"{kind} in {place}, {texts[kind, place]}": n for (kind, place), n in counts.items()}
