# SPDX-License-Identifier: Apache-2.0
"""checkpoint of every scheme that becomes block FP8: bits of what it means, and written back."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import E4M3, QUANTIZATION, config_of, content, run_program, write
from _schemes import (
    LAYER,
    SCHEMES,
    K,
    N,
    compressed_tensors,
    in_scheme,
    modelopt,
    scales_of,
)

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

Q, UP = f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.mlp.experts.{{}}up_proj.weight"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def exact(weight):
    """What a BlockScaled stands for, in float64."""
    scales = np.asarray(weight.scales, np.float64)
    each = np.repeat(np.repeat(scales, 128, axis=-2), 128, axis=-1)
    n, k = weight.shape[-2:]
    return np.asarray(weight.values, np.float64) * each[..., :n, :k]


def assert_same(folder, new):
    assert content(new) == content(folder)
    assert config_of(new) == config_of(folder)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_means_the_same_and_comes_back(tmp_path, rng, scheme):
    """Names and shapes as vLLM's modelopt.py, fp8.py and compressed_tensors_w8a8_fp8.py load."""
    tensors, dense, quantization = in_scheme(rng, scheme)
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))

    assert loaded.config["quantization_config"] == quantization
    np.testing.assert_array_equal(exact(loaded[Q]), dense[Q])
    experts = np.stack([dense[UP.format(f"{i}.")] for i in (0, 1)])
    np.testing.assert_array_equal(exact(loaded[UP.format("")]), experts)
    more = {
        f"{module}{name}" for module in (Q[:-6], UP.format("")[:-6]) for name in SCHEMES[scheme][4]
    }
    assert set(loaded) == {Q, UP.format(""), "lm_head.weight", "model.norm.weight", *more}

    checkpoint.save(tmp_path / "new", loaded)
    assert_same(tmp_path, tmp_path / "new")


@pytest.mark.parametrize("scheme", ["compressed-tensors, tensor", "ModelOpt, channel", "AutoFP8"])
def test_becomes_block_fp8_by_another_config(tmp_path, rng, scheme):
    tensors, dense, quantization = in_scheme(rng, scheme)
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    checkpoint.save(tmp_path / "new", loaded, config={"model_type": "tiny"})
    written = config_of(tmp_path / "new")["quantization_config"]
    assert written == {**QUANTIZATION, "modules_to_not_convert": ["lm_head"]}
    assert content(tmp_path / "new")[Q + "_scale_inv"][:2] == ("F32", (2, 3))
    np.testing.assert_array_equal(exact(checkpoint.load(tmp_path / "new")[Q]), dense[Q])


def test_becomes_another_scheme_by_another_config(tmp_path, rng):
    """Whose scales have the same name and another shape."""
    tensors, dense, quantization = in_scheme(rng, "AutoFP8")
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    config = {"quantization_config": compressed_tensors("block", [])}
    checkpoint.save(tmp_path / "new", loaded, config=config)
    config["quantization_config"]["ignore"].append("lm_head")
    assert config_of(tmp_path / "new") == config
    assert content(tmp_path / "new")[Q + "_scale"][:2] == ("F32", (2, 3))
    np.testing.assert_array_equal(exact(checkpoint.load(tmp_path / "new")[Q]), dense[Q])


@pytest.mark.parametrize("keys", [("text_config",), ("thinker_config", "text_config")])
@pytest.mark.parametrize("scheme", ["compressed-tensors, block", "ModelOpt FP8"])
def test_a_config_inside_the_config(tmp_path, rng, scheme, keys):
    """As multimodal models have it; SGLang's loader looks into text_config too."""
    tensors, dense, quantization = in_scheme(rng, scheme)
    config = {"quantization_config": quantization, "hidden_size": 4}
    for key in reversed(keys):
        config = {key: config, "model_type": "tiny"}
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=None, config=config))
    assert loaded.config == config
    np.testing.assert_array_equal(exact(loaded[Q]), dense[Q])
    loaded["new.weight"] = np.ones((2, 3), np.float32)
    checkpoint.save(tmp_path / "new", loaded)
    written = config_of(tmp_path / "new")
    for key in keys:
        written = written[key]
    ignore = [*quantization["ignore"], "new"]
    assert written == {"hidden_size": 4, "quantization_config": {**quantization, "ignore": ignore}}


def test_the_older_name_of_the_config(tmp_path, rng):
    """compression_config, which vLLM's config/model.py reads where there is no other."""
    tensors, dense, quantization = in_scheme(rng, "compressed-tensors, block")
    config = {"quantization_config": None, "compression_config": quantization}
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=None, config=config))
    np.testing.assert_array_equal(exact(loaded[Q]), dense[Q])
    checkpoint.save(tmp_path / "new", loaded)
    assert_same(tmp_path, tmp_path / "new")


def test_configs_inside_that_differ(tmp_path, rng):
    tensors, _, quantization = in_scheme(rng, "ModelOpt FP8")
    inner = {"quantization_config": quantization}
    config = {"a": inner, "b": inner}
    assert Q in checkpoint.load(write(tmp_path, tensors, quantization=None, config=config))
    config["b"] = {"quantization_config": QUANTIZATION}
    write(tmp_path, tensors, quantization=None, config=config)
    message = "config.json: a.quantization_config and b.quantization_config must be the same"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("has_config", [True, False])
def test_config_of_modelopt_in_a_file_of_its_own(tmp_path, rng, has_config):
    """hf_quant_config.json, as ModelOpt's quant_utils.py makes it; config.json holds it later."""
    tensors, dense, _ = in_scheme(rng, "ModelOpt FP8")
    found = {
        "producer": {"name": "modelopt", "version": "0.19.0"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"],
        },
    }
    write(tmp_path, tensors, quantization=None)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(found))
    if not has_config:
        (tmp_path / "config.json").unlink()
    loaded = checkpoint.load(tmp_path)
    np.testing.assert_array_equal(exact(loaded[Q]), dense[Q])
    loaded["new.weight"] = np.ones((2, 3), np.float32)
    checkpoint.save(tmp_path / "new", loaded)
    found["quantization"]["exclude_modules"].append("new")
    written = config_of(tmp_path / "new")["quantization_config"]
    assert written == {"quant_method": "modelopt", **found}
    np.testing.assert_array_equal(exact(checkpoint.load(tmp_path / "new")[Q]), dense[Q])


def test_groups_of_several_strategies(tmp_path, rng):
    """Each tensor has the layout of one of them, by the shape of its scales."""
    quantization = compressed_tensors("block")
    quantization["config_groups"]["FP8_DYNAMIC"] = compressed_tensors("channel")["config_groups"][
        "group_0"
    ]
    tensors, dense = {}, {}
    for layout in ("block", "channel"):
        name = f"{layout}.weight"
        tensors[name] = rng.normal(size=(N, K)).astype(np.float32).astype(E4M3)
        tensors[f"{name}_scale"], each = scales_of(rng, layout)
        dense[name] = tensors[name].astype(np.float64) * each
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    for name, want in dense.items():
        np.testing.assert_array_equal(exact(loaded[name]), want)
    checkpoint.save(tmp_path / "new", loaded)
    assert_same(tmp_path, tmp_path / "new")


def test_two_tensors_of_scales(tmp_path, rng):
    tensors, _, quantization = in_scheme(rng, "AutoFP8")
    tensors[Q + "_scale_inv"] = np.ones((), np.float32)
    write(tmp_path, tensors, quantization=quantization)
    message = f"'{Q}' in .* must have one tensor of scales, got '{Q}_scale' and '{Q}_scale_inv'"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


# ---- Rows with scales of their own ---------------------------------------------------------------

CHANNEL = {"compressed-tensors": compressed_tensors("channel"), "modelopt": None}
CHANNEL["modelopt"] = modelopt("FP8_PER_CHANNEL_PER_TOKEN")


def with_rows(rng, layout="channel"):
    """A weight whose rows differ in scale, beside an expert whose rows do not."""
    tensors, dense = {}, {}
    for i, agree in enumerate((False, True)):
        name = f"m.experts.{i}.up.weight"
        tensors[name] = rng.normal(size=(N, K)).astype(np.float32).astype(E4M3)
        tensors[f"{name}_scale"], each = scales_of(rng, layout, rows_agree=agree)
        dense[name] = tensors[name].astype(np.float64) * each
    return tensors, dense


@pytest.mark.parametrize("tool", CHANNEL)
def test_rows_that_differ_are_refused(tmp_path, rng, tool):
    layout = "channel" if tool == "compressed-tensors" else "channel_1d"
    tensors, _ = with_rows(rng, layout)
    write(tmp_path, tensors, quantization=CHANNEL[tool])
    message = (
        "'m.experts.0.up.weight_scale' in model.safetensors must have one number for all 128 rows"
        " of a block, .* pass requantize=True to scale 'm.experts.0.up.weight' again"
    )
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_rows_that_differ_are_quantized_again_if_asked(tmp_path, rng, caplog):
    """As quantize does with what they stand for; an expert that is exact stays so."""
    tensors, dense = with_rows(rng)
    write(tmp_path, tensors, quantization=CHANNEL["compressed-tensors"])
    caplog.set_level("WARNING", logger="jax_fp8gemm")
    loaded = checkpoint.load(tmp_path, requantize=True)["m.experts.up.weight"]
    first = jnp.asarray(dense["m.experts.0.up.weight"], jnp.float32)
    again = fp8.quantize(first, (128, 128))
    assert np.asarray(loaded.values[0]).tobytes() == np.asarray(again.values).tobytes()
    assert np.asarray(loaded.scales[0]).tobytes() == np.asarray(again.scales).tobytes()
    np.testing.assert_array_equal(exact(loaded)[1], dense["m.experts.1.up.weight"])

    want = dense["m.experts.0.up.weight"]
    errors = abs(exact(loaded)[0] - want)
    largest = (errors[want != 0] / abs(want[want != 0])).max()
    assert [record.message for record in caplog.records] == [
        f"requantize=True rounded 1 results: {(errors > 0).sum()} of {2 * want.size} values in"
        f" {loaded.scales[0].size} of {loaded.scales.size} blocks, by up to {largest:.3g} of a"
        " value"
    ]


SHARDED_PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_fp8gemm import checkpoint
mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
shardings = [NamedSharding(mesh, P(None, *spec)) for spec in (("x", None), (None, "x"))]
result = {}
for folder in sys.argv[1:]:
    (plain,) = checkpoint.load(folder, requantize=True).values()
    result[folder] = []
    for sharding in shardings:
        (sharded,) = checkpoint.load(folder, sharding=sharding, requantize=True).values()
        for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(plain), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
            result[folder].append(a.addressable_shards[1].data.shape)
print(json.dumps(result))
"""


def test_each_device_gets_its_shard(tmp_path, rng):
    """Of tensors with one scale, of rows that are quantized again, and of MXFP4.

    Among columns, whose shards cut a block, each device has all scales.
    """
    folders = []
    for layout in ("tensor_1d", "channel"):
        values = rng.normal(size=(2, 256, 300)).astype(np.float32).astype(E4M3)
        scales = rng.uniform(1, 2, (2, 1) if layout == "tensor_1d" else (2, 256, 1))
        tensors = {"m.experts.w": values, "m.experts.w_scale": scales.astype(np.float32)}
        quantization = compressed_tensors("tensor" if layout == "tensor_1d" else "channel")
        folders.append(write(tmp_path / layout, tensors, quantization=quantization))
    codes = rng.integers(0, 256, (2, 256, 9, 16), dtype=np.uint8)
    tensors = {"w_blocks": codes, "w_scales": rng.integers(120, 140, (2, 256, 9), dtype=np.uint8)}
    folders.append(write(tmp_path / "mx", tensors, quantization={"quant_method": "mxfp4"}))
    shapes = run_program(SHARDED_PROGRAM, *folders, num_devices=2)
    by_columns = [[2, 256, 150], [2, 2, 3]]
    assert list(shapes.values())[:2] == [[[2, 128, 300], [2, 1, 3], *by_columns]] * 2
    by_columns[0][-1] = 144
    assert shapes[str(folders[2])] == [[2, 128, 288], [2, 1, 3], *by_columns]


# ---- Changed before it is saved ----------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["compressed-tensors, tensor", "ModelOpt, channel"])
def test_scales_of_blocks_that_the_scheme_has_no_place_for(tmp_path, rng, scheme):
    tensors, _, quantization = in_scheme(rng, scheme)
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    loaded[Q] = fp8.quantize(jnp.asarray(rng.normal(size=(N, K)), jnp.float32), (128, 128))
    message = rf"tensor '{Q}' must have scales that a file can hold in shape .*config without quan"
    with pytest.raises(ValueError, match=message):
        checkpoint.save(tmp_path / "new", loaded)
    assert not (tmp_path / "new").exists()


def test_new_tensors_are_written_in_the_scheme(tmp_path, rng):
    tensors, _, quantization = in_scheme(rng, "compressed-tensors, block")
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    loaded["new.weight"] = fp8.quantize(jnp.ones((130, 128)), (128, 128))
    loaded[Q] = loaded[Q].dequantize()
    checkpoint.save(tmp_path / "new", loaded)
    found = content(tmp_path / "new")
    assert found["new.weight_scale"][:2] == ("F32", (2, 1))
    assert Q + "_scale" not in found
    want = {**quantization, "ignore": ["lm_head", Q.removesuffix(".weight")]}
    assert config_of(tmp_path / "new")["quantization_config"] == want


@pytest.mark.parametrize("name", ["a.weight_scale", "b_scale"])
def test_save_takes_no_scales_alone(tmp_path, name):
    tensors = {"b": fp8.quantize(jnp.ones((2, 2)), (128, 128)), name: jnp.ones(2)}
    config = {"quantization_config": compressed_tensors("block")}
    with pytest.raises(ValueError, match=f"'{name}' must not end in '_scale'|'{name}' must not be"):
        checkpoint.save(tmp_path / "new", tensors, config=config)


# ---- What is left out --------------------------------------------------------------------------

ENTRIES = {
    "exact": (compressed_tensors("block", ["m.q"]), "m.q"),
    "wildcard": (modelopt("FP8_PB_WO", ignore=["m.*"]), "m.q"),
    "outer module": (modelopt("FP8_PB_WO", ignore=["m"]), "m"),
    "wildcard of modules around it": (modelopt("FP8_PB_WO", ignore=["m*"]), "m"),
}
OTHERS = [
    compressed_tensors("block", ["m", "m.q_proj", "re:m.q", "m*", "Linear"]),
    modelopt("FP8_PB_WO", ignore=["m.q.*", "q", "*.k"]),
]


@pytest.mark.parametrize("name", ENTRIES)
def test_float8_that_is_left_out(tmp_path, rng, name):
    quantization, module = ENTRIES[name]
    tensors = {
        "m.q.weight": np.zeros((4, 4), E4M3),
        "m.q.weight_scale": np.ones((1, 1), np.float32),
    }
    write(tmp_path, tensors, quantization=quantization)
    with pytest.raises(ValueError, match=f"'m.q.weight'.*quantized, because ignore.*'{module}'"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("quantization", OTHERS)
def test_entries_of_other_modules(tmp_path, quantization):
    """Those of compressed-tensors name one module, as in its match.py; expressions are not run."""
    tensors = {
        "m.q.weight": np.zeros((4, 4), E4M3),
        "m.q.weight_scale": np.ones((1, 1), np.float32),
    }
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    checkpoint.save(tmp_path / "new", loaded)
    assert_same(tmp_path, tmp_path / "new")


def test_an_expression_that_takes_for_ever_is_not_run(tmp_path):
    name = "a" * 60
    tensors = {
        f"{name}.weight": np.zeros((4, 4), E4M3),
        f"{name}.weight_scale": np.ones((1, 1), np.float32),
    }
    quantization = compressed_tensors("block", ["re:(a+)+b"])
    assert len(checkpoint.load(write(tmp_path, tensors, quantization=quantization))) == 1
