# SPDX-License-Identifier: Apache-2.0
"""dot_general: jax.lax.dot_general's signature over dot, for frameworks that let one inject it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled
from jax_fp8gemm._src.training.dot import dot_of
from jax_fp8gemm._src.training.master_weight import MasterWeight
from jax_fp8gemm._src.training.quantized import Weight, checked_weight
from jax_fp8gemm._src.training.recipe import Recipe
from jax_fp8gemm._src.transforms import meshes

_NAME = "dot_general"


def dot_general(
    lhs: jax.Array,
    rhs: Weight,
    dimension_numbers: tuple[
        tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]
    ],
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    implementation: str | None = None,
    recipe: Recipe | None = None,
) -> jax.Array:
    """Multiplies as `dot` does, over any dimensions, with `jax.lax.dot_general`'s arguments.

    `lhs` are the activations and `rhs` is the weight::

        out[b, m, n] = sum over k of  lhs[b, m, k] * rhs[b, k, n]

    with b, m, n and k standing for any number of dimensions each, in the order of the arguments.
    To be given to a layer: `flax.nnx.Linear(..., dot_general=jax_fp8gemm.dot_general)`.

    Args:
        lhs: Array of `bfloat16`, `float16` or `float32`.
        rhs: Array of one of these dtypes; or a `MasterWeight` of shape `(*batch, K, N)` or
            `(*batch, N, K)`; or the weight as `BlockScaled` of shape `(*batch, N, K)`, whatever the
            batch, and block (128, 128), for which see `dot`. A weight stored as `(N, K)` is
            quantized as it lies: only its bits are transposed.
        dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`. Scale
            blocks are cut along the contracted dimensions in their order.
        precision: None or `jax.lax.Precision.DEFAULT`: operands are FP8 and there is no other one.
        preferred_element_type: Dtype of the result; None for the promoted one of the operands.
        out_sharding: How an explicit mesh shards the result, or None to reshard no operand.
        implementation: None, "cuda", "xla" or "sim", as for `gemm`.
        recipe: As for `dot`.

    Returns:
        The product: batch dimensions, then those of `lhs`, then those of `rhs`.

    Raises:
        TypeError: An operand has an unsupported dtype; or forward mode is asked for.
        ValueError: `dimension_numbers` are out of range, repeated or of unequal extents;
            `precision` is another one; `out_sharding` is given without an explicit mesh; one
            shards dimensions that have to be merged; or as `dot`.
        NotImplementedError: As `gemm`.
        jax.errors.JaxRuntimeError: As `gemm`.

    Transformations:
        As `dot`.

    Example:
        >>> y = dot_general(activations, weight.T, (((1,), (0,)), ((), ())))    # (M, N)
    """
    lhs = checks.floating(_NAME, "lhs", lhs)
    rhs = checked_weight(_NAME, "rhs", rhs)
    checks.default_precision(_NAME, precision)
    (lhs_k, rhs_k), (lhs_b, rhs_b) = _validated(dimension_numbers, lhs, rhs)
    lhs_free = [i for i in range(lhs.ndim) if i not in (*lhs_k, *lhs_b)]
    rhs_free = [i for i in range(rhs.ndim) if i not in (*rhs_k, *rhs_b)]
    num_batch = len(lhs_b)
    ndim = num_batch + len(lhs_free) + len(rhs_free)
    spec = meshes.explicit_spec(_NAME, out_sharding, ndim, lhs, *jax.tree.leaves(rhs))
    free_shape = [rhs.shape[i] for i in rhs_free]

    x = lax.transpose(lhs, (*lhs_b, *lhs_free, *lhs_k))
    x = _merged("lhs", x, x.ndim - len(lhs_k), x.ndim)
    # A weight stored as (N, K) stays so: its bits are transposed, where they have to be.
    w_is_nk = (*rhs_b, *rhs_free, *rhs_k) == tuple(range(rhs.ndim)) and bool(rhs_free)
    w = rhs
    if isinstance(rhs, BlockScaled):
        _check_blocks(rhs, w_is_nk, rhs_free, rhs_k)
    elif isinstance(rhs, MasterWeight):
        _check_master(rhs, ((lhs_k, rhs_k), (lhs_b, rhs_b)))
    else:
        rows, columns = (rhs_free, rhs_k) if w_is_nk else (rhs_k, rhs_free)
        w = lax.transpose(rhs, (*rhs_b, *rows, *columns))
        w = _merged("rhs", w, num_batch + len(rows), w.ndim)
        w = _merged("rhs", w, num_batch, num_batch + len(rows))

    # What the product itself can scatter its sum over: one matrix, with dimensions as they are.
    wanted = spec if not num_batch and len(rhs_free) == 1 else None

    def product(x, w):
        options = (preferred_element_type, implementation, recipe, wanted)
        return dot_of(_NAME, x, w, *options, w_is_nk=w_is_nk)

    for _ in range(num_batch):
        product = jax.vmap(product)
    out = product(x, w)
    out = out.reshape(*out.shape[:-1], *free_shape)
    return out if spec is None else meshes.reshard(out, spec, meshes.mesh_of(out))


def _check_blocks(
    rhs: BlockScaled, w_is_nk: bool, rhs_free: Sequence[int], rhs_k: Sequence[int]
) -> None:
    """Checks that a quantized weight is used as it lies, which its blocks need."""
    if not w_is_nk or (len(rhs_free), len(rhs_k)) != (1, 1):
        raise ValueError(
            f"{_NAME}: rhs must be (*batch, N, K) with one N and one K, in this order, where it is"
            f" a BlockScaled, got shape {tuple(rhs.shape)} with dimensions {tuple(rhs_k)}"
            f" contracted and {tuple(rhs_free)} kept."
        )


def _check_master(rhs: MasterWeight, dimension_numbers) -> None:
    """Checks that the matrices of a weight are at most transposed, which its blocks allow."""
    (_, rhs_k), (_, rhs_b) = dimension_numbers
    if rhs.ndim != len(rhs_b) + 2 or len(rhs_k) != 1 or rhs_b != tuple(range(len(rhs_b))):
        raise ValueError(
            f"{_NAME}: rhs must be (*batch, K, N) or (*batch, N, K) with one N and one K where it"
            f" is a MasterWeight, got shape {tuple(rhs.shape)} and dimension_numbers"
            f" {dimension_numbers}."
        )


def _validated(dimension_numbers, lhs, rhs):
    """Returns dimension numbers as tuples of non-negative ints, checked against the shapes."""
    try:
        numbers = tuple(tuple(tuple(map(int, side)) for side in pair) for pair in dimension_numbers)
        (lhs_k, rhs_k), (lhs_b, rhs_b) = numbers
    except (TypeError, ValueError):
        raise ValueError(
            f"{_NAME}: dimension_numbers must be ((lhs_contracting, rhs_contracting),"
            f" (lhs_batch, rhs_batch)), got {dimension_numbers!r}."
        ) from None
    for name, x, dims in (("lhs", lhs, (*lhs_k, *lhs_b)), ("rhs", rhs, (*rhs_k, *rhs_b))):
        if len(set(dims)) < len(dims) or any(not 0 <= i < x.ndim for i in dims):
            raise ValueError(
                f"{_NAME}: dimension_numbers must name distinct dimensions of {name}, of shape"
                f" {tuple(x.shape)}, got {dims}."
            )
    for name, ours, theirs in (("contracting", lhs_k, rhs_k), ("batch", lhs_b, rhs_b)):
        extents = [lhs.shape[i] for i in ours], [rhs.shape[i] for i in theirs]
        if extents[0] != extents[1]:
            raise ValueError(
                f"{_NAME}: {name} dimensions of rhs must have the extents of those of lhs ="
                f" {extents[0]}, got {extents[1]}."
            )
    return numbers


def _merged(name: str, x: jax.Array, start: int, stop: int) -> jax.Array:
    """Returns x with dimensions from start to stop as one, which may be one of extent 1."""
    spec = meshes.spec_of(x)
    if spec and any(spec[start + 1 : stop]):
        raise ValueError(
            f"{_NAME}: an explicit mesh must not shard dimensions {start + 1} to {stop - 1} of"
            f" transposed {name}, which are merged, got {spec}; use jax.sharding.reshard first."
        )
    return lax.collapse(x, start, stop)
