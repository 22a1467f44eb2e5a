# SPDX-License-Identifier: Apache-2.0
"""Every error of checkpoint: its type, and that it names tensor, file, rule and what it got."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import QUANTIZATION, quantized, write
from safetensors.numpy import save_file

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

W = "model.layers.0.mlp.up_proj.weight"
S = W + "_scale_inv"
VALUES, SCALES, _ = quantized(np.random.default_rng(0), (200, 300))
F32 = np.ones((200, 300), np.float32)
FILE = r"model\.safetensors"
EXPERT = "m.experts.{}.w"


def tensors(**changes):
    """A weight and its scales, with changes; None takes a tensor away."""
    return {k: v for k, v in {W: VALUES, S: SCALES, **changes}.items() if v is not None}


def quantization(**changes):
    found = {k: v for k, v in {**QUANTIZATION, **changes}.items() if v is not None}
    return {"quantization": found}


def experts(*numbers, **changes):
    files = {EXPERT.format(i): np.ones((2, 4), np.float32) for i in numbers}
    return {**files, **changes}


CONTENTS = {
    "no_scales": (tensors(**{S: None}), {}, ValueError, f"{W}.*{FILE}.*must have scales.*missing"),
    "no_values": (tensors(**{W: None}), {}, ValueError, f"{S}.*{FILE}.*must scale.*missing"),
    "scales_shape": (
        tensors(**{S: SCALES[:1]}),
        {},
        ValueError,
        rf"{S}.*{FILE}.*\(2, 3\).*\(200, 300\).*\(1, 3\)",
    ),
    "scales_rank": (tensors(**{S: SCALES[0]}), {}, ValueError, rf"{S}.*\(2, 3\).*got \(3,\)"),
    "scales_transposed": (tensors(**{S: SCALES.T.copy()}), {}, ValueError, rf"{S}.*\(3, 2\)"),
    "scales_dtype": (
        tensors(**{S: SCALES.astype(np.int32)}),
        {},
        TypeError,
        f"{S}.*{FILE}.*F32.*got I32",
    ),
    "values_dtype": (tensors(**{W: F32}), {}, TypeError, f"{W}.*{FILE}.*float8_e4m3fn.*float32"),
    "values_e5m2": (
        tensors(**{W: F32.astype(jnp.float8_e5m2)}),
        {},
        TypeError,
        f"{W}.*float8_e4m3fn.*float8_e5m2",
    ),
    "values_rank": (
        tensors(**{W: VALUES[0], S: SCALES[0]}),
        {},
        ValueError,
        rf"{W}.*\(\.\.\., N, K\).*\(300,\)",
    ),
    "dtype_unknown": (
        {"z": np.ones(3, np.complex64)},
        {},
        TypeError,
        f"'z'.*{FILE}.*must have a dtype.*got C64",
    ),
    "method": (
        tensors(),
        quantization(quant_method="gptq"),
        ValueError,
        "config.json.*quant_method.*'fp8'.*'gptq'",
    ),
    "format": (tensors(), quantization(fmt="e5m2"), ValueError, "fmt.*'e4m3'.*'e5m2'"),
    "scheme": (
        tensors(),
        quantization(activation_scheme="static"),
        ValueError,
        "activation_scheme.*'dynamic'.*'static'",
    ),
    "block": (
        tensors(),
        quantization(weight_block_size=[64, 128]),
        ValueError,
        r"config.json.*weight_block_size.*\[128, 128\].*\[64, 128\]",
    ),
    "no_block": (
        tensors(),
        quantization(weight_block_size=None),
        ValueError,
        rf"{S}.*must have shape \(\) or \(1,\) for values of shape \(200, 300\).*got \(2, 3\)",
    ),
    "no_quantization": (
        tensors(),
        {"quantization": None},
        ValueError,
        f"config.json.*quantization_config.*{W}.*None",
    ),
    "not_to_convert": (
        tensors(),
        quantization(modules_to_not_convert=["lm_head", "model.layers.0"]),
        ValueError,
        f"{W}.*{FILE}.*must not be quantized.*modules_to_not_convert.*'model.layers.0'",
    ),
    "not_to_convert_text": (
        tensors(),
        quantization(modules_to_not_convert="lm_head"),
        ValueError,
        "config.json.*modules_to_not_convert must be a list of names, got 'lm_head'",
    ),
    "experts_gap": (experts(0, 2), {}, ValueError, r"'m\.experts\.w'.*without a gap.*no 1"),
    "experts_differ": (
        experts(0, **{EXPERT.format(1): np.ones((3, 4), np.float32)}),
        {},
        ValueError,
        rf"{EXPERT.format(1)}.*{FILE}.*\(2, 4\).*\(3, 4\)",
    ),
    "experts_dtype": (
        experts(0, **{EXPERT.format(1): np.ones((2, 4), np.float16)}),
        {},
        ValueError,
        r"F32 \(2, 4\).*F16 \(2, 4\)",
    ),
    "experts_twice": (
        experts(0, **{"m.experts.w": np.ones((2, 4), np.float32)}),
        {},
        ValueError,
        r"'m\.experts\.w'.*exists",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content(tmp_path, name):
    content, options, error, message = CONTENTS[name]
    write(tmp_path, content, **options)
    with pytest.raises(error, match=message):
        checkpoint.load(tmp_path)


def test_similar_module_names_are_not_taken_for_one_another(tmp_path):
    write(tmp_path, tensors(), **quantization(modules_to_not_convert=["model.layers.0.mlp.up"]))
    assert checkpoint.load(tmp_path)[W].shape == (200, 300)


def test_what_is_not_loaded_is_not_checked(tmp_path):
    write(tmp_path, {**tensors(**{S: None}), "b": np.ones(3, np.float32)})
    assert set(checkpoint.load(tmp_path, include=lambda name: name == "b")) == {"b"}


def broken_files():
    def index(folder, content):
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    def cut(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])

    return {
        "nothing": (
            lambda folder: (folder / "model.safetensors").unlink(),
            FileNotFoundError,
            "must hold model.safetensors.index.json or model.safetensors",
        ),
        "no_config": (
            lambda folder: (folder / "config.json").unlink(),
            FileNotFoundError,
            f"config.json.*{W}.*missing",
        ),
        "config_not_json": (
            lambda folder: (folder / "config.json").write_text("{"),
            ValueError,
            "config.json must be JSON",
        ),
        "config_list": (
            lambda folder: (folder / "config.json").write_text("[]"),
            ValueError,
            "config.json must hold an object, got list",
        ),
        "cut": (cut, ValueError, f"{FILE} must be a safetensors file"),
        "no_map": (lambda folder: index(folder, {}), ValueError, "weight_map.*NoneType"),
        "file_missing": (
            lambda folder: index(folder, {"weight_map": {W: "model-2.safetensors"}}),
            FileNotFoundError,
            f"{W}.*model-2.safetensors",
        ),
        "file_elsewhere": (
            lambda folder: index(folder, {"weight_map": {W: "../model.safetensors"}}),
            ValueError,
            rf"{W}.*file of the folder.*'\.\./model.safetensors'",
        ),
        "tensor_missing": (
            lambda folder: index(folder, {"weight_map": {"x": "model.safetensors"}}),
            ValueError,
            f"'x' to {FILE}, which must hold it",
        ),
    }


@pytest.mark.parametrize("name", broken_files())
def test_files(tmp_path, name):
    breaks, error, message = broken_files()[name]
    write(tmp_path, tensors())
    breaks(tmp_path)
    with pytest.raises(error, match=message):
        checkpoint.load(tmp_path)


def test_sharding_type(tmp_path):
    write(tmp_path, tensors())
    for sharding in ("cpu", lambda name, shape: ("x", None)):
        with pytest.raises(TypeError, match=f"sharding of '{W}'.*jax.Device"):
            checkpoint.load(tmp_path, sharding=sharding)


class HalfRows(jax.sharding.Sharding):
    """No NamedSharding, of which no sharding of the scales follows."""

    def shard_shape(self, global_shape):
        rows, columns = global_shape
        return rows // 2, columns


def test_sharding_of_another_kind_that_cuts_blocks(tmp_path):
    write(tmp_path, tensors())
    with pytest.raises(ValueError, match=f"must be a jax.sharding.NamedSharding.*axis 0 of '{W}'"):
        checkpoint.load(tmp_path, include=lambda name: name == W, sharding=HalfRows())


def test_package_missing(tmp_path, monkeypatch):
    write(tmp_path, tensors())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    for call in (
        lambda: checkpoint.load(tmp_path),
        lambda: checkpoint.save(tmp_path / "new", {}),
    ):
        with pytest.raises(ImportError, match=r"pip install 'jax-fp8gemm\[checkpoint\]'"):
            call()


WEIGHT = fp8.BlockScaled(VALUES, SCALES, (128, 128))
LOOP = {}
LOOP["loop"] = LOOP
SAVED = {
    "row_block": (
        {W: fp8.quantize(F32)},
        {},
        ValueError,
        rf"{W}.*block \(128, 128\).*\(1, 128\)",
    ),
    "e5m2": (
        {W: fp8.quantize(F32, (128, 128), dtype=jnp.float8_e5m2)},
        {},
        TypeError,
        f"{W}.*float8_e4m3fn.*float8_e5m2",
    ),
    "plain_float8": ({W: VALUES}, {}, TypeError, f"{W}.*BlockScaled.*float8_e4m3fn"),
    "not_array": ({"a": [1.0]}, {}, TypeError, "'a'.*BlockScaled or an array.*list"),
    "dtype": ({"a": np.ones(2, np.complex64)}, {}, TypeError, "'a'.*dtype.*complex64"),
    "twice": (
        {"m.experts.w": np.ones((2, 3, 4), np.float32), "m.experts.1.w": np.ones(3, np.float32)},
        {},
        ValueError,
        r"'m\.experts\.1\.w'.*again",
    ),
    "scales_twice": ({W: WEIGHT, S: SCALES}, {}, ValueError, f"{S}.*again"),
    "limit": ({}, {"max_file_bytes": 0}, ValueError, "max_file_bytes.*1.*0"),
    "limit_type": ({}, {"max_file_bytes": 1.5}, TypeError, "max_file_bytes.*1.5"),
    "config": (
        {W: WEIGHT},
        {"config": {"quantization_config": {"quant_method": "awq"}}},
        ValueError,
        "config.*quant_method.*'fp8'.*'awq'",
    ),
    "scales_alone": ({S: SCALES}, {}, ValueError, f"{S}.*must not end in '_scale_inv'"),
    "scales_quantized": ({S: WEIGHT}, {}, ValueError, f"{S}.*must not end in '_scale_inv'"),
    "config_no_json": (
        {W: WEIGHT},
        {"config": {"eos": SCALES}},
        TypeError,
        "checkpoint.save: config must hold what JSON can: .*ndarray",
    ),
    "config_in_itself": (
        {},
        {"config": LOOP},
        TypeError,
        "config must hold what JSON can.*ircular",
    ),
    "config_list": ({}, {"config": [1]}, TypeError, "config must be a mapping, got list"),
    "config_text": (
        {W: WEIGHT},
        {"config": {"quantization_config": "fp8"}},
        TypeError,
        "config: quantization_config must be a mapping, got 'fp8'",
    ),
    "config_modules": (
        {W: WEIGHT},
        {"config": {"quantization_config": {"modules_to_not_convert": "lm_head"}}},
        ValueError,
        "config: .*modules_to_not_convert must be a list of names, got 'lm_head'",
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_save(tmp_path, name):
    content, options, error, message = SAVED[name]
    with pytest.raises(error, match=message):
        checkpoint.save(tmp_path / "new", content, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("call", [checkpoint.load, lambda folder: checkpoint.save(folder, {})])
@pytest.mark.parametrize(
    ("folder", "error", "message"),
    [
        (None, TypeError, "str or a path of str, got NoneType"),
        (123, TypeError, "str or a path of str, got int"),
        (b"x", TypeError, "str or a path of str, got bytes"),
        ("a\0b", ValueError, r"not contain a null character, got 'a\\x00b'"),
    ],
    ids=repr,
)
def test_folder_must_be_a_path(call, folder, error, message):
    with pytest.raises(error, match=rf"^checkpoint\.(load|save): folder must (be a )?{message}"):
        call(folder)


def test_save_into_a_checkpoint(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(FileExistsError, match=r"must not hold a checkpoint.*model\.safetensors"):
        checkpoint.save(tmp_path, {W: WEIGHT})
