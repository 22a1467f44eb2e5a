# SPDX-License-Identifier: Apache-2.0
"""checkpoint: save(load(c)) is c, for checkpoints as models have them, and after changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import (
    SCALE_DTYPES,
    STYLES,
    assert_same,
    config_of,
    content,
    in_style,
    kinds,
    quantized,
    write,
)

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

E = "m.experts"
BLOCK = (128, 128)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def of_experts(rng, count, scale_dtype=np.float32):
    """Float8 weights, biases and scalars of each expert."""
    tensors = {}
    for i in range(count):
        name = f"{E}.{i}.down_proj"
        found = quantized(rng, (130, 128), scale_dtype)
        tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_inv"], _ = found
        tensors[f"{name}.bias"] = np.full(130, i, np.float32)
        tensors[f"{name}.input_scale"] = np.full((), i, np.float32)
    return tensors


# ---- Every style -------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_styles_come_back(tmp_path, rng, style, stack):
    tensors, _, quantization = in_style(rng, style)
    write(tmp_path, tensors, quantization=quantization)
    checkpoint.save(tmp_path / "new", checkpoint.load(tmp_path, stack_experts=stack))
    assert_same(tmp_path, tmp_path / "new")


@pytest.mark.parametrize("unstack", [True, False])
def test_experts_come_back_one_by_one_or_fused(tmp_path, rng, unstack):
    """Whatever `unstack_experts` says, which decides on names that load did not give."""
    tensors = of_experts(rng, 2)
    fused, scales, _ = quantized(rng, (2, 256, 128))
    tensors |= {f"{E}.gate_up_proj": fused, f"{E}.gate_up_proj_scale_inv": scales}
    loaded = checkpoint.load(write(tmp_path, tensors))
    checkpoint.save(tmp_path / "new", loaded, unstack_experts=unstack)
    assert_same(tmp_path, tmp_path / "new")

    loaded[f"{E}.other"] = jnp.zeros((2, 3, 4))
    checkpoint.save(tmp_path / "more", loaded, unstack_experts=unstack)
    others = [f"{E}.0.other", f"{E}.1.other"] if unstack else [f"{E}.other"]
    assert set(content(tmp_path / "more")) == {*tensors, *others}


def test_a_plain_dict_is_written_as_ever(tmp_path, rng):
    """dict(c) has forgotten how c was stored."""
    loaded = dict(checkpoint.load(write(tmp_path, of_experts(rng, 2))))
    checkpoint.save(tmp_path / "new", loaded)
    names = {f"{E}.{i}.down_proj.weight{s}" for i in range(2) for s in ("", "_scale_inv")}
    names |= {f"{E}.down_proj.bias", f"{E}.down_proj.input_scale"}
    assert set(content(tmp_path / "new")) == names


def test_names_that_cannot_be_stacked_and_written_back_stay_apart(tmp_path):
    names = ["m.experts.00.w", "m.experts.01.w", "m.experts.\N{ARABIC-INDIC DIGIT ZERO}.b"]
    names += ["m.experts.0.a.experts.w", "m.experts.1.b.experts.0.w", "m.experts.1.b.experts.1.w"]
    tensors = {name: np.full(3, i, np.float32) for i, name in enumerate(names)}
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=None))
    assert set(loaded) == {*names[:4], "m.experts.1.b.experts.w"}
    checkpoint.save(tmp_path / "new", loaded)
    assert_same(tmp_path, tmp_path / "new")


# ---- After changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_experts_as_there_are(tmp_path, rng, count):
    loaded = checkpoint.load(write(tmp_path, of_experts(rng, 3, np.float16)))
    chosen = jax.tree.map(lambda leaf: leaf[jnp.arange(count) % 3], loaded)
    checkpoint.save(tmp_path / "new", chosen)
    old, new = content(tmp_path), content(tmp_path / "new")
    assert len(new) == 4 * count
    for name, found in new.items():
        expert = int(name.split(".")[2])
        assert found == old[name.replace(f".{expert}.", f".{expert % 3}.", 1)]


def test_results_of_another_rank_are_written_whole(tmp_path, rng):
    """What has no dimension of experts any more: a scalar, one matrix, no expert."""
    loaded = checkpoint.load(write(tmp_path, of_experts(rng, 2)))
    loaded[f"{E}.down_proj.weight"] = fp8.quantize(jnp.ones((256, 256)), BLOCK)
    loaded[f"{E}.down_proj.bias"] = jnp.zeros((0, 3))
    loaded[f"{E}.down_proj.input_scale"] = jnp.zeros(())
    checkpoint.save(tmp_path / "new", loaded)
    assert kinds(tmp_path / "new") == {
        f"{E}.down_proj.weight": ("F8_E4M3", (256, 256)),
        f"{E}.down_proj.weight_scale_inv": ("F32", (2, 2)),
        f"{E}.down_proj.bias": ("F32", (0, 3)),
        f"{E}.down_proj.input_scale": ("F32", ()),
    }
    assert set(checkpoint.load(tmp_path / "new")) == set(loaded)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_scales_keep_their_dtype_where_it_holds_them(tmp_path, rng, scale_dtype):
    """One scale that the dtype cannot hold, and all of the result are float32."""
    tensors = of_experts(rng, 2, SCALE_DTYPES[scale_dtype])
    loaded = checkpoint.load(write(tmp_path, tensors))
    name = f"{E}.down_proj.weight"
    weight = loaded[name]
    for factor in (2.0, 1 + 2.0**-20):
        scales = weight.scales.at[1, 0, 0].multiply(factor)
        loaded[name] = fp8.BlockScaled(weight.values, scales, BLOCK)
        checkpoint.save(tmp_path / str(factor), loaded)
        found = kinds(tmp_path / str(factor))
        want = scale_dtype if factor == 2.0 else "F32"
        assert {found[f"{E}.{i}.down_proj.weight_scale_inv"][0] for i in range(2)} == {want}
        again = checkpoint.load(tmp_path / str(factor))[name]
        np.testing.assert_array_equal(again.scales, scales)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, 2.0**-149, 1e30])
def test_scales_out_of_range_are_float32(tmp_path, rng, scale):
    for dtype in ("F16", "F8_E8M0", "U8"):
        values, scales, _ = quantized(rng, (128, 128), SCALE_DTYPES[dtype])
        folder = write(tmp_path / dtype, {"w": values, "w_scale_inv": scales})
        loaded = checkpoint.load(folder)
        changed = np.full((1, 1), scale, np.float32)
        loaded["w"] = fp8.BlockScaled(loaded["w"].values, changed, BLOCK)
        checkpoint.save(folder / "new", loaded)
        fits = dtype == "F16" and scale in (0.0, -1.0, np.inf)
        assert kinds(folder / "new")["w_scale_inv"][0] == ("F16" if fits else "F32")
        assert np.asarray(checkpoint.load(folder / "new")["w"].scales) == changed


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_64_bits_come_back_unless_the_dtype_was_changed(tmp_path, dtype):
    """Values as load left them: here 2**24 + 1, which is no float32."""
    numbers = np.asarray([1, 2**24 + 1], dtype)
    loaded = checkpoint.load(write(tmp_path, {"a": numbers, "b": numbers}, quantization=None))
    kept = np.asarray(loaded["a"])
    loaded["b"] = loaded["b"].astype(jnp.bfloat16)
    checkpoint.save(tmp_path / "new", loaded)
    found = content(tmp_path / "new")
    assert found["a"] == (content(tmp_path)["a"][0], (2,), kept.astype(dtype).tobytes())
    assert found["b"][0] == "BF16"


def test_a_part_of_a_checkpoint_keeps_its_config(tmp_path, rng):
    """With include, of the names that it lets through; also where none of them is float8."""
    tensors = of_experts(rng, 2) | {"lm_head.weight": np.ones((2, 3), np.float32)}
    write(tmp_path, tensors)
    loaded = checkpoint.load(tmp_path, include=lambda name: name == "lm_head.weight")
    checkpoint.save(tmp_path / "new", loaded)
    assert set(content(tmp_path / "new")) == {"lm_head.weight"}
    assert config_of(tmp_path / "new") == config_of(tmp_path)
