# SPDX-License-Identifier: Apache-2.0
"""Peers of products with groups: ours, what JAX has, and DeepGEMM's grouped functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import torch_peers
from benchmarks.operands import GroupedOperands
from benchmarks.peer import (
    NotApplicableError,
    Peer,
    Prepared,
    prepared_jax,
)
from jax_fp8gemm._src.native import extension, ranking
from jax_fp8gemm._src.tools.tuning import operands as tuning_operands

# Newest first.
_DEEP_GEMM_NAMES = {
    "contiguous": (
        "m_grouped_fp8_gemm_nt_contiguous",
        "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
    ),
    "masked": (
        "m_grouped_fp8_gemm_nt_masked",
        "fp8_m_grouped_gemm_nt_masked",
        "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
    ),
}
KINDS = ("ragged", "contiguous", "masked", "k_grouped")


def ours(implementation: str) -> Callable[[GroupedOperands], Prepared]:
    """Returns a function that prepares one of our implementations."""

    def prepare(operands: GroupedOperands) -> Prepared:
        problem = operands.case.problem
        if implementation == "sim" and problem.flops > 2 * tuning_operands.MAX_SIMULATED_MACS:
            raise NotApplicableError("too large to simulate")
        arrays = [x for x in operands.given if x is not None]
        if implementation == "xla":
            has_accumulator = problem.accumulate

            def function(*present):
                accumulator = present[-1] if has_accumulator else None
                return tuning_operands.reference(
                    problem, tuning_operands.Operands(*present[:5], accumulator)
                )

            return prepared_jax(function, *arrays, feedback=has_accumulator)
        num_sms = extension.planning_num_sms(implementation, None)
        planned = problem._replace(num_sms=num_sms)
        gpu = extension.planning_gpu("cuda") if implementation == "cuda" else ""
        config = ranking.rank(planned, backend=implementation, gpu=gpu)[0]["config"]
        function = tuning_operands.matmul(planned, config, implementation)
        return prepared_jax(function, *arrays, feedback=problem.accumulate, config=config)

    return prepare


def _bfloat16(operands: GroupedOperands) -> Prepared:
    """lax.ragged_dot, or a batched dot where all groups have the same room."""
    case = operands.case
    lhs, rhs = operands.dequantized(jnp.bfloat16)
    if case.kind == "masked":

        def batched(lhs, rhs):
            x = lhs.reshape(case.num_groups, case.m, case.k)
            return jnp.einsum("gmk,gnk->gmn", x, rhs).reshape(-1, case.n)

        return prepared_jax(batched, lhs, rhs)
    if case.kind == "k_grouped":
        if case.k % case.num_groups:
            raise NotApplicableError("groups of K differ")

        def by_group(lhs, rhs, accumulator):
            x, y = (a.reshape(a.shape[0], case.num_groups, -1) for a in (lhs, rhs))
            out = jnp.einsum("mgk,ngk->gmn", x, y, preferred_element_type=jnp.float32)
            return out.reshape(-1, case.n) + accumulator

        return prepared_jax(by_group, lhs, rhs, operands.given.accumulator, feedback=True)

    def ragged(lhs, rhs, sizes):
        return jax.lax.ragged_dot(lhs, jnp.swapaxes(rhs, 1, 2), sizes)

    return prepared_jax(ragged, lhs, rhs, operands.sizes)


def _deep_gemm(operands: GroupedOperands) -> Prepared:
    """Scales are brought into its layout before: its time is the product's alone."""
    torch = torch_peers.import_torch()
    case, given = operands.case, operands.given
    if case.kind == "ragged":
        raise NotApplicableError("has no groups without padding on Hopper")
    if case.kind == "k_grouped":
        return _deep_gemm_k_grouped(operands)
    lhs, rhs, lhs_scales, rhs_scales, data = (
        torch_peers.to_torch(x)
        for x in (
            given.lhs_values, given.rhs_values, given.lhs_scales, given.rhs_scales, given.group_data
        )
    )  # fmt: skip
    groups = case.num_groups
    rhs = rhs.view(groups, case.n, case.k)
    rhs_scales = rhs_scales.contiguous().view(groups, -1, rhs_scales.shape[-1])
    rows = (groups, case.m) if case.kind == "masked" else (case.m,)
    lhs, lhs_scales = lhs.view(*rows, case.k), lhs_scales.contiguous().view(*rows, -1)
    lhs_scales = torch_peers.deep_gemm_scales(lhs_scales)
    out = torch.empty((*rows, case.n), dtype=torch.bfloat16, device=lhs.device)
    function = torch_peers.deep_gemm_function(*_DEEP_GEMM_NAMES[case.kind])
    more = (case.m,) if case.kind == "masked" else ()

    def product() -> Any:
        function((lhs, lhs_scales), (rhs, rhs_scales), out, data, *more)
        return out.view(-1, case.n)

    return torch_peers.prepared_deep_gemm(product)


def _deep_gemm_k_grouped(operands: GroupedOperands) -> Prepared:
    """Its operands are flat, one group's matrix after the other; it adds to the result in place."""
    torch = torch_peers.import_torch()
    case, given = operands.case, operands.given
    function = torch_peers.deep_gemm_function("k_grouped_fp8_gemm_nt_contiguous")
    sizes = [int(size) for size in given.group_data]

    def flat(values: jax.Array, scales: jax.Array) -> tuple[Any, Any]:
        parts = torch_peers.to_torch(values).view(torch.uint8).split(sizes, dim=1)
        joined = torch.cat([part.reshape(-1) for part in parts]).view(torch.float8_e4m3fn)
        return joined, torch_peers.deep_gemm_scales(torch_peers.to_torch(scales).contiguous())

    lhs, rhs = (
        flat(values, scales)
        for values, scales in (
            (given.lhs_values, given.lhs_scales),
            (given.rhs_values, given.rhs_scales),
        )
    )
    data = torch_peers.to_torch(given.group_data)
    out = torch_peers.to_torch(given.accumulator).view(case.num_groups, case.m, case.n).clone()

    def product() -> Any:
        function(lhs, rhs, out, sizes, data, out)
        return out.view(-1, case.n)

    return torch_peers.prepared_deep_gemm(product)


def with_groups(peer: Peer) -> Peer:
    """Returns a peer of the registry that also takes the kinds with groups, where it has them."""
    implementations = {"ours_xla": "xla", "ours_sim": "sim"}
    implementations["ours"] = "cuda" if "gpu" in peer.platforms else "xla"
    if peer.name in implementations:
        grouped = ours(implementations[peer.name])
    else:
        grouped = {"jax_bf16": _bfloat16, "deep_gemm": _deep_gemm}.get(peer.name)
    if grouped is None:
        return peer
    single = peer.prepare

    def prepare(operands):
        return (grouped if operands.case.kind in KINDS else single)(operands)

    return dataclasses.replace(peer, prepare=prepare, kinds=(*peer.kinds, *KINDS))
