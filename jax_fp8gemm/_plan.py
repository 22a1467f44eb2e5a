# SPDX-License-Identifier: Apache-2.0
"""plan: which kernel configurations a problem can have, best first; needs no GPU."""

from typing import Any

import jax.numpy as jnp

from jax_fp8gemm import _checks


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
        m: Rows of `lhs`, at least 1; for "masked" the room of each group.
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
    where = "plan"
    m, n, k = (
        _checks.extent(where, name, value, 1, _checks.MAX_EXTENT)
        for name, value in (("m", m), ("n", n), ("k", k))
    )
    num_sms = _checks.num_sms(where, num_sms)
    backend = _checks.one_of(where, "implementation", implementation, ("cuda", "sim"))
    groups = _groups(where, kind, rhs_block, num_groups, expected_m, accumulate)
    fp8 = _checks.FP8_DTYPES
    dtypes = {
        "lhs_dtype": _checks.dtype_of(where, "lhs_dtype", lhs_dtype, fp8),
        "rhs_dtype": _checks.dtype_of(where, "rhs_dtype", rhs_dtype, fp8),
        "preferred_element_type": _checks.dtype_of(
            where, "preferred_element_type", preferred_element_type, _checks.RESULT_DTYPES
        ),
    }
    from jax_fp8gemm import _ffi  # here, so that importing the package loads no extension

    return _ffi.rank_configs(
        m=m,
        n=n,
        k=k,
        **groups,
        **dtypes,
        accumulate=bool(accumulate),
        num_sms=num_sms or _ffi.planning_num_sms(backend, None),
        backend=backend,
    )


def _groups(where: str, kind, rhs_block, num_groups, expected_m, accumulate) -> dict[str, Any]:
    """Returns what a validated kind and its groups are to the planner."""
    kinds = ("dense", "ragged", "contiguous", "masked", "k_grouped")
    _checks.one_of(where, "kind", kind, kinds)
    num_groups = _checks.extent(where, "num_groups", num_groups, 1, _checks.MAX_GROUPS)
    expected_m = 0 if expected_m is None else _checks.extent(where, "expected_m", expected_m, 0)
    allowed = {"dense": _checks.BLOCKS, "k_grouped": (_checks.ROW_BLOCK,)}
    allowed = allowed.get(kind, (_checks.SQUARE_BLOCK,))
    if rhs_block is None:
        rhs_block = allowed[-1]
    else:
        rhs_block = _checks.block(where, rhs_block, allowed)
    if accumulate and kind not in ("dense", "k_grouped"):
        raise ValueError(f"{where}: accumulate must be False for kind {kind!r}, got True.")
    if num_groups > 1 and kind == "dense":
        raise ValueError(f"{where}: num_groups must be 1 for kind 'dense', got {num_groups}.")
    return {
        "kind": kind,
        "scaling": "1d1d" if rhs_block == _checks.ROW_BLOCK else "1d2d",
        "num_groups": num_groups,
        "expected_m": expected_m,
    }
