# SPDX-License-Identifier: Apache-2.0
"""All peers: those that JAX brings itself, and the registry of these and of the others."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8
from benchmarks.cublaslt_peer import CUBLASLT_GROUPED
from benchmarks.grouped_peers import with_groups
from benchmarks.operands import Operands
from benchmarks.peer import (
    BLOCK_SCALED,
    MX_SCALED,
    TENSOR_WISE,
    WIDE,
    NotApplicableError,
    Peer,
    PeerMissingError,
    Prepared,
    prepared_jax,
)
from benchmarks.torch_peers import TORCH_PEERS
from jax_fp8gemm._src.tools.tuning.operands import MAX_SIMULATED_MACS


def _gemm(implementation: str) -> Callable[[Operands], Prepared]:
    def prepare(operands: Operands) -> Prepared:
        case = operands.case
        if implementation == "sim" and case.m * case.n * case.k > MAX_SIMULATED_MACS:
            raise NotApplicableError("too large to simulate")
        dtype = jnp.float32 if case.kind == "wgrad" else jnp.bfloat16

        def product(lhs, rhs, *accumulator):
            return fp8.gemm(
                lhs,
                rhs,
                accumulator=accumulator[0] if accumulator else None,
                preferred_element_type=dtype,
                implementation=implementation,
            )

        notes = {}
        if implementation != "xla" and case.kind == "forward":
            notes["config"] = fp8.plan(case.m, case.n, case.k, implementation=implementation)[0][
                "config"
            ]
        arrays = (operands.lhs, operands.rhs, *operands.accumulators)
        return prepared_jax(product, *arrays, feedback=case.kind == "wgrad", **notes)

    return prepare


def _quantize_and_gemm(operands: Operands) -> Prepared:
    """What a layer does: bfloat16 activations are quantized in the same program."""
    implementation = "cuda" if jax.default_backend() == "gpu" else "xla"

    def product(x, rhs):
        return fp8.gemm(fp8.quantize(x), rhs, implementation=implementation)

    return prepared_jax(product, operands.lhs.dequantize(jnp.bfloat16), operands.rhs)


def _dot(dtype) -> Callable[[Operands], Prepared]:
    def prepare(operands: Operands) -> Prepared:
        wide = jnp.float32 if operands.case.kind == "wgrad" else dtype

        def product(lhs, rhs, *accumulator):
            out = jax.lax.dot_general(
                lhs, rhs, (((1,), (1,)), ((), ())), preferred_element_type=wide
            )
            return out + accumulator[0] if accumulator else out

        arrays = (*operands.dequantized(dtype), *operands.accumulators)
        return prepared_jax(product, *arrays, feedback=operands.case.kind == "wgrad")

    return prepare


def _tensor_wise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a matrix in e4m3 with one scale."""
    scale = jnp.abs(x).max() / 448
    return (x / scale).astype(jnp.float8_e4m3fn), scale


def _xla_fp8_dot(operands: Operands) -> Prepared:
    """The pattern that XLA rewrites to cuBLASLt: a dot of operands dequantized by scalars."""
    lhs, rhs = (jax.jit(_tensor_wise)(x) for x in operands.dequantized(jnp.float32))

    def product(lhs, lhs_scale, rhs, rhs_scale):
        wide = [
            values.astype(jnp.bfloat16) * scale.astype(jnp.bfloat16)
            for values, scale in ((lhs, lhs_scale), (rhs, rhs_scale))
        ]
        return jax.lax.dot_general(*wide, (((1,), (1,)), ((), ())))

    def look_at(text: str) -> dict:
        return {"rewritten_to_cublaslt_fp8": "cublas$lt$matmul$f8" in text}

    # XLA's own Triton product would multiply in bfloat16; without it the pattern is rewritten.
    is_gpu = jax.default_backend() == "gpu"
    options = {"xla_gpu_enable_triton_gemm": False} if is_gpu else None
    return prepared_jax(product, *lhs, *rhs, look_at=look_at, compiler_options=options)


def _mx_operand(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns values and e8m0 scales of 1x32 blocks, with a batch axis of one."""
    rows, columns = x.shape
    blocks = x.reshape(rows, columns // 32, 32)
    scale = jnp.exp2(jnp.ceil(jnp.log2(jnp.abs(blocks).max(-1, keepdims=True) / 448)))
    values = (blocks / scale).astype(jnp.float8_e4m3fn).reshape(1, rows, columns)
    return values, scale.astype(jnp.float8_e8m0fnu).reshape(1, rows, columns // 32)


def _scaled_matmul(operands: Operands) -> Prepared:
    if operands.case.k % 32:
        raise NotApplicableError("K must be a multiple of 32")
    (lhs, lhs_scales), (rhs, rhs_scales) = (
        jax.jit(_mx_operand)(x) for x in operands.dequantized(jnp.float32)
    )

    def product(lhs, rhs, lhs_scales, rhs_scales):
        return jax.nn.scaled_matmul(
            lhs, rhs, lhs_scales, rhs_scales, preferred_element_type=jnp.bfloat16
        )

    return prepared_jax(product, lhs, rhs, lhs_scales, rhs_scales)


def _has_scaled_matmul() -> None:
    if not hasattr(jax.nn, "scaled_matmul") or not hasattr(jnp, "float8_e8m0fnu"):
        raise PeerMissingError("this jax has no jax.nn.scaled_matmul")


def _has_simulator() -> None:
    from jax_fp8gemm._src.native import sim_library

    if not sim_library.available():
        raise PeerMissingError("this build has no simulator")


_BOTH = ("forward", "wgrad")
OURS_GPU = Peer("ours", "jax_fp8gemm", BLOCK_SCALED, ("gpu",), _gemm("cuda"), kinds=_BOTH)
OURS_CPU = Peer("ours", "jax_fp8gemm xla", BLOCK_SCALED, ("cpu",), _gemm("xla"), kinds=_BOTH)
JAX_PEERS = (
    OURS_GPU,
    OURS_CPU,
    Peer("ours_xla", "jax_fp8gemm xla", BLOCK_SCALED, ("gpu",), _gemm("xla"), kinds=_BOTH),
    Peer(
        "ours_sim",
        "jax_fp8gemm simulated",
        BLOCK_SCALED,
        ("cpu",),
        _gemm("sim"),
        _has_simulator,
        _BOTH,
    ),
    Peer(
        "ours_quantizing",
        "jax_fp8gemm with quantize",
        BLOCK_SCALED,
        ("gpu", "cpu"),
        _quantize_and_gemm,
        same_product=False,
    ),
    Peer("jax_bf16", "JAX bfloat16 dot", WIDE, ("gpu", "cpu"), _dot(jnp.bfloat16), kinds=_BOTH),
    Peer("jax_f32", "JAX float32 dot", WIDE, ("cpu",), _dot(jnp.float32), kinds=_BOTH),
    Peer(
        "jax_fp8_scalar",
        "XLA scalar-scaled fp8 dot",
        TENSOR_WISE,
        ("gpu", "cpu"),
        _xla_fp8_dot,
        same_product=False,
    ),
    Peer(
        "jax_scaled_matmul",
        "jax.nn.scaled_matmul",
        MX_SCALED,
        ("gpu",),  # XLA has no such operation on a CPU
        _scaled_matmul,
        _has_scaled_matmul,
        same_product=False,
    ),
)


def _needs_gpu() -> None:
    raise PeerMissingError("needs a GPU")


def all_peers(platform: str) -> list[Peer]:
    """Returns every peer, ours first, and on a CPU those that need a GPU as missing ones."""
    chosen = []
    for peer in map(with_groups, (*JAX_PEERS, *TORCH_PEERS, CUBLASLT_GROUPED)):
        if platform in peer.platforms:
            chosen.append(peer)
        elif platform == "cpu" and not peer.name.startswith("ours"):
            chosen.append(dataclasses.replace(peer, probe=_needs_gpu))
    return chosen
