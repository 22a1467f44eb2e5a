# SPDX-License-Identifier: Apache-2.0
"""plan: which kernel configurations a problem can have, best first; needs no GPU."""

from typing import Any

import jax.numpy as jnp

from jax_fp8gemm._src.native import extension, ranking
from jax_fp8gemm._src.native.gemm_problem import SCALINGS, Problem
from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.tables import KINDS


def plan(
    m: int,
    n: int,
    k: int,
    *,
    lhs_dtype: Any = jnp.float8_e4m3fn,
    rhs_dtype: Any = jnp.float8_e4m3fn,
    preferred_element_type: Any = jnp.bfloat16,
    accumulate: bool = False,
    kind: str = "dense",
    rhs_block: tuple[int, int] | None = None,
    num_groups: int = 1,
    expected_m: int | None = None,
    num_sms: int | None = None,
    implementation: str = "cuda",
) -> list[dict[str, Any]]:
    """Returns the kernel configurations for a problem, best first: the first is used.

    Their order is a pure function of the arguments, SM count included, but for the first: what
    measured fastest where a tuned table for this machine's first GPU knows the problem. Nothing is
    compiled, and no GPU is needed.

    Args:
        m: Rows of `lhs`, at least 1; for "masked" the capacity of each group.
        n: Rows of `rhs`, at least 1, in each group if groups have weights of their own.
        k: Columns of both, at least 1; for "k_grouped" of all groups together.
        lhs_dtype: `float8_e4m3fn` or `float8_e5m2`.
        rhs_dtype: `float8_e4m3fn` or `float8_e5m2`.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        accumulate: Whether an accumulator is added: "dense" and "k_grouped" only.
        kind: "dense" for `gemm`, "ragged" for `grouped_gemm`, "contiguous" for
            `grouped_gemm_contiguous`, "masked" for `grouped_gemm_masked` or "k_grouped" for
            `k_grouped_gemm`.
        rhs_block: Block of `rhs`; None for (1, 128) if `kind` is "k_grouped" and (128, 128) if not.
        num_groups: Number of groups, 1 to 512.
        expected_m: Rows that a masked group is likely to have; None if unknown.
        num_sms: SMs to plan for, 1 to 1024; None for those of this machine's first GPU, or of an
            H100 SXM where there is none.
        implementation: "cuda" or "sim".

    Returns:
        A list of dicts: "config" is a configuration's key; the other entries are its tile and
        its modelled costs, "microseconds" in all.

    Raises:
        TypeError: A dtype is unsupported, or an extent is not an int.
        ValueError: An extent or `num_sms` is out of range, `kind` is unknown or does not go with
            `rhs_block`, `accumulate` or `num_groups`, or `implementation` has no kernels.

    Transformations:
        None: it takes and returns no arrays.

    Example:
        >>> plan(4096, 7168, 2048, num_sms=132)[0]["config"]
    """
    op_name = "plan"
    m, n, k = (
        checks.extent(op_name, name, value, 1, checks.MAX_EXTENT)
        for name, value in (("m", m), ("n", n), ("k", k))
    )
    num_sms = checks.num_sms(op_name, num_sms)
    backend = checks.one_of(op_name, "implementation", implementation, ("cuda", "sim"))
    checks.one_of(op_name, "kind", kind, tuple(KINDS))
    scaling = _scaling(op_name, kind, rhs_block)
    if accumulate and not KINDS[kind].accumulates:
        raise ValueError(f"{op_name}: accumulate must be False for kind {kind!r}, got True.")
    num_groups = checks.extent(op_name, "num_groups", num_groups, 1, checks.MAX_GROUPS)
    if num_groups > 1 and kind == "dense":
        raise ValueError(f"{op_name}: num_groups must be 1 for kind 'dense', got {num_groups}.")

    problem = Problem(
        m=m,
        n=n,
        k=k,
        kind=kind,
        scaling=scaling,
        num_groups=num_groups,
        a_dtype=checks.dtype_of(op_name, "lhs_dtype", lhs_dtype, checks.FP8_DTYPES).name,
        b_dtype=checks.dtype_of(op_name, "rhs_dtype", rhs_dtype, checks.FP8_DTYPES).name,
        d_dtype=checks.result_dtype(op_name, preferred_element_type).name,
        accumulate=bool(accumulate),
        expected_m=0 if expected_m is None else checks.extent(op_name, "expected_m", expected_m, 0),
        num_sms=num_sms or extension.planning_num_sms(backend, None),
    )
    return ranking.rank(problem, backend=backend)


def _scaling(op_name: str, kind: str, rhs_block: tuple[int, int] | None) -> str:
    """Returns the scaling of a kind for a block of rhs, or None for the usual one."""
    scalings = KINDS[kind].scalings
    if rhs_block is None:
        return scalings[0]
    allowed = [block for block, scaling in SCALINGS.items() if scaling in scalings]
    return SCALINGS[checks.block(op_name, rhs_block, allowed)]
