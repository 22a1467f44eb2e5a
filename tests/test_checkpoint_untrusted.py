# SPDX-License-Identifier: Apache-2.0
"""checkpoint.load of files that are other than they should be: refused by file, field and value."""

import copy
import json
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import QUANTIZATION, quantized, write
from _schemes import AUTO_FP8, compressed_tensors, modelopt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_fp8gemm import checkpoint

W = "m.q_proj.weight"
S = W + "_scale_inv"
VALUES, SCALES, _ = quantized(np.random.default_rng(0), (128, 256))
FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
F32 = np.float32

# Of each scheme: its scales, what its quantization_config says, and what the message names first.
METHODS = "'fp8' or 'compressed-tensors' or 'modelopt' or 'mxfp4'"
ROWS, ONE = {W + "_scale": np.ones((128, 1), F32)}, {W + "_scale": np.array(0.1, F32)}
SCHEMES = {
    "FBGEMM, per channel": (
        ROWS,
        {"quant_method": "fbgemm_fp8"},
        f"quant_method must be {METHODS}, got 'fbgemm_fp8'",
    ),
    "compressed-tensors, packed": (
        ROWS,
        {**compressed_tensors("channel"), "format": "pack-quantized"},
        "format must be 'float-quantized' or 'naive-quantized', got 'pack-quantized'",
    ),
    "compressed-tensors, int8": (
        ROWS,
        compressed_tensors("channel", type="int"),
        "config_groups.group_0.weights.type must be 'float', got 'int'",
    ),
    "compressed-tensors, 4 bits": (
        ROWS,
        compressed_tensors("channel", num_bits=4),
        "weights.num_bits must be 8, got 4",
    ),
    "compressed-tensors, groups": (
        {W + "_scale": np.ones((128, 2), F32)},
        compressed_tensors("group", group_size=128),
        "weights.strategy must be 'block' or 'tensor' or 'channel', got 'group'",
    ),
    "compressed-tensors, blocks of 64": (
        {W + "_scale": np.ones((2, 4), F32)},
        compressed_tensors("block", block_structure=[64, 64]),
        r"weights.block_structure must be \[128, 128\], got \[64, 64\]",
    ),
    "compressed-tensors, zero points": (
        ROWS,
        compressed_tensors("channel", symmetric=False),
        "weights.symmetric must be True, got False",
    ),
    "compressed-tensors, no groups": (
        ROWS,
        {"quant_method": "compressed-tensors", "config_groups": {}},
        "config_groups must be a mapping of at least one group, got {}",
    ),
    "compressed-tensors, a group of another type": (
        ROWS,
        {"quant_method": "compressed-tensors", "config_groups": {"FP8": [1]}},
        "config_groups.FP8.weights.type must be 'float', got None",
    ),
    "ModelOpt, NVFP4": (
        ONE,
        modelopt("NVFP4"),
        "quant_algo must be 'FP8' or 'FP8_PER_CHANNEL_PER_TOKEN' or 'FP8_PB_WO', got 'NVFP4'",
    ),
    "ModelOpt, in its own words": (
        ONE,
        {"quant_method": "modelopt", "quantization": {"quant_algo": ["FP8"]}},
        r"quantization.quant_algo must be .* got \['FP8'\]",
    ),
    "per tensor, e5m2": (ONE, {**AUTO_FP8, "fmt": "e5m2"}, "fmt must be 'e4m3', got 'e5m2'"),
    "scales of another format": (
        {S: SCALES},
        {**QUANTIZATION, "scale_fmt": "ue4m3"},
        "scale_fmt must be 'float' or 'ue8m0', got 'ue4m3'",
    ),
    "blocks of 32x32": (
        {S: np.ones((4, 8), F32)},
        {**QUANTIZATION, "weight_block_size": [32, 32]},
        r"weight_block_size must be \[128, 128\], got \[32, 32\]",
    ),
    "rows": (
        {S: np.ones((128, 2), F32)},
        {**QUANTIZATION, "weight_block_size": [1, 128]},
        r"weight_block_size must be \[128, 128\], got \[1, 128\]",
    ),
    "none that config.json names": (
        {W + "_scale": np.array(0.1, F32)},
        None,
        "must have a quantization_config",
    ),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_another_scheme_is_named_with_its_scales(tmp_path, name):
    scales, quantization, message = SCHEMES[name]
    write(tmp_path, {W: VALUES, **scales}, quantization=quantization)
    with pytest.raises(ValueError, match=f"config.json.*{message}") as caught:
        checkpoint.load(tmp_path)
    named = [W, *scales]
    if quantization:
        named += [f"quant_method {quantization['quant_method']!r}"]
        named += [f"weight_block_size {quantization.get('weight_block_size')!r}"]
    assert [each for each in named if each not in str(caught.value)] == []


def test_scales_by_another_name_are_named(tmp_path):
    """As DeepSeek's own code calls them; those of other modules are not."""
    scales = {"m.q_proj.scale": SCALES, "m.q_proj_b.scale": SCALES, "m.norm_scale": SCALES}
    write(tmp_path, {W: VALUES, **scales})
    message = f"{W}.*must have scales '{S}', missing.*; found scales 'm.q_proj.scale'[.]$"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_another_scheme_without_float8_is_loaded_as_it_is(tmp_path):
    write(tmp_path, {"a": np.ones(3, F32), W: VALUES}, quantization={"quant_method": "modelopt"})
    assert set(checkpoint.load(tmp_path, include=lambda name: name == "a")) == {"a"}


@pytest.mark.parametrize(("listed", "left_out"), [(W, S), (S, W)])
def test_an_index_that_leaves_out_what_its_file_holds(tmp_path, listed, left_out):
    write(tmp_path, {W: VALUES, S: SCALES})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {listed: FILE}}))
    message = f"'{listed}' in {FILE}.*'{left_out}', which {FILE} holds but {INDEX} does not list"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


# ---- Paths --------------------------------------------------------------------------------------

ELSEWHERE = ["", ".", "..", "../" + FILE, "sub", "sub/" + FILE, "./" + FILE, FILE + "/"]
NO_NAMES = [None, True, 3, 1.5, [], [FILE], {}, {"file": FILE}]


@pytest.mark.parametrize("value", [*ELSEWHERE, *NO_NAMES], ids=repr)
def test_what_names_no_file_of_the_folder(tmp_path, value):
    for folder in (tmp_path, tmp_path / "in", tmp_path / "in/sub"):
        write(folder, {W: VALUES, S: SCALES})
    (tmp_path / "in" / INDEX).write_text(json.dumps({"weight_map": {W: FILE, S: value}}))
    with pytest.raises(ValueError, match=f"{INDEX} must map '{S}' to a file of the fold") as caught:
        checkpoint.load(tmp_path / "in")
    assert f"got {value!r}." in str(caught.value)


@pytest.mark.parametrize("value", ["a\0b", "x" * 300, "\ud800", "dangling"], ids=ascii)
def test_names_that_no_file_has(tmp_path, value):
    write(tmp_path, {W: VALUES})
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {W: value}}))
    with pytest.raises(FileNotFoundError, match=f"{INDEX} maps '{W}' to '.*must hold") as caught:
        checkpoint.load(tmp_path)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG, INDEX, FILE])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_there_but_no_file(tmp_path, name, make):
    """Reading a pipe would wait for ever."""
    write(tmp_path, {W: VALUES, S: SCALES})
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} must be a file"):
        checkpoint.load(tmp_path)


def test_links_of_a_cache_are_followed(tmp_path):
    """As the cache of the Hugging Face Hub lays them: snapshots of links to blobs elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0"
    write(blobs, {W: VALUES}, {S: SCALES})
    snapshot.mkdir(parents=True)
    for path in list(blobs.iterdir()):
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}-blob")
        path.rename(f"{path}-blob")
    assert checkpoint.load(snapshot)[W].shape == (128, 256)


# ---- JSON ---------------------------------------------------------------------------------------


def nested(depth):
    """Returns JSON text of lists and objects in turn, `depth` of them."""
    pairs = [('{"a": ', "}") if i % 2 else ("[", "]") for i in range(depth)]
    return "".join(start for start, _ in pairs) + "0" + "".join(end for _, end in reversed(pairs))


@pytest.mark.parametrize("name", [CONFIG, INDEX])
@pytest.mark.parametrize("depth", [64, 100_000])
def test_json_nested_too_deeply(tmp_path, name, depth):
    write(tmp_path, {W: VALUES, S: SCALES})
    (tmp_path / name).write_text(f'{{"a": {nested(depth)}}}')
    with pytest.raises(ValueError, match=f"{name} must be JSON: .* at most 64 deep"):
        checkpoint.load(tmp_path)


def test_json_nested_as_deeply_as_may_be(tmp_path):
    config = {"a": json.loads(nested(63))}
    checkpoint.save(tmp_path / "new", {"b": np.ones(3, F32)}, config=config)
    assert checkpoint.load(tmp_path / "new").config == config


@pytest.mark.parametrize("depth", [64, 100_000])
def test_save_refuses_what_load_would(tmp_path, depth):
    config = 0
    for _ in range(depth + 1):
        config = {"a": config}
    with pytest.raises(TypeError, match="config must hold what JSON can"):
        checkpoint.save(tmp_path / "new", {"a": np.ones(3, F32)}, config=config)
    while config:  # a frame for each level would be needed to free them all at once
        config = config["a"]


@pytest.mark.parametrize("text", ["", "{", "\ufeff{}", b"\xff", "[1]", "null", "1" * 5000])
@pytest.mark.parametrize("name", [CONFIG, INDEX])
def test_text_that_is_no_object_of_json(tmp_path, name, text):
    write(tmp_path, {W: VALUES, S: SCALES})
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{name} must (be JSON|hold an object)"):
        checkpoint.load(tmp_path)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES | st.sampled_from([FILE, W, S, "fp8", [128, 128]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
BASES = [
    {**QUANTIZATION, "modules_to_not_convert": [], "scale_fmt": "ue8m0"},
    AUTO_FP8,
    compressed_tensors("block"),
    modelopt("FP8"),
    {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "exclude_modules": []}},
    {"quant_method": "mxfp4", "modules_to_not_convert": []},
]


@st.composite
def changed(draw):
    """A quantization_config with anything in one place of it, and maybe inside another config."""
    config = {"quantization_config": copy.deepcopy(draw(st.sampled_from(BASES)))}
    place = config
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or draw(st.booleans()):
            break
        place = place[key]
    place[key] = draw(JSON)
    return {"text_config": config} if draw(st.booleans()) else config


CONFIGS = JSON | changed()
NAMES = st.sampled_from([W, S]) | st.text(max_size=5)
INDEXES = JSON | st.fixed_dictionaries(
    {"weight_map": JSON | st.dictionaries(NAMES, JSON | st.just(FILE), max_size=3)}
)
FUZZED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def load_or_refuse(folder):
    """Loads; what is refused is so in words of this package."""
    try:
        checkpoint.load(folder)
    except (FileNotFoundError, TypeError, ValueError) as error:
        assert str(error).startswith("checkpoint"), repr(error)


@FUZZED
@given(config=CONFIGS, file=st.sampled_from([CONFIG, "hf_quant_config.json"]))
def test_config_of_any_type(tmp_path, config, file):
    tensors = {
        W: VALUES,
        S: SCALES,
        W + "_scale": SCALES,
        "x_blocks": np.zeros((1, 1, 16), np.uint8),
    }
    write(tmp_path, {**tensors, "x_scales": np.zeros((1, 1), np.uint8)}, quantization=None)
    (tmp_path / file).write_text(json.dumps(config))
    load_or_refuse(tmp_path)
    (tmp_path / file).unlink()


@FUZZED
@given(index=INDEXES)
def test_index_of_any_type(tmp_path, index):
    write(tmp_path, {W: VALUES, S: SCALES})
    (tmp_path / INDEX).write_text(json.dumps(index))
    load_or_refuse(tmp_path)


def test_save_takes_a_config_that_nothing_has_checked(tmp_path):
    """Of a plain checkpoint load asks nothing; then a weight is quantized."""
    write(tmp_path / "old", {W: np.ones((4, 8), F32)}, quantization={"modules_to_not_convert": 3})
    weights = checkpoint.load(tmp_path / "old")
    weights["new.weight"] = checkpoint.BlockScaled(VALUES, SCALES, (128, 128))
    with pytest.raises(ValueError, match="modules_to_not_convert must be a list of names, got 3"):
        checkpoint.save(tmp_path / "new", weights)
    checkpoint.save(tmp_path / "new", weights, config={})
    quantization = checkpoint.load(tmp_path / "new").config["quantization_config"]
    assert quantization["modules_to_not_convert"] == []


# ---- Headers ------------------------------------------------------------------------------------


def entry(shape, num_bytes, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, num_bytes]}


HEADERS = {
    "dimension": ({"a": entry([0, 2**63], 0)}, b"", None, "'a' in .*must have the shape"),
    "product": ({"a": entry([2**62, 0, 2**62], 0)}, b"", None, "'a' in .*must have the shape"),
    "rank": ({"a": entry([1] * 100, 1)}, b"0", None, "'a' in .*must have the shape"),
    "more than there is": ({"a": entry([2**40], 2**40)}, b"0", None, "be a safetensors file"),
    "overflow": ({"a": entry([2**63, 2], 0)}, b"", None, "be a safetensors file"),
    "length": ({}, b"", 2**63 - 1, "be a safetensors file"),
    "length past the end": ({}, b"", 10**6, "be a safetensors file"),
    "nothing": (None, b"", None, "be a safetensors file"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_sizes_that_the_file_does_not_have(tmp_path, name):
    header, data, length, message = HEADERS[name]
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    (tmp_path / FILE).write_bytes(content if header is not None else b"")
    with pytest.raises(ValueError, match=f"checkpoint: .*{message}"):
        checkpoint.load(tmp_path)


def test_an_expert_of_thousands_of_digits_is_none(tmp_path):
    """int() refuses them. It comes back under its name."""
    name = f"m.experts.{'1' * 5000}.w"
    write(tmp_path, {name: np.ones((2, 3, 4), F32)}, quantization=None)
    loaded = checkpoint.load(tmp_path)
    assert loaded[name].shape == (2, 3, 4)
    checkpoint.save(tmp_path / "new", {**loaded})
    assert jnp.array_equal(checkpoint.load(tmp_path / "new")[name], loaded[name])
