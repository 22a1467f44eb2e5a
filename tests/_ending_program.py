# SPDX-License-Identifier: Apache-2.0
"""Programs of test_process_ends.py, a function each; argv: its name, a count.

They print "go" when they have begun their work.
"""

import ctypes
import functools
import gc
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from fuzz import custom_calls
from truth import _xla_stand_in as stand_in

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import extension, precompile

# What is started in the background of a shell ignores it, and its children do.
signal.signal(signal.SIGINT, signal.default_int_handler)

CORE = extension.core()
KEYS = CORE.candidate_configs()


def go() -> None:
    print("go", flush=True)


def product(m: int, k: int, n: int, implementation: str):
    """Returns a compiled product, and its operands, which are there."""
    x = fp8.quantize(jnp.ones((m, k), jnp.bfloat16), implementation="xla")
    w = fp8.quantize(jnp.ones((n, k), jnp.bfloat16), block=(128, 128), implementation="xla")
    function = jax.jit(lambda x, w: fp8.gemm(x, w, implementation=implementation))
    return function.lower(x, w).compile(), *jax.block_until_ready((x, w))


def simulate() -> None:
    """Simulates for a minute."""
    compiled, x, w = product(2048, 4096, 4096, "sim")
    go()
    compiled(x, w).block_until_ready()


def simulate_asynchronously() -> None:
    """The same, on a thread of XLA's, as operands that are not there yet have it."""
    compiled, x, w = product(2048, 4096, 4096, "sim")
    slow = jax.jit(lambda a: (a @ a)[0, 0])(jnp.ones((2048, 2048)))
    values = jnp.where(slow > 0, w.values.view(jnp.uint8), 0).view(w.dtype)
    y = compiled(x, fp8.BlockScaled(values, w.scales, w.block))
    go()
    y.block_until_ready()


def simulate_with_handler() -> None:
    """Simulates for seconds, and has a handler of its own, which lets it finish."""
    compiled, x, w = product(256, 4096, 1024, "sim")
    signal.signal(signal.SIGINT, lambda *_: print("handled", flush=True))
    go()
    y = compiled(x, w)
    print("finished", float(y[0, 0]), flush=True)


def compile_many() -> None:
    """Compiles for a minute, in two threads."""
    CORE.nvrtc_version()
    go()
    for _ in precompile.compile_keys(KEYS, 2):
        pass


def end_while_compiling() -> None:
    """Ends while daemon threads compile one kernel after another."""

    def compile_all() -> None:
        for key in KEYS:
            CORE.kernel_image(key)

    CORE.kernel_image(KEYS[0])
    for _ in range(4):
        threading.Thread(target=compile_all, daemon=True).start()
    time.sleep(0.5)
    go()


def in_child(key: str) -> str:
    """Returns what a forked child says that compiles a kernel."""
    readable, writable = os.pipe()
    if os.fork() == 0:
        signal.alarm(60)  # ends a child that hangs
        try:
            text = f"{len(CORE.kernel_image(key))} bytes"
        except RuntimeError as error:
            text = str(error)
        os.write(writable, text.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        text = pipe.read()
    os.wait()
    return text


def fork() -> None:
    """Forks after a compilation, and amid others."""
    CORE.kernel_image(KEYS[0])
    print("used", in_child(KEYS[1]))
    threads = [threading.Thread(target=CORE.kernel_image, args=(key,)) for key in KEYS[2:5]]
    for thread in threads:
        thread.start()
    while CORE.cache_counters()["builds"] < 4:
        time.sleep(0.001)
    print("amid, known", in_child(KEYS[0]))
    print("amid, fresh", in_child(KEYS[5]))
    for thread in threads:
        thread.join()
    print("after", in_child(KEYS[6]))


def size_of(key: str) -> int:
    """Returns the size of a kernel."""
    return len(CORE.kernel_image(key))


def spawn() -> None:
    """Compiles in a spawned child while this process compiles."""
    thread = threading.Thread(target=CORE.kernel_image, args=(KEYS[0],))
    thread.start()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(size_of, (KEYS[1],)) > 0)
    thread.join()


def compile_some() -> None:
    """Compiles eight kernels in eight threads; prints how many were not found on disk."""
    barrier = threading.Barrier(8)

    def compile_all(first: int) -> None:
        barrier.wait()
        for i in range(8):
            CORE.kernel_image(KEYS[(first + i) % 8])

    threads = [threading.Thread(target=compile_all, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(CORE.cache_counters()["builds"])


def collect() -> None:
    """Threads compile, run and drop programs at once, while garbage is collected."""
    failures = []

    def work(seed: int) -> None:
        for i in range(12):
            m = 8 + 8 * ((seed + i) % 6)
            compiled, x, w = product(m, 128, 128, "sim")
            if float(compiled(x, w).sum()) != m * 128 * 128:
                failures.append((seed, i))
            del compiled
            gc.collect()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(failures)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _growth(call, warm: int, count: int) -> float:
    """Returns the bytes by which each of `count` calls lets the process grow."""
    for i in range(warm):
        call(i)
    gc.collect()
    before = _resident_bytes()
    for i in range(warm, warm + count):
        call(i)
    gc.collect()
    return (_resident_bytes() - before) / count


def many_calls(count: str = "10000") -> None:
    """Prints the growth by each call of one program."""
    compiled, x, w = product(8, 128, 128, "sim")
    print(_growth(lambda _: compiled(x, w).block_until_ready(), 500, int(count)))


def _allocated_bytes() -> int:
    """Returns the bytes that are allocated and not freed, in all arenas of glibc."""
    libc, text, size = ctypes.CDLL(None), ctypes.c_char_p(), ctypes.c_size_t()
    libc.open_memstream.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    total = text.value.decode().rpartition("</heap>")[2]
    libc.free(text)
    kinds = dict(re.findall(r'type="(\w+)" (?:count="\d+" )?size="(\d+)"', total))
    return int(kinds["current"]) + int(kinds["mmap"]) - int(kinds["fast"]) - int(kinds["rest"])


def _settled() -> tuple[int, int]:
    """Returns what is left once JAX has forgotten all: bytes, and objects of this package."""
    jax.clear_caches()
    while gc.collect():
        pass
    owners = (x if isinstance(x, types.FunctionType) else type(x) for x in gc.get_objects())
    ours = sum(str(owner.__module__).startswith("jax_fp8gemm") for owner in owners)
    return _allocated_bytes(), ours


def many_shapes(count: str = "2000", keep: str = "", *only: str) -> None:
    """Prints what shapes leave, for JAX's own product and for ours, in plain JAX and simulated.

    That is how many bytes for each, and how many objects of this package for all of them, which are
    none unless this program has to `keep` some. `only` are the products to measure.
    """
    kept = []

    @jax.jit
    def of_jax(x, w):
        return jnp.dot(x.values.astype(jnp.bfloat16), w.values.astype(jnp.bfloat16).T)

    def call(m: int, implementation: str) -> None:
        x, w = (
            fp8.BlockScaled(jnp.ones(shape, jnp.float8_e4m3fn), jnp.ones(scales), block)
            for shape, scales, block in (
                ((m, 128), (m, 1), (1, 128)),
                ((128, 128), (1, 1), (128, 128)),
            )
        )
        function = (
            of_jax
            if implementation == "jax"
            else functools.partial(fp8.gemm, implementation=implementation)
        )
        function(x, w).block_until_ready()
        if keep:
            kept.append(x)

    for implementation in only or ("jax", "xla", "sim"):
        num = int(count)
        warm = min(num, 100)
        for i in range(num + warm):
            if i == warm:
                before = _settled()
            call(num + warm - i, implementation)  # the largest first, which leaves the most room
            if i % 50 == 0:
                jax.clear_caches()
        after = _settled()
        print(implementation, (after[0] - before[0]) / num, after[1] - before[1], flush=True)


def many_handled_shapes(count: str = "2000") -> None:
    """Prints how many bytes the simulator's handler keeps for each shape, called without XLA."""
    call = next(c for c in custom_calls.calls() if c["attributes"].get("kind") == "dense")
    handler = CORE.registrations()["gemm"]["sim"]
    memory = np.zeros(1 << 20, np.uint8)
    starts = range(memory.ctypes.data + -memory.ctypes.data % 128, 1 << 62, 1 << 16)

    def run(xla, i: int) -> None:
        """Runs one of 128 numbers of rows, the largest first, for one of many numbers of SMs."""
        m, addresses = 4 * (128 - i % 128), iter(starts)
        operands, results = (
            [
                stand_in.buffer(
                    stand_in.DATA_TYPES[dtype],
                    [m if extent == call["attributes"]["m"] else extent for extent in shape],
                    next(addresses),
                )
                for dtype, shape in call[kind]
            ]
            for kind in ("operands", "results")
        )
        attributes = call["attributes"] | {"m": m, "num_sms": 1 + i // 128}
        context = stand_in.Context()
        error = xla.call(handler, stand_in.EXECUTE, context, operands, results, attributes)
        if error is not None:
            raise RuntimeError(error)

    with tempfile.TemporaryDirectory() as folder:
        xla = custom_calls.build(Path(folder))
        for i in range(int(count) + 256):
            if i == 256:
                before = _allocated_bytes()
            run(xla, i)
    print((_allocated_bytes() - before) / int(count))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
