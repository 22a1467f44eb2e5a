# SPDX-License-Identifier: Apache-2.0
"""checkpoint: layers stacked for jax.lax.scan, and written one by one again."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import config_of, content, quantized, run_program, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

# As DeepSeek-V3: layers without experts first, then those with.
DENSE, SPARSE, EXPERTS = (0, 1), (2, 3, 4), 2
SHAPES = {"q_proj": (130, 256), "o_proj": (256, 128)}


def layers(rng, scale_dtype=np.float32):
    tensors, dense = {"model.norm.weight": np.ones(4, np.float32)}, {}

    def add(name, shape):
        found = quantized(rng, shape, scale_dtype)
        tensors[name], tensors[name + "_scale_inv"], dense[name] = found

    for i in (*DENSE, *SPARSE):
        for name, shape in SHAPES.items():
            add(f"model.layers.{i}.{name}.weight", shape)
        tensors[f"model.layers.{i}.norm.weight"] = np.full(4, i, np.float32)
        if i in DENSE:
            add(f"model.layers.{i}.mlp.down_proj.weight", (128, 128))
            continue
        for expert in range(EXPERTS):
            add(f"model.layers.{i}.mlp.experts.{expert}.down_proj.weight", (136, 128))
    return tensors, dense


@pytest.fixture
def folder(tmp_path):
    tensors, _ = layers(np.random.default_rng(0))
    return write(tmp_path, tensors)


def test_layers_that_hold_the_same_are_stacked(tmp_path):
    tensors, dense = layers(np.random.default_rng(0), ml_dtypes.bfloat16)
    loaded = checkpoint.load(write(tmp_path, tensors), stack_layers=True)
    assert {name: result.shape for name, result in loaded.items()} == {
        "model.norm.weight": (4,),
        "model.layers.0-1.q_proj.weight": (2, 130, 256),
        "model.layers.0-1.o_proj.weight": (2, 256, 128),
        "model.layers.0-1.norm.weight": (2, 4),
        "model.layers.0-1.mlp.down_proj.weight": (2, 128, 128),
        "model.layers.2-4.q_proj.weight": (3, 130, 256),
        "model.layers.2-4.o_proj.weight": (3, 256, 128),
        "model.layers.2-4.norm.weight": (3, 4),
        "model.layers.2-4.mlp.experts.down_proj.weight": (3, EXPERTS, 136, 128),
    }
    for i, place in ((0, 0), (1, 1)):
        got = loaded["model.layers.0-1.q_proj.weight"][place].dequantize()
        np.testing.assert_array_equal(got, dense[f"model.layers.{i}.q_proj.weight"])
    stack = loaded["model.layers.2-4.mlp.experts.down_proj.weight"].dequantize()
    for place, i in enumerate(SPARSE):
        for expert in range(EXPERTS):
            want = dense[f"model.layers.{i}.mlp.experts.{expert}.down_proj.weight"]
            np.testing.assert_array_equal(stack[place, expert], want)
    np.testing.assert_array_equal(loaded["model.layers.2-4.norm.weight"][:, 0], SPARSE)


@pytest.mark.parametrize("stack_experts", [True, False])
def test_save_writes_them_one_by_one(folder, tmp_path, stack_experts):
    loaded = checkpoint.load(folder, stack_layers=True, stack_experts=stack_experts)
    checkpoint.save(tmp_path / "new", loaded)
    assert content(tmp_path / "new") == content(folder)
    assert config_of(tmp_path / "new") == config_of(folder)


def test_save_of_a_plain_dict_goes_by_names(folder, tmp_path):
    checkpoint.save(tmp_path / "new", dict(checkpoint.load(folder, stack_layers=True)))
    assert content(tmp_path / "new") == content(folder)


def test_scan_over_layers(folder):
    prefix = "model.layers.2-4."
    loaded = checkpoint.load(folder, stack_layers=True)
    run = {name.removeprefix(prefix): w for name, w in loaded.items() if name.startswith(prefix)}
    x = jnp.ones((3, 256), jnp.bfloat16)

    def block(x, layer):
        hidden = fp8.dot(x, layer["q_proj.weight"])[:, :128]
        return fp8.dot(hidden, layer["o_proj.weight"]), None

    got, _ = jax.jit(lambda x, run: jax.lax.scan(block, x, run))(x, run)
    apart = checkpoint.load(folder)
    for i in SPARSE:
        names = ("q_proj.weight", "o_proj.weight")
        x, _ = jax.jit(block)(x, {name: apart[f"model.layers.{i}.{name}"] for name in names})
    np.testing.assert_array_equal(got, x)


SHARDED = """
import json, sys
import jax, numpy as np
from jax_fp8gemm import checkpoint
mesh = jax.make_mesh((3, 2), ("layer", "expert"))
def sharding(name, shape):
    spec = jax.P("layer", "expert") if len(shape) == 4 else jax.P()
    return jax.sharding.NamedSharding(mesh, spec)
name = "model.layers.2-4.mlp.experts.down_proj.weight"
found = checkpoint.load(sys.argv[1], stack_layers=True, sharding=sharding)[name]
want = checkpoint.load(sys.argv[1], stack_layers=True)[name]
same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found, want))))
print(json.dumps([found.values.sharding.shard_shape(found.shape), same]))
"""


@pytest.mark.slow
def test_each_device_reads_its_layers_and_experts(folder):
    assert run_program(SHARDED, folder, num_devices=6) == [[1, 1, 136, 128], True]


def drop(name):
    return lambda tensors: tensors.pop(name)


def widen(tensors):
    tensors["model.layers.3.norm.weight"] = np.ones(5, np.float32)


CHANGES = {
    "a tensor less": (drop("model.layers.3.norm.weight"), ["2", "3", "4"]),
    "another shape": (widen, ["2", "3", "4"]),
    "a tensor more": (lambda t: t.update({"model.layers.4.b": np.ones(1)}), ["2-3", "4"]),
    "no layer 3": (
        lambda t: [t.pop(name) for name in [*t] if ".layers.3." in name],
        ["2", "4"],
    ),
    "a number with zeros": (
        lambda t: t.update({"model.layers.03.b": np.ones(1)}),
        ["2-4", "03"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_differ_stay_apart(tmp_path, change):
    tensors, _ = layers(np.random.default_rng(0))
    edit, want = CHANGES[change]
    edit(tensors)
    loaded = checkpoint.load(write(tmp_path, tensors), stack_layers=True)
    found = {name.split(".")[2] for name in loaded if ".layers." in name}
    assert found == {"0-1", *want}
    checkpoint.save(tmp_path / "new", loaded)
    assert content(tmp_path / "new") == content(tmp_path)


@pytest.mark.parametrize("name", ["model.layers.2-4.norm.weight", "model.layers.2-4.q_proj.weight"])
def test_save_refuses_another_number_of_layers(folder, tmp_path, name):
    loaded = checkpoint.load(folder, stack_layers=True)
    loaded[name] = loaded[name][:2]
    with pytest.raises(ValueError, match=f"{name}.*leading dimension of 3 layers, got shape"):
        checkpoint.save(tmp_path / "new", loaded)


def test_names_of_stacks_are_not_those_of_tensors(tmp_path):
    tensors, _ = layers(np.random.default_rng(0))
    tensors["model.layers.2-4.norm.weight"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"'model.layers.2-4.norm.weight'.*stack_layers=False"):
        checkpoint.load(write(tmp_path, tensors), stack_layers=True)


def test_save_believes_no_number_of_layers_in_a_name(tmp_path):
    """Nothing of the size that the name says is made."""
    with pytest.raises(ValueError, match="leading dimension of 1000000000 layers, got shape"):
        checkpoint.save(tmp_path, {"model.layers.0-999999999.w": np.ones((2, 2), np.float32)})
