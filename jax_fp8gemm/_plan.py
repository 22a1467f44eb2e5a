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
    num_sms: int | None = None,
    implementation: str = "cuda",
) -> list[dict[str, Any]]:
    """Returns the kernel configurations for a problem, best first: `gemm` uses the first.

    Their order is a pure function of the arguments, SM count included. Nothing is compiled, and no
    GPU is needed.

    Args:
        m: Rows of `lhs`, at least 1.
        n: Rows of `rhs`, at least 1.
        k: Columns of both, at least 1.
        lhs_dtype: `float8_e4m3fn` or `float8_e5m2`.
        rhs_dtype: `float8_e4m3fn` or `float8_e5m2`.
        preferred_element_type: Dtype of the result: `bfloat16`, `float16` or `float32`.
        accumulate: Whether an accumulator is added.
        num_sms: SMs to plan for, 1 to 1024; None for those of this machine's first GPU, or of an
            H100 SXM where there is none.
        implementation: "cuda" or "sim".

    Returns:
        A list of dicts: "config" is a configuration's key; the other entries are its tile and
        its modelled costs, "microseconds" in all.

    Raises:
        TypeError: A dtype is unsupported, or an extent is not an int.
        ValueError: An extent or `num_sms` is out of range, or `implementation` has no kernels.

    Transformations:
        None: it takes and returns no arrays.

    Example:
        >>> plan(4096, 7168, 2048, num_sms=132)[0]["config"]
    """
    where = "plan"
    m, n, k = (_checks.extent(where, name, v, 1) for name, v in (("m", m), ("n", n), ("k", k)))
    num_sms = _checks.num_sms(where, num_sms)
    backend = _checks.one_of(where, "implementation", implementation, ("cuda", "sim"))
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
        kind="dense",
        scaling="1d2d",
        m=m,
        n=n,
        k=k,
        num_groups=1,
        **dtypes,
        accumulate=bool(accumulate),
        num_sms=num_sms or _ffi.planning_num_sms(backend, None),
        backend=backend,
    )
