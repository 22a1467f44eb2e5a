# SPDX-License-Identifier: Apache-2.0
"""BlockScaled: a validated value, a pytree that never validates, and the formula it stands for."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, E5M2, normal

import jax_fp8gemm as fp8


def random_values(shape, dtype=E4M3):
    return normal(shape, seed=3).astype(dtype)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("block", [(1, 128), (128, 128)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 128), (130, 300), (2, 3, 129, 257)])
def test_dequantize_follows_its_formula(shape, block, dtype):
    values = random_values(shape, dtype)
    *lead, rows, columns = shape
    scales = normal((*lead, -(-rows // block[0]), -(-columns // block[1])), seed=4)
    x = fp8.BlockScaled(values, scales, block)
    r, c = np.indices((rows, columns))
    want = np.asarray(values, np.float32) * np.asarray(scales)[..., r // block[0], c // block[1]]
    np.testing.assert_array_equal(x.dequantize(), want)
    assert x.dequantize().dtype == jnp.float32
    assert (x.shape, x.ndim, x.dtype) == (shape, len(shape), dtype)


def test_dequantize_rounds_once_to_the_wanted_dtype():
    x = fp8.quantize(normal((8, 128), seed=0))
    for dtype in (jnp.bfloat16, jnp.float16):
        np.testing.assert_array_equal(x.dequantize(dtype), x.dequantize().astype(dtype))


def test_leaves_are_values_then_scales_with_their_names():
    x = fp8.quantize(normal((8, 128), seed=0))
    leaves, treedef = jax.tree.flatten(x)
    assert leaves[0] is x.values and leaves[1] is x.scales
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    assert paths == [".values", ".scales"]
    assert treedef == jax.tree.structure(fp8.quantize(normal((3, 7), seed=0)))
    assert treedef != jax.tree.structure(fp8.quantize(normal((3, 7), seed=0), (128, 128)))


@pytest.mark.parametrize("leaf", [None, "spec", object(), 0])
def test_unflattening_never_validates(leaf):
    treedef = jax.tree.structure(fp8.quantize(normal((8, 128), seed=0)))
    x = jax.tree.unflatten(treedef, [leaf, leaf])
    assert x.values is leaf and x.scales is leaf and x.block == (1, 128)


def test_passes_through_transformations():
    x = fp8.quantize(normal((4, 8, 256), seed=0))
    want = x.dequantize()
    np.testing.assert_array_equal(jax.jit(lambda t: t)(x).dequantize(), want)
    np.testing.assert_array_equal(jax.vmap(lambda t: t.dequantize())(x), want)
    np.testing.assert_array_equal(jax.lax.map(lambda t: t.dequantize(), x), want)
    shapes = jax.eval_shape(lambda t: t, x)
    assert isinstance(shapes, fp8.BlockScaled) and shapes.shape == x.shape
    np.testing.assert_array_equal(jax.device_put(x, jax.devices()[0]).dequantize(), want)


def test_takes_numpy_arrays_and_shapes():
    x = fp8.quantize(normal((4, 256), seed=0))
    host = fp8.BlockScaled(np.asarray(x.values), np.asarray(x.scales), [1, 128])
    np.testing.assert_array_equal(host.dequantize(), x.dequantize())
    assert host.block == (1, 128)
    abstract = fp8.BlockScaled(
        jax.ShapeDtypeStruct((4, 256), E4M3), jax.ShapeDtypeStruct((4, 2), jnp.float32), (1, 128)
    )
    assert abstract.shape == (4, 256)


def test_is_immutable():
    x = fp8.quantize(normal((4, 256), seed=0))
    with pytest.raises(AttributeError, match="immutable"):
        x.block = (128, 128)
    with pytest.raises(AttributeError, match="immutable"):
        del x.values


def test_copies_pickles_and_prints():
    x = fp8.quantize(normal((2, 128), seed=0))
    for y in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        np.testing.assert_array_equal(y.dequantize(), x.dequantize())
        assert y.block == x.block
    assert repr(x).startswith("BlockScaled(values=") and "block=(1, 128)" in repr(x)


@pytest.mark.parametrize(
    ("axis", "num_scales", "error", "message"),
    [
        (0, 1, ValueError, r"axis must be one of the last two, got 0"),
        (3, 1, ValueError, r"axis must be an int from -3 to 2, got 3"),
        ("N", 1, TypeError, r"axis must be an int from -3 to 2, got 'N'"),
        (1, 1, ValueError, r"scales must be those of all 2 blocks .* 1, got shape \(3, 1, 1\)"),
    ],
)
def test_own_scales_of_what_is_no_part(axis, num_scales, error, message):
    mesh = jax.make_mesh((1,), ("d",), devices=jax.devices()[:1])
    values, scales = jnp.zeros((3, 200, 128), E4M3), jnp.ones((3, num_scales, 1))
    part = fp8.BlockScaled.tree_unflatten((128, 128), (values, scales))
    whole = jax.P()
    f = jax.shard_map(
        lambda w: w.with_own_scales("d", axis=axis), mesh=mesh, in_specs=whole, out_specs=whole
    )
    with pytest.raises(error, match=f"^BlockScaled.with_own_scales: {message}"):
        f(part)
