# SPDX-License-Identifier: Apache-2.0
"""What the tests judge results by: tolerances, their derivation, and simulator settings."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from jax_fp8gemm._src.native import sim_library
from jax_fp8gemm._src.operands import checks, group_checks
from jax_fp8gemm._src.operands.block_scaled import BlockScaled, as_block_scaled
from jax_fp8gemm.testing import oracle

# Half a unit in the last place, relative: the one rounding to the result's dtype.
_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}

# What accumulation loses, relative to the sum of the magnitudes.
_ACCUMULATION = {
    # A chain of n float32 additions loses at most n * 2^-24 and some sqrt(n) * 2^-24 in practice.
    # XLA's dot products sum in lanes and tiles: 2^-16 is the worst case of chains of 256.
    "xla": 2.0**-16,
    # 128 products per block and then one addition per block, all in float32: at most
    # (128 + K / 128) * 2^-24, which is 2^-16 at K = 16384.
    "sim": 2.0**-16,
    # The tensor cores cut each product of a block, and the running sum at each step of 32, to 13
    # fraction bits below the step's largest exponent E: a block's 128 products lose less than
    # 2^-13 * 2^E each. Where their mean magnitude is at least 2^-4 * 2^E, as in data without
    # outliers, that is 2^-9 of the sum of their magnitudes. The blocks add up in float32. Without
    # any condition the bound is 128 * 2^-13 = 2^-6: pass it as `tolerance` for such data.
    "cuda": 2.0**-9,
}

# Bound on |out - ref| / (|lhs| @ |rhs|.T + |accumulator|), by result dtype and implementation.
TOLERANCE = {
    (dtype, implementation): rounding + accumulation
    for dtype, rounding in _ROUNDING.items()
    for implementation, accumulation in _ACCUMULATION.items()
}

# Bound on `relative_error` over a whole result. Random roundings of relative size r give about
# r^2 / 6, so 2.5e-6 for bfloat16; on data of one sign the tensor cores' cut adds about 2e-7.
GLOBAL_TOLERANCE = {"bfloat16": 1e-5, "float16": 1e-6, "float32": 1e-6}
GLOBAL_MIN_SIZE = 64  # fewer elements do not average

_SIMULATOR_CHOICES = {
    "timing": ("early", "late", "random"),
    "scheduler": ("lifo", "random", "starve_warp"),
    "numerics": ("exact", "hopper"),
    "shadow": ("off", "interval", "happens_before"),
}


def relative_error(out: Any, ref: Any) -> float:
    """Returns `1 - 2<x, y> / (<x, x> + <y, y>)`, the squared relative distance of two arrays.

    Args:
        out: Any array.
        ref: An array of the same shape.

    Returns:
        0 for equal arrays, about `r**2 / 2` at a relative distance r, NaN where either holds a
        non-finite value. Computed as the same number without cancellation,
        `<x - y, x - y> / (<x, x> + <y, y>)`, of both arrays over their largest magnitude, so that
        no square overflows.

    Raises:
        ValueError: The shapes differ.

    Transformations:
        None: it computes with NumPy in float64.

    Example:
        >>> relative_error(out, ref) < 1e-5
    """
    x, y = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"relative_error: out must have shape {y.shape}, got {x.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    peak = max(np.abs(x).max(initial=0), np.abs(y).max(initial=0))
    if peak == 0:
        return 0.0
    x, y = x / peak, y / peak
    return float(np.sum((x - y) ** 2) / (np.sum(x * x) + np.sum(y * y)))


def assert_gemm_close(
    out: Any,
    lhs: BlockScaled | tuple,
    rhs: BlockScaled | tuple,
    accumulator: Any = None,
    *,
    implementation: str | None = "xla",
    tolerance: float | None = None,
) -> None:
    """Checks a result of `gemm` against the float64 product of the dequantized operands.

    Per element, with the magnitude `|lhs| @ |rhs|.T + |accumulator|`::

        |out - ref| <= tolerance * magnitude + step

    with the `step` that `out` may be off around zero: float16's smallest subnormal number; the
    smallest normal one of bfloat16 and float32, whose subnormals may be flushed. For finite results
    of at least 64 elements, `relative_error(out, ref)` over the elements that are off by more than
    a step, the others taken as equal, must be within `GLOBAL_TOLERANCE`, or `tolerance**2` where
    that is larger and `tolerance` over 2**-8. `out` must be non-finite where the reference is, or
    where it is beyond the dtype's largest number by more than the bound; it may be so where the
    magnitude and the bound together are beyond it. So every correctly rounded result passes.

    Args:
        out: `(M, N)` result, `bfloat16`, `float16` or `float32`.
        lhs: `(M, K)` operand, as `gemm` takes it.
        rhs: `(N, K)` operand, as `gemm` takes it.
        accumulator: `(M, N)` accumulator, or None.
        implementation: What computed `out`: "xla", "cuda" or "sim"; None is the loosest of them.
        tolerance: Replaces the entry of `TOLERANCE`.

    Raises:
        AssertionError: `out` is not close; names the worst element, its values and its bound.
        TypeError: `out` has another dtype.
        ValueError: `out` has another shape, or `implementation` is unknown.

    Transformations:
        None: it computes with NumPy in float64.

    Example:
        >>> assert_gemm_close(gemm(x, w), x, w, implementation="cuda")
    """
    op_name = "assert_gemm_close"
    a = oracle.float64(as_block_scaled(op_name, "lhs", lhs, checks.BLOCKS))
    b = oracle.float64(as_block_scaled(op_name, "rhs", rhs, checks.BLOCKS[::-1]))
    reference = oracle.with_accumulator(oracle.dense(a, b), accumulator)
    _assert_close(op_name, out, reference, "M, N", implementation, tolerance)


_EXTENTS = {"ragged": "T, N", "contiguous": "T, N", "masked": "G, M_max, N", "k_grouped": "G, M, N"}


def assert_grouped_gemm_close(
    out: Any,
    lhs: BlockScaled | tuple,
    rhs: BlockScaled | tuple,
    groups: Any,
    accumulator: Any = None,
    *,
    kind: str = "ragged",
    padding: str = "zero",
    implementation: str | None = "xla",
    tolerance: float | None = None,
) -> None:
    """Checks a grouped product against the float64 products of the dequantized groups.

    Elements are judged as by `assert_gemm_close`. Rows that belong to no group, and the results of
    empty groups, must be exactly zero (or the accumulator); what the operands hold there is not
    looked at.

    Args:
        out: Result of the function that `kind` names.
        lhs: Operand, as that function takes it.
        rhs: Operand, as that function takes it.
        groups: Its `group_sizes`, `group_ids` or `masked_m`.
        accumulator: Its accumulator, or None.
        kind: "ragged" for `grouped_gemm`, "contiguous" for `grouped_gemm_contiguous`, "masked" for
            `grouped_gemm_masked` or "k_grouped" for `k_grouped_gemm`.
        padding: "unspecified" leaves rows unjudged that belong to no group.
        implementation: What computed `out`, as for `assert_gemm_close`.
        tolerance: Replaces the entry of `TOLERANCE`.

    Raises:
        AssertionError: `out` is not close, or padding is not zero.
        TypeError: `out` has another dtype.
        ValueError: `out` has another shape, or `kind`, `padding` or `implementation` is unknown.

    Transformations:
        None: it computes with NumPy in float64.

    Example:
        >>> y = grouped_gemm(x, experts, group_sizes)
        >>> assert_grouped_gemm_close(y, x, experts, group_sizes, implementation=None)
    """
    op_name = "assert_grouped_gemm_close"
    checks.one_of(op_name, "kind", kind, oracle.GROUPED_KINDS)
    checks.one_of(op_name, "padding", padding, checks.PADDINGS)
    rhs_block = checks.ROW_BLOCK if kind == "k_grouped" else checks.SQUARE_BLOCK
    a = oracle.float64(as_block_scaled(op_name, "lhs", lhs, (checks.ROW_BLOCK,)))
    b = oracle.float64(as_block_scaled(op_name, "rhs", rhs, (rhs_block,)))
    groups = group_checks.int32(op_name, "groups", np.asarray(groups))
    reference = oracle.grouped(kind, a, b, np.asarray(groups))
    if padding == "unspecified":
        checks.array(op_name, "out", out, checks.RESULT_DTYPES)
        out = jnp.where(reference[2], jnp.zeros_like(out), out)
    reference = oracle.with_accumulator(reference, accumulator)
    _assert_close(op_name, out, reference, _EXTENTS[kind], implementation, tolerance)


def _assert_close(
    op_name: str, out: Any, reference: oracle.Reference, extents: str, implementation, tolerance
) -> None:
    """Judges a whole result, element by element and globally."""
    implementation = checks.implementation(op_name, implementation) or "cuda"
    checks.array(op_name, "out", out, checks.RESULT_DTYPES)
    dtype = jnp.dtype(out.dtype)
    ref, magnitude, is_padding = reference
    checks.has_shape(op_name, "out", out, extents, ref.shape)
    tolerance = TOLERANCE[dtype.name, implementation] if tolerance is None else tolerance
    got = np.asarray(out, np.float64)
    wrong = np.argwhere(is_padding & (got != 0))
    if len(wrong):
        index = tuple(map(int, wrong[0]))
        raise AssertionError(
            f"{len(wrong)} elements that belong to no group are not zero; the first is {index}:"
            f" got {got[index]:.9g}"
        )
    # float16 results reach its subnormals; the others' may be flushed to zero.
    limits = jnp.finfo(dtype)
    step = limits.smallest_subnormal if dtype == jnp.float16 else limits.smallest_normal
    _assert_elements_close(got, ref, magnitude, tolerance, float(step), float(limits.max))
    finite = np.isfinite(ref) & np.isfinite(got)
    if ref.size >= GLOBAL_MIN_SIZE and finite.all():
        # Around zero roundings are absolute: they say nothing about the relative distance.
        error = relative_error(np.where(np.abs(got - ref) <= float(step), ref, got), ref)
        limit = max(GLOBAL_TOLERANCE[dtype.name], tolerance**2 if tolerance > 2**-8 else 0)
        if not error <= limit:
            raise AssertionError(f"relative error of the result is {error:.3g}, over {limit:.3g}")


def _assert_elements_close(
    got, ref, magnitude, tolerance: float, step: float, largest: float
) -> None:
    """Raises AssertionError naming the worst element, unless each one is within its bound."""
    if not ref.size:
        return
    with np.errstate(invalid="ignore", over="ignore"):
        bound = tolerance * magnitude + step
        excess = np.abs(got - ref) / bound
        must_overflow = ~np.isfinite(ref) | (np.abs(ref) - bound > largest)
        may_overflow = must_overflow | ~(magnitude + bound <= largest)
    excess = np.where(np.isfinite(got), excess, np.where(may_overflow, 0, np.inf))
    excess = np.where(must_overflow, np.where(np.isfinite(got), np.inf, 0), excess)
    excess = np.nan_to_num(excess, nan=np.inf, posinf=np.inf)
    if excess.max() <= 1:
        return
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    index = tuple(map(int, worst))
    raise AssertionError(
        f"{int((excess > 1).sum())} of {excess.size} elements are out of bounds; the worst is"
        f" {index}: got {got[worst]:.9g}, want {ref[worst]:.9g} within {bound[worst]:.3g}"
        f" ({tolerance:.3g} of the magnitude {magnitude[worst]:.9g})"
    )


def check_groups(function: Callable) -> Callable:
    """Returns `function` so that sizes and ids of groups that make no sense raise.

    Where sizes and ids make no sense, the products cut them down to what is safe and leave the rows
    concerned unspecified. With this, every product and quantizer of groups in `function` checks
    that its `group_sizes` are not negative and fit, that enough of them follow `group_offset`, that
    `masked_m` is within the capacity, and that `group_ids` are groups or -1, with one group in each
    aligned block and padding behind it. It waits for the result.

    Args:
        function: Any function of arrays; it may use every transformation inside.

    Returns:
        A function with the arguments and results of `function`, which raises ValueError naming the
        argument and what it held.

    Raises:
        TypeError: `function` is not callable.

    Transformations:
        None of the returned function: transform what is inside. `checkify.checkify` of
        `jax.experimental` is what collects the checks.

    Example:
        >>> y = check_groups(grouped_gemm)(x, experts, group_sizes)
    """
    if not callable(function):
        raise TypeError(f"check_groups: function must be callable, got {type(function).__name__}.")

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with group_checks.active():
            return function(*args, **kwargs)

    collecting = jax.jit(checkify.checkify(traced))

    @functools.wraps(function)
    def checked(*args, **kwargs):
        error, result = collecting(*args, **kwargs)
        error.throw()
        return result

    return checked


@contextlib.contextmanager
def simulator(
    *,
    seed: int | None = None,
    timing: str | None = None,
    scheduler: str | None = None,
    numerics: str | None = None,
    shadow: str | None = None,
) -> Iterator[Callable[[], dict[str, int]]]:
    """Sets options of `implementation="sim"` for calls that run inside the `with` block.

    They are settings of the process, read when a kernel runs, and restored at the end: wait for
    results inside the block (`jax.block_until_ready`). None leaves an option as it is. What the
    kernels do is counted meanwhile.

    Args:
        seed: Seed of every random choice; the same one gives the same schedule.
        timing: When asynchronous copies and tensor core products happen: "early" at issue, "late"
            when nothing else can run, or "random".
        scheduler: Which thread runs next: "lifo", "random" or "starve_warp".
        numerics: "exact" accumulates in float32, "hopper" as the tensor cores do: judge it by
            the tolerance of "cuda".
        shadow: Which races are looked for: "off", "interval" or "happens_before".

    Yields:
        A function that returns what simulated kernels have done since the block began: "launches",
        "wgmma" of a warpgroup, "loads" and "stores" by TMA with "bytes_loaded" and "bytes_stored",
        "bank_conflicts" as extra wavefronts, and "switches" between simulated threads.

    Raises:
        TypeError: `seed` is not an int.
        ValueError: An option has an unknown value, or `seed` is not from 0 to 2**64 - 1.
    """
    chosen = {"timing": timing, "scheduler": scheduler, "numerics": numerics, "shadow": shadow}
    options: dict[str, Any] = {}
    for name, value in chosen.items():
        if value is not None:
            allowed = _SIMULATOR_CHOICES[name]
            options[name] = allowed.index(checks.one_of("simulator", name, value, allowed))
    if seed is not None:
        options["seed"] = checks.extent("simulator", "seed", seed, 0, 2**64 - 1)
    before, start = sim_library.options(), sim_library.stats()
    sim_library.set_options({**before, **options})
    try:
        yield lambda: {name: count - start[name] for name, count in sim_library.stats().items()}
    finally:
        sim_library.set_options(before)
