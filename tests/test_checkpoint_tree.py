# SPDX-License-Identifier: Apache-2.0
"""checkpoint.Checkpoint: a dict that stays what it is through JAX, copies and pickles."""

import copy
import doctest
import inspect
import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import quantized, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint
from jax_fp8gemm.checkpoint import Checkpoint, Stored

NAMES = ["z.weight", "m.experts.w", "a"]
STORED = {
    "z.weight": Stored("F8_E4M3", ("BF16",), False),
    "m.experts.w": Stored("F8_E4M3", ("F32", "U8"), True),
    "a": Stored("I64", (), False),
}


@pytest.fixture
def folder(tmp_path):
    """A matrix, experts whose scales differ in dtype, and 64-bit numbers; not sorted."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, dtype in (
        ("z.weight", jnp.bfloat16),
        ("m.experts.0.w", np.float32),
        ("m.experts.1.w", np.uint8),
    ):
        tensors[name], tensors[name + "_scale_inv"], _ = quantized(rng, (128, 128), dtype)
    tensors["a"] = np.arange(3)
    return write(tmp_path, tensors, {"y": np.ones(2, np.float32)})  # two: the index has an order


@pytest.fixture
def weights(folder):
    return checkpoint.load(folder, include=lambda name: name != "y")


def same(a, b):
    """Whether two are checkpoints of the same tensors and origin."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return (
        (type(a), type(b)) == (Checkpoint, Checkpoint)
        and list(a) == list(b)
        and (a.config, a.stored) == (b.config, b.stored)
        and all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)
    )


def test_load_says_how_results_are_stored(weights):
    assert isinstance(weights, dict) and list(weights) == NAMES
    assert weights.stored == STORED and list(weights.stored) == NAMES
    assert weights.config["model_type"] == "tiny"


def test_config_is_empty_without_a_file(tmp_path):
    (write(tmp_path, {"a": np.ones(2)}, quantization=None) / "config.json").unlink()
    assert checkpoint.load(tmp_path).config == {}


def test_config_and_stored_are_copies(weights):
    weights.config["quantization_config"].clear()
    weights.stored.clear()
    assert weights.config["quantization_config"] and weights.stored == STORED
    with pytest.raises(AttributeError):
        weights.config = {}


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda c: jax.tree.map(lambda leaf: leaf, c),
        lambda c: jax.device_put(c, jax.devices()[0]),
        jax.jit(lambda c: c),
        lambda c: jax.tree.map(lambda leaf, _: leaf, c, c.copy()),
        copy.copy,
        copy.deepcopy,
        Checkpoint.copy,
        lambda c: c | {},
        lambda c: pickle.loads(pickle.dumps(c)),
        lambda c: Checkpoint(c, config=c.config, stored=c.stored),
        lambda c: jax.tree_util.tree_map_with_path(lambda _, leaf: leaf, c),
    ],
)
def test_is_rebuilt_as_it_was(weights, rebuild):
    assert same(rebuild(weights), weights)


def test_copies_are_independent(weights):
    for other in (weights.copy(), copy.deepcopy(weights), weights | {"a": 1, "new": 2}):
        other["new"] = 3
        del other["a"]
        assert list(weights) == NAMES
        assert other.stored == STORED


def test_plain_dicts_know_nothing(weights):
    assert type(dict(weights)) is type({**weights}) is dict


def test_leaves_and_paths_are_those_of_a_dict(weights):
    paths = jax.tree_util.tree_leaves_with_path
    assert paths(weights) == paths(dict(weights))
    assert [jax.tree_util.keystr(path) for path, _ in paths(weights)][0] == "['a']"


def test_trees_are_equal_where_content_is(folder, weights):
    again = checkpoint.load(folder, include=lambda name: name != "y")
    a, b = jax.tree.structure(weights), jax.tree.structure(again)
    assert (a, hash(a)) == (b, hash(b))
    again["z.weight"] = again.pop("z.weight")  # now the last
    assert jax.tree.structure(again) == a
    assert same(jax.tree.map(lambda leaf: leaf, again), weights)

    known = {"config": weights.config, "stored": weights.stored}
    for change in ({"config": {}}, {"stored": {}}):
        assert jax.tree.structure(Checkpoint(weights, **(known | change))) != a
    assert jax.tree.structure(dict(weights)) != a


def test_jit_traces_once_for_equal_checkpoints(folder):
    traced = []
    double = jax.jit(lambda c: (traced.append(c), jax.tree.map(lambda x: x, c))[1])
    for _ in range(2):
        double(checkpoint.load(folder))
    assert len(traced) == 1 and type(traced[0]) is Checkpoint
    other = checkpoint.load(folder) | {"new": jnp.ones(2)}
    assert list(double(other)) == [*other] and len(traced) == 2


def test_names_that_were_not_loaded_come_last(weights):
    weights = Checkpoint({"c": 1, "b": 2, **weights}, config={}, stored=weights.stored)
    assert list(jax.tree.map(lambda leaf: leaf, weights)) == [*NAMES, "b", "c"]


def test_gradients_are_checkpoints(weights):
    gradients = jax.grad(lambda c: (c["x"] ** 2).sum())(
        Checkpoint({"x": jnp.ones(3)}, config={"a": 1})
    )
    assert type(gradients) is Checkpoint and gradients.config == {"a": 1}


def test_is_exported_and_called(weights):
    def f(c):
        return {name: tensor.shape for name, tensor in c.items()}, c | {"new": c["a"] + 1}

    exported = jax.export.export(jax.jit(lambda c: f(c)[1]), platforms=["cpu"])(weights)
    read = jax.export.deserialize(bytearray(exported.serialize()))
    assert same(read.call(weights), weights | {"new": weights["a"] + 1})


def test_saves_what_a_program_returns(tmp_path, weights):
    checkpoint.save(tmp_path / "new", jax.jit(lambda c: c)(weights))
    again = checkpoint.load(tmp_path / "new")
    assert again.stored == STORED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"a": {1}}}, "Checkpoint: config must hold what JSON can.*set"),
        ({"config": [1]}, "Checkpoint: config must be a mapping, got list"),
        ({"stored": {"a": "F32"}}, r"Checkpoint: stored\['a'\] must be a Stored, got str"),
    ],
)
def test_errors(options, message):
    with pytest.raises(TypeError, match=message):
        Checkpoint({}, **options)


def test_docstring_example_runs(tmp_path):
    weight = fp8.quantize(jnp.ones((160, 256)), (128, 128))
    checkpoint.save(tmp_path / "c", {"model.layers.0.mlp.down_proj.weight": weight})
    names = {"load": checkpoint.load, "folder": tmp_path / "c", "jax": jax}
    test = doctest.DocTestParser().get_doctest(
        inspect.getdoc(Checkpoint), names, "Checkpoint", None, 0
    )
    results = doctest.DocTestRunner().run(test)
    assert (results.attempted, results.failed) == (3, 0)
