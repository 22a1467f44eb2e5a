# SPDX-License-Identifier: Apache-2.0
"""Custom calls whose attributes, operands and results are others than our Python writes."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from truth import _xla_stand_in as stand_in

import jax_fp8gemm as fp8
from fuzz import mutate
from jax_fp8gemm._src.native import extension

TRUTH = Path(stand_in.__file__).parent
BUFFERS = ("operands", "results")
_GUARD_BYTES = 256
_GUARD = 0xA5
_SIZES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2}  # others 1
_TYPES = (*stand_in.DATA_TYPES.values(), 0, 1, 2, 5, 12, 99)


def calls() -> list[dict]:
    """Returns a custom call of every kind, and of quantizers."""

    def program(x, w, weights, grads, sizes, ids, accumulator):
        q, v, g = (
            fp8.quantize(each, block, implementation="sim")
            for each, block in ((x, (1, 128)), (w, (128, 128)), (weights, (128, 128)))
        )
        masked = fp8.quantize(jnp.stack([x, x]), implementation="sim")
        columns = [fp8.quantize_k_grouped(y, sizes, implementation="sim") for y in (grads, x)]
        kinds = dict(implementation="sim")
        return (
            fp8.gemm(q, v, accumulator=accumulator, preferred_element_type=jnp.float32, **kinds),
            fp8.grouped_gemm(q, g, sizes, **kinds),
            fp8.grouped_gemm_contiguous(q, g, ids, **kinds),
            fp8.grouped_gemm_masked(masked, g, sizes, **kinds),
            fp8.k_grouped_gemm(*columns, sizes, **kinds),
            fp8.quantize(fp8.swiglu(x, x), **kinds),
            fp8.quantize_transposed(x, **kinds),
        )

    array = jax.ShapeDtypeStruct
    shapes = (
        array((8, 128), jnp.bfloat16),
        array((16, 128), jnp.bfloat16),
        array((2, 16, 128), jnp.bfloat16),
        array((8, 16), jnp.bfloat16),
        array((2,), jnp.int32),
        array((8,), jnp.int32),
        array((8, 16), jnp.float32),
    )
    lowered = jax.jit(program).trace(*shapes).lower(lowering_platforms=("cpu",))
    every = {str(call): call for call in stand_in.custom_calls(lowered)}
    return list(every.values())


def build(folder: Path) -> stand_in.Xla:
    """Returns an XLA for handlers."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("needs g++")
    source, library = TRUTH / "xla_stand_in.cc", folder / "xla_stand_in.so"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-isystem", jax.ffi.include_dir()]
    subprocess.run([compiler, *flags, source, "-o", library], check=True)
    return stand_in.Xla(str(library))


class Memory:
    """The buffers of a call, between guards."""

    def __init__(self, types: list) -> None:
        self._arrays, self._spans, self.buffers = [], [], []
        for name, shape in types:
            size = _SIZES.get(name, 1) * int(np.prod(shape))
            array = np.full(size + 2 * _GUARD_BYTES + 128, _GUARD, np.uint8)
            start = -array.ctypes.data % 128 + _GUARD_BYTES - _GUARD_BYTES % 128
            array[start : start + size] = 0
            if name == "i32":  # sizes of two groups, or ids of groups
                values = (5, 3) if shape == [2] or shape == (2,) else (0, 1)
                array[start : start + size].view(np.int32)[:] = np.resize(values, size // 4)
            self._arrays.append(array)
            self._spans.append((start, size))
            self.buffers.append((stand_in.DATA_TYPES[name], shape, array.ctypes.data + start))

    @property
    def sizes(self) -> list[int]:
        """Bytes of each buffer."""
        return [size for _, size in self._spans]

    def is_intact(self) -> bool:
        """Returns whether nothing was written beside a buffer."""
        return all(
            (array[:start] == _GUARD).all() and (array[start + size :] == _GUARD).all()
            for array, (start, size) in zip(self._arrays, self._spans, strict=True)
        )


def change_buffers(seed: int, buffers: list) -> list:
    """Returns buffers of which one is missing, there twice, or has another type or shape."""
    rng, buffers = random.Random(seed), list(buffers)
    at = rng.randrange(len(buffers))
    type, shape, data = buffers[at]
    match rng.randrange(5):
        case 0:
            del buffers[at]
        case 1:
            buffers.insert(rng.randrange(len(buffers) + 1), buffers[at])
        case 2:
            buffers[at] = (rng.choice(_TYPES), shape, data)
        case 3:
            shape = list(shape)
            shape[rng.randrange(len(shape))] = rng.choice(mutate.NUMBERS) % 2**63
            buffers[at] = (type, shape, data)
        case 4:
            shape = shape[1:] if rng.random() < 0.5 else [*shape, 1]
            buffers[at] = (type, shape, data)
    return buffers


def change_attributes(rng: random.Random, attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns attributes with another kernel's key or with any change."""
    if "config" in attributes and rng.random() < 0.2:
        key = rng.choice(extension.core().candidate_configs())
        return attributes | {"config": key if rng.random() < 0.5 else mutate.change_word(rng, key)}
    changed = mutate.change_json(rng, attributes)
    return changed if isinstance(changed, dict) else {}


def seeds() -> list[bytes]:
    """Returns every call, by its number, as it is."""
    return [
        json.dumps({"call": i, "attributes": call["attributes"]}).encode()
        for i, call in enumerate(calls())
    ]


def change(rng: random.Random, data: bytes) -> bytes:
    """Returns a call with a change in its attributes, its operands or its results.

    Of the latter it holds what the change is drawn from, `BUFFERS`.

    Raises:
        ValueError: It is no call.
    """
    call = json.loads(data)
    if not isinstance(call, dict) or not isinstance(call.get("attributes"), dict):
        raise ValueError("it must be a call")
    where = rng.choice(("attributes", "attributes", *BUFFERS))
    if where == "attributes":
        call["attributes"] = change_attributes(rng, call["attributes"])
    else:  # both could be larger than our memory and agree with each other
        call |= dict.fromkeys(BUFFERS) | {where: rng.randrange(2**32)}
    return json.dumps(call).encode()


def _parse(data: bytes, known: Sequence[dict]) -> dict[str, Any] | None:
    """Returns a call, or None for what is none."""
    try:
        call = json.loads(data)
    except (RecursionError, ValueError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("attributes"), dict):
        return None
    numbers = [call.get("call"), *(call.get(name) for name in BUFFERS)]
    if not all(each is None or type(each) is int for each in numbers) or None not in numbers[1:]:
        return None
    return call if numbers[0] in range(len(known)) else None


def target(folder: Path) -> Callable[[bytes], str | None]:
    """Returns a function that runs the handler of a call, and returns what that says."""
    registrations, xla, known = extension.core().registrations(), build(folder), calls()
    memories = [(Memory(call["operands"]), Memory(call["results"])) for call in known]

    def attempt(data: bytes) -> str | None:
        call = _parse(data, known)
        if call is None:
            return None
        name, memory = known[call["call"]]["target"], memories[call["call"]]
        buffers = [
            each.buffers if call.get(key) is None else change_buffers(call[key], each.buffers)
            for key, each in zip(BUFFERS, memory, strict=True)
        ]
        message = xla.call(
            registrations[name.split(".")[1]]["sim"],
            stand_in.EXECUTE,
            stand_in.Context(),
            *([stand_in.buffer(*each) for each in every] for every in buffers),
            call["attributes"],
        )
        if message == "" or not all(each.is_intact() for each in memory):
            raise MemoryError(f"{name}: {message!r}")
        return message

    return attempt
