# SPDX-License-Identifier: Apache-2.0
"""BlockScaled as an array: parts, transposes, joins and factors are exact, or refused."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, E5M2, normal

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint
from jax_fp8gemm.testing import oracle

ROW, SQUARE = (1, 128), (128, 128)
ALL = slice(None)


def made(shape, block=SQUARE, dtype=E4M3, seed=0):
    """Values and scales of NumPy that no two blocks share."""
    *lead, rows, columns = shape
    scales_shape = (*lead, -(-rows // block[0]), -(-columns // block[1]))
    values = normal(shape, seed=seed).astype(dtype)
    scales = np.abs(normal(scales_shape, seed=seed + 1)) + np.float32(0.1)
    return fp8.BlockScaled(np.asarray(values), np.asarray(scales), block)


def on_device(x):
    return jax.tree.map(jnp.asarray, x)


def assert_exact(x, want):
    """Whatever is made is valid, and represents exactly the float64 array that it should."""
    fp8.BlockScaled(x.values, x.scales, x.block)
    np.testing.assert_array_equal(oracle.float64(x), want)


# ---- Indices -----------------------------------------------------------------------------------

PARTS = [
    ((3, 300, 260), SQUARE, 1),
    ((3, 300, 260), SQUARE, np.int64(-1)),
    ((3, 300, 260), SQUARE, slice(1, 9)),
    ((3, 300, 260), SQUARE, slice(None, None, -2)),
    ((3, 300, 260), SQUARE, np.array([2, 0, 2])),
    ((3, 300, 260), SQUARE, np.array([[0], [1]])),
    ((3, 300, 260), SQUARE, (2, slice(128, 256))),
    ((3, 300, 260), SQUARE, (..., slice(128, None))),
    ((3, 300, 260), SQUARE, (ALL, slice(128, 300), slice(None, 256))),
    ((3, 300, 260), SQUARE, (2, slice(-44, None), slice(128, 128))),
    ((3, 300, 260), SQUARE, (None, 0, ..., slice(None, 1000))),
    ((300, 260), SQUARE, (ALL, ALL)),
    ((300, 260), SQUARE, slice(300, None)),
    ((2, 5, 300), ROW, (ALL, 3)),
    ((2, 5, 300), ROW, (1, slice(4, None, -2))),
    ((2, 5, 300), ROW, (ALL, None, slice(1, 3), slice(128, 256))),
    ((2, 5, 300), ROW, (..., np.array([1, 4, 1]), ALL)),
    ((2, 5, 300), ROW, (np.array([1, 0, 1]), np.array([4, 0, 2]))),
    ((2, 3, 5, 300), ROW, (np.array([1, 0]), ALL, 2)),
]


@pytest.mark.parametrize(("shape", "block", "index"), PARTS)
def test_part_is_that_of_the_array(shape, block, index):
    x = made(shape, block)
    part = x[index]
    assert isinstance(part.values, np.ndarray) and isinstance(part.scales, np.ndarray)
    assert_exact(part, oracle.float64(x)[index])


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("shape", "block", "index"), PARTS)
def test_part_is_the_same_on_a_device(shape, block, index):
    x = made(shape, block)
    assert_exact(on_device(x)[index], oracle.float64(x)[index])


NOT_PARTS = {
    "start inside a block": (SQUARE, (0, slice(64, 256)), ValueError, r"dimension 1.* 128.*64, 2"),
    "stop inside a block": (SQUARE, (0, ALL, slice(0, 130)), ValueError, "dimension 2.*128.*130"),
    "stop inside a row of blocks": (ROW, (0, 0, ALL, slice(7)), IndexError, "3 entries.*got 4"),
    "step": (SQUARE, (0, slice(None, None, 128)), ValueError, "dimension 1.*step 1.*128"),
    "reversed": (SQUARE, (0, slice(None, None, -1)), ValueError, "dimension 1.*step 1"),
    "row of a block": (SQUARE, (0, 5), ValueError, "dimension 1.*128.*got 5"),
    "column of a block": (ROW, (0, ALL, 5), ValueError, "dimension 2.*128.*got 5"),
    "rows of a block": (SQUARE, (0, np.array([0, 128])), ValueError, "dimension 1.*128"),
    "new dimension inside": (SQUARE, (0, ALL, None), ValueError, "behind dimension 1"),
    "new dimension at the end": (ROW, (..., None), ValueError, "behind dimension 2"),
    "vector": (ROW, (0, 5), IndexError, "at least two dimensions"),
    "too large": (SQUARE, 3, IndexError, "dimension 0.*-3 to 2.*got 3"),
    "row too large": (ROW, (ALL, 300), IndexError, "dimension 1.*-300 to 299.*got 300"),
    "two ellipses": (ROW, (..., ...), IndexError, "one ..."),
    "mask": (SQUARE, np.array([True, False, True]), TypeError, "index.*True"),
    "bool": (SQUARE, True, TypeError, "index.*True"),
    "float": (SQUARE, 1.0, TypeError, "index.*1.0"),
    "list": (SQUARE, [0, 1], TypeError, r"index.*\[0, 1\]"),
}


@pytest.mark.parametrize("name", NOT_PARTS)
def test_what_would_cut_a_block_is_refused(name):
    block, index, error, words = NOT_PARTS[name]
    with pytest.raises(error, match=f"BlockScaled: .*{words}"):
        made((3, 300, 260), block)[index]


def test_traced_indices():
    x = on_device(made((3, 128, 128)))
    want = x.dequantize()
    order = jnp.asarray([2, 0, 1])
    one_by_one = jax.lax.scan(lambda _, i: (None, x[i].dequantize()), None, order)[1]
    np.testing.assert_array_equal(one_by_one, want[order])
    np.testing.assert_array_equal(
        jax.jit(lambda x: fp8.concatenate([x, 2 * x.mT])[4].dequantize())(x), 2 * want[1].T
    )
    np.testing.assert_array_equal(
        jax.vmap(lambda t, i: t[:, None][i].dequantize(), (None, 0))(x.mT, order),
        want.mT[order][:, None],
    )


def test_iterates_over_leading_dimensions_only():
    x = made((2, 130, 128))
    assert len(x) == 2
    for part, want in zip(x, oracle.float64(x), strict=True):
        assert_exact(part, want)
    with pytest.raises(TypeError, match=r"BlockScaled: iteration.*\(130, 128\)"):
        values, scales = x[0]


# ---- Transposes --------------------------------------------------------------------------------


def test_transposes_of_square_blocks():
    x = made((2, 130, 300))
    assert_exact(x.mT, oracle.float64(x).swapaxes(-1, -2))
    assert_exact(x[1].T, oracle.float64(x)[1].T)
    with pytest.raises(ValueError, match="T.*mT"):
        _ = x.T
    for name in ("T", "mT"):
        with pytest.raises(ValueError, match=r"\(128, 128\), got \(1, 128\).*quantize_transposed"):
            getattr(made((4, 128), ROW), name)


# ---- Joins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "axis", "shapes"),
    [
        (SQUARE, 0, [(256, 260), (128, 260), (64, 260)]),
        (SQUARE, -1, [(130, 128), (130, 7)]),
        (SQUARE, 0, [(0, 128), (1, 128)]),
        (SQUARE, -3, [(2, 130, 7), (1, 130, 7)]),
        (ROW, 0, [(3, 300), (5, 300)]),
        (ROW, 1, [(3, 256), (3, 300)]),
    ],
)
def test_concatenate_is_exact(block, axis, shapes):
    arrays = [made(shape, block, E5M2, seed) for seed, shape in enumerate(shapes)]
    want = np.concatenate([oracle.float64(x) for x in arrays], axis)
    assert_exact(fp8.concatenate(arrays, axis), want)


@pytest.mark.parametrize("axis", [0, 1, -3])
def test_stack_is_exact(axis):
    arrays = [made((2, 130, 7), seed=seed) for seed in range(3)]
    assert_exact(fp8.stack(arrays, axis), np.stack([oracle.float64(x) for x in arrays], axis))


X = made((128, 128))
NOT_JOINED = {
    "axis": (lambda: fp8.concatenate([X], 2), ValueError, "concatenate: axis.*-2 to 1, got 2"),
    "axis of stack": (lambda: fp8.stack([X], 1), ValueError, "stack: axis.*0 to 0.*got 1"),
    "last axis of stack": (lambda: fp8.stack([X], -1), ValueError, "stack: axis.*got -1"),
    # 4.5 blocks of rows, as in DeepSeek-V3: such a weight fits behind another alone.
    "cut block": (
        lambda: fp8.concatenate([made((576, 128)), X]),
        ValueError,
        r"concatenate: arrays\[0\] must have a multiple of 128.*axis 0, got 576",
    ),
    "cut row": (
        lambda: fp8.concatenate([made((2, 130), ROW), made((2, 128), ROW)], -1),
        ValueError,
        r"arrays\[0\] must have a multiple of 128.*axis 1, got 130",
    ),
    "none": (lambda: fp8.stack([]), ValueError, "arrays.*at least one"),
    "one array": (lambda: fp8.concatenate(made((2, 1, 1))), TypeError, "arrays.*BlockScaled"),
    "values": (lambda: fp8.stack([X, X.values]), TypeError, r"arrays\[1\].*ndarray"),
    "blocks": (lambda: fp8.concatenate([X, made((1, 128), ROW)]), ValueError, r"arrays\[1\].*\(1"),
    "ndim": (lambda: fp8.concatenate([X, made((1, 128, 128))]), ValueError, r"arrays\[1\].*3"),
    "dtypes": (lambda: fp8.stack([X, made((128, 128), dtype=E5M2)]), TypeError, "e5m2"),
    "shapes": (
        lambda: fp8.concatenate([X, made((128, 1))]),
        ValueError,
        r"arrays\[1\].*\(128, 1\)",
    ),
    "shapes of stack": (
        lambda: fp8.stack([X, made((1, 128))]),
        ValueError,
        r"arrays\[1\].*\(1, 128",
    ),
}


@pytest.mark.parametrize("name", NOT_JOINED)
def test_what_does_not_fit_is_not_joined(name):
    call, error, words = NOT_JOINED[name]
    with pytest.raises(error, match=words):
        call()


# ---- Numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [2, -0.5, np.float32(4), np.float64(8), np.array(2), jnp.bfloat16(0.25)], ids=repr
)
def test_powers_of_two_scale_exactly(number):
    x = made((130, 300))
    want = oracle.float64(x) * float(number)
    assert_exact(x * number, want)
    assert_exact(number * x, want)
    assert_exact(x / (1 / float(number)), want)
    assert_exact(jax.jit(operator.mul)(x, number), want)
    assert (x * number).values is x.values


def test_other_numbers_round_each_scale_once():
    x = made((130, 300))
    np.testing.assert_array_equal((0.3 * x).scales, x.scales * np.float32(0.3))
    assert_exact(-x, -oracle.float64(x))


def test_negative_scales_multiply(implementation):
    x, w = fp8.quantize(normal((4, 256), seed=3)), on_device(made((8, 256)))
    run = lambda w: fp8.gemm(x, w, implementation=implementation)  # noqa: E731
    np.testing.assert_array_equal(run(-w), -run(w))


def test_negative_scales_go_through_a_checkpoint(tmp_path):
    w = -made((130, 300))
    checkpoint.save(tmp_path / "saved", {"a.weight": w})
    assert_exact(checkpoint.load(tmp_path / "saved")["a.weight"], oracle.float64(w))


@pytest.mark.parametrize(
    "other", [np.ones(3, np.float32), jnp.ones((1, 1)), X, 1j, True, np.bool_(True), "2", None]
)
def test_only_real_numbers_scale(other):
    for product in (operator.mul, operator.truediv, lambda a, b: b * a):
        with pytest.raises(TypeError, match="BlockScaled: (factor|divisor).*dequantize"):
            product(X, other)


# ---- The rest ----------------------------------------------------------------------------------


def test_sizes_and_sharding():
    x = on_device(made((2, 130, 300), dtype=E5M2))
    assert (x.size, x.nbytes) == (2 * 130 * 300, 2 * 130 * 300 + 4 * 2 * 2 * 3)
    assert x.sharding == x.values.sharding
    shapes = jax.eval_shape(lambda x: x, x)
    assert (shapes.size, shapes.nbytes) == (x.size, x.nbytes)


@pytest.mark.parametrize("function", [np.asarray, jnp.asarray, np.stack, jnp.sum])
def test_is_no_plain_array(function):
    with pytest.raises(TypeError, match=r"BlockScaled"):
        function(made((2, 1, 1)))


def test_is_no_pair_of_values_and_scales():
    """Two experts would otherwise be unpacked as one operand."""
    with pytest.raises(ValueError, match="gemm: lhs must be a matrix"):
        fp8.gemm(made((2, 128, 128), ROW), X)
