# SPDX-License-Identifier: Apache-2.0
"""What is not a single product: host cost of a call, compilation, the quantizer, whole layers."""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8
from benchmarks.cases import BenchCase
from benchmarks.peer import Prepared, prepared_jax
from jax_fp8gemm._src.tools.tuning import sampling

_CALLS = 200  # per sample of host cost: fewer than a device queue holds
_IN_PROGRAM = 64
_ROUNDS = 10
_MLP = {"gpu": (4096, 4096, 14336), "cpu": (64, 256, 512)}  # tokens, width, hidden
_QUANTIZED = {"gpu": (8192, 7168), "cpu": (512, 1024)}
_GROUPS = 8  # of the K-grouped quantizer
_MOE = {"gpu": (16, 2048, 1024), "cpu": (4, 256, 128)}  # experts, width, hidden
_DECODE_TOKENS = {"gpu": 16, "cpu": 16}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _host_seconds(call: Callable, *arguments) -> float:
    """Returns host seconds per call while the device is not waited for."""
    jax.block_until_ready(call(*arguments))
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        for _ in range(_CALLS):
            out = call(*arguments)
        best = min(best, (time.perf_counter() - begin) / _CALLS)
        jax.block_until_ready(out)
    return best


def host_cost(platform: str) -> dict[str, float]:
    """Returns what a call costs the host, in microseconds.

    `dispatch_us` is one jitted product, `empty_dispatch_us` a jitted program of one trivial kernel;
    their difference is what the custom call adds. `in_program_us` is that difference per call where
    one program holds many calls, by wall clock, on the smallest problem.
    """
    implementation = "cuda" if platform == "gpu" else "xla"
    lhs = fp8.quantize(jnp.ones((16, 128)))
    rhs = fp8.quantize(jnp.ones((128, 128)), (128, 128))

    def product(x, lhs, rhs):
        return x + fp8.gemm(lhs, rhs, implementation=implementation)

    def trivial(x, lhs, rhs):
        return x + x

    start = jnp.zeros((16, 128), jnp.bfloat16)
    one, empty = (_host_seconds(jax.jit(f), start, lhs, rhs) for f in (product, trivial))

    def repeated(function):
        def program(x, lhs, rhs):
            for _ in range(_IN_PROGRAM):
                # A barrier keeps XLA from merging the calls.
                x = jax.lax.optimization_barrier(function(x, lhs, rhs))
            return x

        call = prepared_jax(program, start, lhs, rhs)
        return min(_wall(call) for _ in range(_ROUNDS)) / _IN_PROGRAM

    return {
        "dispatch_us": _us(one),
        "empty_dispatch_us": _us(empty),
        "added_us": _us(one - empty),
        "in_program_us": _us(repeated(product) - repeated(trivial)),
    }


def _wall(call: Prepared) -> float:
    call.finish(call.start())
    begin = time.perf_counter()
    call.finish(call.start())
    return time.perf_counter() - begin


def compile_times(cases: Sequence[BenchCase]) -> list[dict]:
    """Returns seconds that NVRTC takes for each kernel the heuristics choose; nothing is cached.

    Needs NVRTC, but no GPU.
    """
    from jax_fp8gemm._src.native import extension, ranking

    core = extension.core()
    num_sms, gpu = extension.planning_num_sms("cuda", None), extension.planning_gpu("cuda")
    chosen: dict[str, str] = {}
    for case in cases:
        problem = case.problem._replace(num_sms=num_sms)
        config = ranking.rank(problem, backend="cuda", gpu=gpu)[0]["config"]
        chosen.setdefault(config, case.key)
    results = []
    core.set_cache_directory("")
    try:
        for config, key in chosen.items():
            core.clear_memory_cache()
            begin = time.perf_counter()
            size_bytes = len(core.kernel_image(config))
            seconds = time.perf_counter() - begin
            results.append(
                {"config": config, "case": key, "seconds": seconds, "cubin_bytes": size_bytes}
            )
    finally:
        extension.keep_kernels(core)
    return results


def _quantizers(rows: int) -> dict[str, Callable]:
    """Returns `quantize(x, implementation=...)` by layout of the kernel."""
    sizes = jnp.full((_GROUPS,), rows // _GROUPS, jnp.int32)
    return {
        "rows": fp8.quantize,
        "blocks": functools.partial(fp8.quantize, block=(128, 128)),
        "transposed": fp8.quantize_transposed,
        "k_grouped": functools.partial(fp8.quantize_k_grouped, group_sizes=sizes),
    }


def quantizer(timer, platform: str) -> list[dict]:
    """Returns time and bandwidth of the quantizers, of the kernels and of plain JAX in turns.

    The bytes are those that a single pass moves, of x, values and scales, whatever is moved.
    """
    rows, columns = _QUANTIZED[platform]
    x = jax.random.normal(jax.random.key(1), (rows, columns), jnp.bfloat16)
    implementations = {"gpu": ("cuda", "xla"), "cpu": ("xla",)}[platform]
    results = []
    for layout, quantize in _quantizers(rows).items():
        out = jax.eval_shape(functools.partial(quantize, implementation="xla"), x)
        calls = {
            name: prepared_jax(
                lambda x, f=quantize, name=name: jax.tree.leaves(f(x, implementation=name)), x
            )
            for name in implementations
        }
        for call in calls.values():
            call.finish(call.start())
        samplers = {name: lambda c=call: timer.sample(c) for name, call in calls.items()}
        taken, failures = sampling.sample_rounds(samplers, _ROUNDS)
        moved = sum(a.size * a.dtype.itemsize for a in (x, out.values, out.scales))
        summary = {name: sampling.summary(s) for name, s in taken.items()}
        results.append(
            {
                "layout": layout,
                "shape": [rows, columns],
                "bytes": moved,
                "summary": summary,
                "bytes_per_s": {name: moved / s["median"] for name, s in summary.items()},
                "samples_s": taken,
                "failures": failures,
            }
        )
    return results


def mlp_steps(timer, platform: str) -> list[dict]:
    """Returns times of a gated MLP, forward: activations quantized on the way, and bfloat16."""
    tokens, width, hidden = _MLP[platform]
    implementation = "cuda" if platform == "gpu" else "xla"
    keys = jax.random.split(jax.random.key(2), 2)
    up = jax.random.normal(keys[0], (2 * hidden, width), jnp.bfloat16) / width**0.5
    down = jax.random.normal(keys[1], (width, hidden), jnp.bfloat16) / hidden**0.5
    up8, down8 = (fp8.quantize(weight, (128, 128)) for weight in (up, down))

    def in_fp8(x, up, down):
        inner = _gate(fp8.gemm(fp8.quantize(x), up, implementation=implementation))
        return fp8.gemm(fp8.quantize(inner), down, implementation=implementation)

    def in_bfloat16(x, up, down):
        return _gate(x @ up.T) @ down.T

    weights = {"ours": (in_fp8, up8, down8), "jax_bf16": (in_bfloat16, up, down)}
    return _steps(timer, weights, (_DECODE_TOKENS[platform], tokens), width, hidden)


def moe_steps(timer, platform: str) -> list[dict]:
    """Returns times of a gated mixture of experts, forward, tokens in order of their experts.

    The groups are uneven, one of them empty; in bfloat16 `lax.ragged_dot` takes them.
    """
    experts, width, hidden = _MOE[platform]
    implementation = "cuda" if platform == "gpu" else "xla"
    keys = jax.random.split(jax.random.key(3), 2)
    up = jax.random.normal(keys[0], (experts, 2 * hidden, width), jnp.bfloat16) / width**0.5
    down = jax.random.normal(keys[1], (experts, width, hidden), jnp.bfloat16) / hidden**0.5
    up8, down8 = (fp8.quantize(weight, (128, 128)) for weight in (up, down))

    def sizes(rows: int) -> jax.Array:
        # 0, 1, 2, ... parts of the rows; what is left over goes to the last.
        shares = jnp.arange(experts, dtype=jnp.int32) * (2 * rows // (experts * experts))
        return shares.at[-1].add(rows - shares.sum())

    def in_fp8(x, up, down):
        groups = sizes(x.shape[0])

        def product(x, weights):
            return fp8.grouped_gemm(fp8.quantize(x), weights, groups, implementation=implementation)

        return product(_gate(product(x, up)), down)

    def in_bfloat16(x, up, down):
        groups = sizes(x.shape[0])

        def product(x, weights):
            return jax.lax.ragged_dot(x, jnp.swapaxes(weights, 1, 2), groups)

        return product(_gate(product(x, up)), down)

    weights = {"ours": (in_fp8, up8, down8), "jax_bf16": (in_bfloat16, up, down)}
    tokens = _DECODE_TOKENS[platform], _MLP[platform][0]
    return [entry | {"experts": experts} for entry in _steps(timer, weights, tokens, width, hidden)]


def _gate(x: jax.Array) -> jax.Array:
    left, right = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(left) * right


def _steps(timer, layers: dict[str, tuple], tokens: Sequence[int], width: int, hidden: int):
    """Times layers, each a function with its weights, on numbers of tokens, in turns."""
    key = jax.random.key(4)
    results = []
    for rows in tokens:
        x = jax.random.normal(key, (rows, width), jnp.bfloat16)
        calls = {name: prepared_jax(f, x, *weights) for name, (f, *weights) in layers.items()}
        for call in calls.values():
            call.finish(call.start())
        samplers = {name: lambda c=call: timer.sample(c) for name, call in calls.items()}
        taken, failures = sampling.sample_rounds(samplers, _ROUNDS)
        results.append(
            {
                "tokens": rows,
                "width": width,
                "hidden": hidden,
                "samples_s": taken,
                "failures": failures,
                "summary": {name: sampling.summary(s) for name, s in taken.items()},
            }
        )
    return results
