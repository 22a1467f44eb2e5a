# SPDX-License-Identifier: Apache-2.0
"""checkpoint.save: what config.json says of a model that was loaded, made or changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import QUANTIZATION, config_of, quantized, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

BLOCK = (128, 128)
L = "model.layers.0"
Q, GATE, EMBED, HEAD = (
    f"{L}.q_proj.weight",
    f"{L}.gate.weight",
    "model.embed_tokens.weight",
    "lm_head.weight",
)
WEIGHT = fp8.quantize(jnp.arange(128.0 * 128).reshape(128, 128), BLOCK)
POWERS = fp8.BlockScaled(WEIGHT.values, jnp.full((1, 1), 0.25), BLOCK)
PLAIN = np.ones((4, 8), np.float32)


def quantization_of(folder):
    return config_of(folder)["quantization_config"]


def saved(folder, tensors, **options):
    """Saves into a new folder that load accepts; returns what its quantization_config says."""
    new = folder / f"new{len(list(folder.iterdir()))}"
    checkpoint.save(new, tensors, **options)
    assert set(checkpoint.load(new)) == set(tensors)
    return quantization_of(new)


def loaded(folder, quantization=QUANTIZATION, **more):
    """A float8 matrix, and plain ones that quantization_config may list."""
    values, scales, _ = quantized(np.random.default_rng(0), (128, 128))
    plain = {GATE: PLAIN, EMBED: PLAIN, HEAD: PLAIN}
    tensors = {Q: values, Q + "_scale_inv": scales, **plain, **more}
    return checkpoint.load(write(folder / "old", tensors, quantization=quantization))


def test_given_entries_stay_and_found_ones_follow(tmp_path):
    """A tied lm_head has no tensor; an entry stands for all that its module holds."""
    given = ["lm_head", "model.visual", "model.layers.1"]
    tensors = {
        EMBED: PLAIN,
        Q: WEIGHT,
        GATE: PLAIN,
        "model.visual.proj.weight": PLAIN,
        "model.layers.1.gate.weight": PLAIN,
        "model.layers.10.gate.weight": PLAIN,
        "model.norm.weight": PLAIN[0],
    }
    config = {"quantization_config": {"modules_to_not_convert": given, "extra": 1}}
    assert saved(tmp_path, tensors, config=config) == {
        "extra": 1,
        **QUANTIZATION,
        "modules_to_not_convert": [
            *given,
            "model.embed_tokens",
            f"{L}.gate",
            "model.layers.10.gate",
        ],
    }
    assert config == {"quantization_config": {"modules_to_not_convert": given, "extra": 1}}


@pytest.mark.parametrize("entries", [None, [], ["lm_head"], ["lm_head", f"{L}.gate"]])
def test_what_was_loaded_is_complete(tmp_path, entries):
    """No key is added, and no plain module that was not listed."""
    said = {"weight_block_size": [128, 128]}
    said |= {} if entries is None else {"modules_to_not_convert": entries}
    weights = loaded(tmp_path, said)
    assert saved(tmp_path, weights) == said
    config = {**weights.config, "quantization_config": {**said, "weight_block_size": BLOCK}}
    assert saved(tmp_path, weights, config=config) == said

    weights["new.weight"] = weights["head.weight"] = PLAIN
    want = said | {"modules_to_not_convert": [*(entries or ()), "new", "head"]}
    assert saved(tmp_path, weights) == want


def test_another_config_is_completed(tmp_path):
    """It gets the plain modules that were listed, and those that are new; no others."""
    weights = loaded(tmp_path, {**QUANTIZATION, "modules_to_not_convert": ["lm_head"]})
    weights["new.weight"] = PLAIN
    got = saved(tmp_path, weights, config={})
    assert got == {**QUANTIZATION, "modules_to_not_convert": ["lm_head", "new"]}


def test_a_model_quantized_since_lists_what_is_plain(tmp_path):
    weights = checkpoint.load(
        write(tmp_path / "old", {Q: PLAIN, EMBED: PLAIN, HEAD: PLAIN}, quantization=None)
    )
    weights[Q] = WEIGHT
    modules = [name.removesuffix(".weight") for name in weights if name != Q]
    assert saved(tmp_path, weights) == {**QUANTIZATION, "modules_to_not_convert": modules}


def test_modules_dequantized_since_are_listed(tmp_path):
    """One of two, then both: loaders make float8 layers of whatever is not listed."""
    values, scales, _ = quantized(np.random.default_rng(0), (128, 128))
    up = f"{L}.experts.0.up.weight"
    weights = loaded(tmp_path, **{up: values, up + "_scale_inv": scales})
    modules = [f"{L}.q_proj"]
    weights[Q] = weights[Q].dequantize()
    assert saved(tmp_path, weights) == {**QUANTIZATION, "modules_to_not_convert": modules}
    stack = f"{L}.experts.up.weight"
    weights[stack] = weights.pop(stack).dequantize()
    modules = [f"{L}.q_proj", f"{L}.experts.0.up"]
    assert saved(tmp_path, weights) == {**QUANTIZATION, "modules_to_not_convert": modules}
    checkpoint.save(tmp_path / "plain", weights, config={"model_type": "tiny"})
    assert config_of(tmp_path / "plain") == {"model_type": "tiny"}


def test_a_module_with_float8_in_it_is_not_listed(tmp_path):
    """load would refuse what is float8 there."""
    tensors = {"m.weight": PLAIN, "m.down.weight": WEIGHT, "other.weight": PLAIN}
    assert saved(tmp_path, tensors)["modules_to_not_convert"] == ["other"]


@pytest.mark.parametrize("entry", ["lm_head", "model.layers.0", "m.experts.1"])
def test_an_entry_must_not_name_a_block_scaled(tmp_path, entry):
    tensors = {
        HEAD: WEIGHT,
        f"{L}.up.weight": WEIGHT,
        "m.experts.w": jax.tree.map(lambda a: jnp.stack([a, a]), WEIGHT),
    }
    config = {"quantization_config": {"modules_to_not_convert": [entry]}}
    with pytest.raises(ValueError, match=rf"'{entry}\.[\w.]+' must not be .* names '{entry}'"):
        checkpoint.save(tmp_path / "new", tensors, config=config)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("scale", [0.25, 2.0**-127, 3.0, 0.0, -2.0, np.inf])
def test_scale_fmt_holds_for_every_scale(tmp_path, scale):
    config = {"quantization_config": {"scale_fmt": "ue8m0"}}
    other = fp8.BlockScaled(WEIGHT.values, jnp.full((1, 1), scale), BLOCK)
    got = saved(tmp_path, {"a": POWERS, "b": other}, config=config)
    assert got.get("scale_fmt") == ("ue8m0" if scale in (0.25, 2.0**-127) else None)

    weights = loaded(tmp_path, {**QUANTIZATION, "scale_fmt": "ue8m0"})
    weights[Q] = other
    assert saved(tmp_path, weights).get("scale_fmt") == got.get("scale_fmt")


def test_configs_are_written_as_json_has_them(tmp_path):
    config = {"id2label": {0: "é"}, "shape": (1, 2), "eos": None, "eps": 1e-6}
    checkpoint.save(tmp_path / "new", {"a": PLAIN}, config=config)
    read = {"id2label": {"0": "é"}, "shape": [1, 2], "eos": None, "eps": 1e-6}
    assert config_of(tmp_path / "new") == read == checkpoint.load(tmp_path / "new").config
