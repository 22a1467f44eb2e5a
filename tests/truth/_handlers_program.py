# SPDX-License-Identifier: Apache-2.0
"""Runs our CUDA handlers as XLA would, on a libcuda and an XLA that stand in.

Usage: XLA_LIBRARY PROGRAM CONFIG|"" pdl|"" compile|run|run_without_context.

Lowers a program for a GPU, takes its custom calls with attributes and types, and calls
instantiate once, then initialize and execute on every device from several threads at once.
Prints JSON: the calls with their buffers, and the launches. Found by the loader: libcuda.so.1.
"""

import ctypes
import functools
import itertools
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import _sanitizers
import jax
import jax.numpy as jnp
from _xla_stand_in import (
    DATA_TYPES,
    EXECUTE,
    INITIALIZE,
    INSTANTIATE,
    Context,
    Xla,
    buffer,
    custom_calls,
)

_sanitizers.use_extension()

import jax_fp8gemm as fp8  # noqa: E402
from jax_fp8gemm._src.native import extension  # noqa: E402

DEVICES, THREADS, REPEATS = 3, 2, 3
M, N, K = 1152, 2304, 640


class Launch(ctypes.Structure):
    """One launch, as cuda_stand_in.cc remembers it."""

    _fields_ = [
        ("device", ctypes.c_int),
        *((name, ctypes.c_uint * 3) for name in ("grid", "block", "cluster")),
        ("smem_bytes", ctypes.c_uint),
        ("pdl", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("words", ctypes.c_uint64 * 10),
        ("name", ctypes.c_char * 64),
    ]


def weights(w):
    """Quantizes two weights."""
    return fp8.quantize(jnp.stack([w, w]), (128, 128))


# What is lowered: functions of activations (M, K), a weight (N, K) and two integers.
PROGRAMS = {
    "gemm": lambda x, w, _: fp8.gemm(fp8.quantize(x), fp8.quantize(w, (128, 128))),
    "training": lambda x, w, _: jax.value_and_grad(
        lambda x, w: fp8.dot(x, w).astype(jnp.float32).sum(), (0, 1)
    )(x, w.T),
    "accumulated": lambda x, w, _: fp8.gemm(
        fp8.quantize(x),
        fp8.quantize(w),
        accumulator=jnp.ones((M, N), jnp.float32),
        preferred_element_type=jnp.float32,
    ),
    "ragged": lambda x, w, sizes: fp8.grouped_gemm(fp8.quantize(x), weights(w), sizes),
    "contiguous": lambda x, w, sizes: fp8.grouped_gemm_contiguous(
        fp8.quantize(fp8.rms_norm(x, x[0])), weights(w), jnp.repeat(sizes, M // 2)
    ),
    "masked": lambda x, w, counts: fp8.grouped_gemm_masked(
        fp8.quantize(fp8.swiglu(jnp.stack([x, x]), jnp.stack([x, x])), masked_m=counts),
        weights(w),
        counts,
    ),
    "k_grouped": lambda x, w, sizes: fp8.k_grouped_gemm(
        fp8.quantize_k_grouped(x, sizes), fp8.quantize_k_grouped(w[:M], sizes), sizes
    ),
}


class Call:
    """One custom call whose handlers run."""

    def __init__(self, xla: Xla, call: dict) -> None:
        """Instantiates it."""
        self._xla = xla
        self._call = call
        name = call["target"].split(".")[1]
        self._handlers = extension.core().registrations()[name]["cuda"]
        self._state = Context()
        self.run("instantiate", INSTANTIATE, self._state, [], [])

    def run(self, handler, stage, context, arguments, results):
        """Runs one stage; raises what the handler returns."""
        error = self._xla.call(
            self._handlers[handler], stage, context, arguments, results, self._call["attributes"]
        )
        if error is not None:
            raise RuntimeError(error)

    def on_device(self, driver, device: int, stream: int, addresses) -> dict:
        """Initializes and executes on this thread; returns what the launches must be given."""
        driver.StandInSetDevice(device)
        context = Context(self._state.state, stream)
        buffers = []
        for type, shape in [*self._call["operands"], *self._call["results"]]:
            buffers.append(buffer(DATA_TYPES[type], shape, next(addresses)))
        count = len(self._call["operands"])
        arguments, results = buffers[:count], buffers[count:]
        for _ in range(REPEATS):  # XLA initializes before every run
            self.run("initialize", INITIALIZE, context, arguments, results)
            self.run("execute", EXECUTE, context, arguments, results)
        data = [buffer.data for buffer in buffers]
        return {"device": device, "stream": stream, "buffers": data}


def run_everywhere(calls, driver) -> list[dict]:
    """Runs every call on each device from each thread, all at once."""
    addresses, streams = itertools.count(1 << 40, 1 << 20), itertools.count(1)
    runs, errors, start = [], [], threading.Barrier(DEVICES * THREADS)

    def work(device, numbers, mine):
        start.wait()
        try:
            for index, call in enumerate(calls):
                runs.append({"call": index, **call.on_device(driver, device, numbers, mine)})
        except RuntimeError as error:
            errors.append(str(error))

    threads = []
    for device in [*range(DEVICES)] * THREADS:
        stream = device << 16 | next(streams)
        mine = iter([next(addresses) for _ in range(10 * len(calls))])
        threads.append(threading.Thread(target=work, args=(device, stream, mine)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(errors[0])
    return runs


def as_json(launch: Launch) -> dict:
    """Returns what was remembered of a launch."""
    values = {name: getattr(launch, name) for name, *_ in Launch._fields_}
    values["name"] = values["name"].decode()
    return {k: list(v) if isinstance(v, ctypes.Array) else v for k, v in values.items()}


def main(library: str, program: str, config: str, pdl: str, action: str) -> dict:
    """Runs a program, with a configuration of its products if one is given.

    Or only instantiates its calls.
    """
    xla = Xla(library)
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((M, K), (N, K))]
    shapes.append(jax.ShapeDtypeStruct((2,), jnp.int32))
    traced = jax.jit(PROGRAMS[program]).trace(*shapes)
    calls = custom_calls(traced.lower(lowering_platforms=("cuda",)))
    for call in calls:
        if config and "config" in call["attributes"]:
            call["attributes"] |= {"config": config, "pdl": pdl == "pdl"}
    with ThreadPoolExecutor(len(calls)) as pool:  # as XLA compiles programs side by side
        made = list(pool.map(functools.partial(Call, xla), calls))
    if action == "compile":  # NVRTC asks libcuda for more than the stand-in has
        return {}
    driver = ctypes.CDLL("libcuda.so.1")
    if action == "run_without_context":
        made[0].on_device(driver, -1, 1, itertools.count(1 << 40, 1 << 20))
    runs = run_everywhere(made, driver)
    launches = (Launch * 1024)()
    count = driver.StandInLaunches(launches, len(launches))
    read = [as_json(each) for each in launches[:count]]
    return {"calls": calls, "runs": runs, "launches": read, "loads": driver.StandInLoads()}


if __name__ == "__main__":
    try:
        print(json.dumps(main(*sys.argv[1:])))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
