# SPDX-License-Identifier: Apache-2.0
"""checkpoint.load of MXFP4 experts: float64 of what each nibble means, and what is not exact."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import E4M3, QUANTIZATION, config_of, content, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

W = "model.layers.0.mlp.experts.down_proj"
# FP4_VALUES of transformers' mxfp4.py, by which convert_moe_packed_tensors reads: the low four
# bits are the first of two elements, scales are exponents with bias 127.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
# config.json of gpt-oss-20b and gpt-oss-120b.
LEFT_OUT = [
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
]
MXFP4 = {"modules_to_not_convert": LEFT_OUT, "quant_method": "mxfp4"}
SHAPE = (2, 200, 9)  # experts, rows, groups of 32: a last block of 72 rows and of one group


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def all_levels(caplog):
    caplog.set_level("INFO", logger="jax_fp8gemm")


def meaning(codes, exponents):
    pairs = np.stack([FP4[codes & 15], FP4[codes >> 4]], axis=-1)
    groups = pairs.reshape(*exponents.shape, 32)
    dense = groups * np.exp2(exponents.astype(np.float64) - 127)[..., None]
    return dense.reshape(*dense.shape[:-2], -1)


def exact(weight):
    scales = np.asarray(weight.scales, np.float64)
    each = np.repeat(np.repeat(scales, 128, axis=-2), 128, axis=-1)
    n, k = weight.shape[-2:]
    return np.asarray(weight.values, np.float64) * each[..., :n, :k]


def random(rng, low, high, shape=SHAPE):
    codes = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
    return codes, rng.integers(low, high + 1, shape).astype(np.uint8)


def loaded(folder, codes, exponents, quantization=MXFP4, **options):
    tensors = {
        f"{W}_blocks": codes,
        f"{W}_scales": exponents,
        f"{W}_bias": np.ones((2, 3), np.float32),
    }
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.ones((2, 3), np.float32)
    tensors["model.layers.0.self_attn.sinks"] = np.ones(3, np.float32)
    return checkpoint.load(write(folder, tensors, quantization=quantization), **options)


def said_of_rounding(caplog):
    """What was logged of it, the most severe first; both levels say the same of one result."""
    records = [record for record in caplog.records if "rounded" in record.message]
    records.sort(key=lambda record: -record.levelno)
    return [record.message for record in records]


@pytest.mark.parametrize(("low", "high"), [(0, 2), (1, 15), (100, 114), (230, 244)])
def test_scales_of_14_powers_are_exact(tmp_path, rng, low, high):
    """6 * 2**6 and 0.5 * 2**-8 are in e4m3, and all between; scales are normal numbers."""
    codes, exponents = random(rng, low, high)
    weight = loaded(tmp_path, codes, exponents)[W]
    assert (weight.shape, weight.dtype, weight.block) == ((2, 200, 288), E4M3, (128, 128))
    want = meaning(codes, exponents)
    np.testing.assert_array_equal(exact(weight), want)
    assert np.array_equal(np.signbit(np.asarray(weight.values, np.float32)), np.signbit(want))
    assert (np.frexp(np.asarray(weight.scales))[0] == 0.5).all()  # powers of two
    assert np.isfinite(weight.scales).all() and (np.asarray(weight.scales) >= 2.0**-126).all()


def test_every_pair_of_elements(tmp_path):
    codes = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    exponents = np.full((1, 1, 16), 120, np.uint8)
    weight = loaded(tmp_path, codes, exponents)[W]
    np.testing.assert_array_equal(exact(weight), meaning(codes, exponents))


@pytest.mark.parametrize("largest", range(1, 8))
def test_blocks_of_small_elements(tmp_path, rng, largest):
    """The scale is by the elements that there are, so that up to 3 the scales may span 2**15."""
    shape = (2, 140, 5)
    signs = rng.integers(0, 2, (*shape, 32), dtype=np.uint8) * 8
    elements = rng.integers(0, largest + 1, (*shape, 32), dtype=np.uint8) | signs
    elements[..., 0] = largest
    codes = elements[..., ::2] | elements[..., 1::2] << 4
    exponents = rng.integers(100, 115, shape).astype(np.uint8)
    exponents[0, 0, 0] = 115 if largest < 6 else 114
    weight = loaded(tmp_path, codes, exponents)[W]
    np.testing.assert_array_equal(exact(weight), meaning(codes, exponents))


def test_blocks_of_one_element(tmp_path):
    """0.5 is encoded as 256 and as 2**-9, and not as 2**-10."""
    codes, exponents = np.full((*SHAPE, 16), 0x11, np.uint8), np.full(SHAPE, 117, np.uint8)
    exponents[0, 0, 0] = 100
    weight = loaded(tmp_path, codes, exponents)[W]
    np.testing.assert_array_equal(exact(weight), meaning(codes, exponents))
    assert weight.values[0, 0, 32] == 256
    exponents[0, 0, 0] = 99
    with pytest.raises(ValueError, match=r"block \(0, 0, 0\) that is not"):
        loaded(tmp_path, codes, exponents)


def test_a_block_that_spans_15_powers_is_refused_or_rounded(tmp_path, rng, caplog):
    """The elements that are too small become the nearest of e4m3; other blocks stay exact."""
    codes, exponents = random(rng, 120, 124)
    codes[1, 130, 4:8] = 0x77  # 6 and 6
    exponents[1, 130, 4], exponents[1, 131, 5] = 124, 109
    codes[1, 131, 5] = 0x31  # 0.5 and 1.5
    for i, power in enumerate([108, 107, 106, 105, 104, 103, 90, 0]):
        codes[1, 132 + i, 6] = np.arange(16) * 0x11 + 0x70 * (i % 2)
        exponents[1, 132 + i, 6] = power
    message = (
        rf"'{W}_blocks' in model.safetensors must be exact in block FP8, .* block \(1, 1, 1\)"
        ".*requantize=True"
    )
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, codes, exponents)

    weight = loaded(tmp_path, codes, exponents, requantize=True)[W]
    want = meaning(codes, exponents)
    scales = np.asarray(weight.scales)
    assert scales[1, 1, 1] == 2.0 ** (124 - 127 - 6)
    each = np.repeat(np.repeat(scales, 128, axis=-2), 128, axis=-1)[:, :200, :288]
    rounded = (want / each).astype(E4M3)
    np.testing.assert_array_equal(np.asarray(weight.values), rounded)
    differ = exact(weight) != want
    assert differ[1, 131, 160:192].all()
    warned, informed = said_of_rounding(caplog)
    count = differ.sum()
    assert f"{count} of {want.size} values in 1 of 12 blocks, by up to 1 of a value" in warned
    assert informed == warned.replace("requantize=True rounded 1 results", f"rounded {W}")
    differ[1, 131:140, 160:224] = False
    assert not differ.any()


@pytest.mark.parametrize(
    ("power", "error"), [(107, "1"), (108, "0.333"), (109, "0.333"), (110, "")]
)
def test_says_how_much_was_rounded(tmp_path, caplog, power, error):
    """0.375, 0.75, 1.5 or 3 times the smallest of the block becomes 0, 1, 2 or 3 times that."""
    codes, exponents = np.zeros((*SHAPE, 16), np.uint8), np.full(SHAPE, 124, np.uint8)
    codes[0, 0, 0], codes[0, 1, 1, 3] = 0x77, 0x03  # 6 and 6; 1.5 and 0
    exponents[0, 1, 1] = power
    weight = loaded(tmp_path, codes, exponents, requantize=True)[W]
    assert weight.values[0, 1, 38] == {107: 0, 108: 2**-9, 109: 2**-8, 110: 3 * 2**-9}[power]
    said = said_of_rounding(caplog)
    text = f" 1 of {2 * 200 * 288} values in 1 of 12 blocks, by up to {error} of a value"
    assert [message.partition(":")[2] for message in said] == ([text] * 2 if error else [])


def test_says_nothing_of_what_is_exact(tmp_path, rng, caplog):
    loaded(tmp_path, *random(rng, 100, 114), requantize=True)
    assert not said_of_rounding(caplog)


def test_zeros_span_nothing(tmp_path, rng):
    """A group of zeros has any scale; a block of zeros gets 1."""
    codes, exponents = random(rng, 120, 124)
    codes[0, 0, 0], exponents[0, 0, 0] = 0x80, 254
    codes[0, 1, 1], exponents[0, 1, 1] = 0x08, 0
    codes[1, :128, 4:8], exponents[1, 7, 4] = 0, 3
    weight = loaded(tmp_path, codes, exponents)[W]
    np.testing.assert_array_equal(exact(weight), meaning(codes, exponents))
    assert weight.scales[1, 0, 1] == 1


def test_experts_stored_one_by_one_are_stacked(tmp_path, rng):
    codes, exponents = random(rng, 100, 114)
    tensors = {}
    for i in range(2):
        tensors[f"m.experts.{i}.up_blocks"], tensors[f"m.experts.{i}.up_scales"] = (
            codes[i],
            exponents[i],
        )
    weights = checkpoint.load(write(tmp_path, tensors, quantization=MXFP4))
    np.testing.assert_array_equal(exact(weights["m.experts.up"]), meaning(codes, exponents))


def test_is_saved_as_block_fp8(tmp_path, rng):
    weights = loaded(tmp_path / "old", *random(rng, 100, 114))
    assert weights.config["quantization_config"] == MXFP4
    assert weights.stored[W] == checkpoint.Stored("U8", ("U8",), False, "_scales", "mxfp4")
    weights["new.weight"] = np.ones((2, 3), np.float32)
    checkpoint.save(tmp_path / "new", weights)
    found = content(tmp_path / "new")
    assert found[W][:2] == ("F8_E4M3", (2, 200, 288))
    assert found[f"{W}_scale_inv"][:2] == ("F32", (2, 2, 3))
    quantization = config_of(tmp_path / "new")["quantization_config"]
    assert quantization == {**QUANTIZATION, "modules_to_not_convert": [*LEFT_OUT, "new"]}
    again = checkpoint.load(tmp_path / "new")
    np.testing.assert_array_equal(exact(again[W]), exact(weights[W]))
    assert set(again) == set(weights)


def test_multiplies_by_what_was_loaded(tmp_path, rng):
    codes, exponents = random(rng, 118, 124)
    weight = loaded(tmp_path, codes, exponents)[W]
    x = fp8.quantize(jnp.asarray(rng.normal(size=(8, 288)), jnp.float32))
    sizes = jnp.array([5, 3], jnp.int32)
    out = fp8.grouped_gemm(
        x, weight, sizes, preferred_element_type=jnp.float32, implementation="xla"
    )
    dense, rows = meaning(codes, exponents), np.asarray(x.dequantize(), np.float64)
    want = np.concatenate([rows[:5] @ dense[0].T, rows[5:] @ dense[1].T])
    size = np.concatenate([abs(rows[:5]) @ abs(dense[0]).T, abs(rows[5:]) @ abs(dense[1]).T])
    assert (abs(out - want) <= 1e-5 * size).all()


CODES, EXPONENTS = np.zeros((2, 4, 3, 16), np.uint8), np.full((2, 4, 3), 127, np.uint8)
REFUSED = {
    "no scales": ({"blocks": CODES}, ValueError, "'x_blocks'.*must have scales 'x_scales', miss"),
    "no blocks": ({"scales": EXPONENTS}, ValueError, "'x_scales'.*must scale a tensor 'x_blocks'"),
    "rank": (
        {"blocks": CODES[0, 0], "scales": EXPONENTS[0, 0]},
        ValueError,
        r"K / 32, 16\).*\(3, 16",
    ),
    "group": ({"blocks": CODES[..., :8], "scales": EXPONENTS}, ValueError, r"\(2, 4, 3, 8\)"),
    "empty": (
        {"blocks": CODES[:0], "scales": EXPONENTS[:0]},
        ValueError,
        r"none of them 0, got \(0,",
    ),
    "scales": ({"blocks": CODES, "scales": EXPONENTS[:1]}, ValueError, r"\(2, 4, 3\).*\(1, 4, 3\)"),
    "dtype": ({"blocks": CODES.view(np.int8), "scales": EXPONENTS}, TypeError, "U8, got I8"),
    "scale dtype": (
        {"blocks": CODES, "scales": EXPONENTS.astype(np.float32)},
        TypeError,
        "'x_scales'.*U8, got F32",
    ),
    "NaN": (
        {"blocks": CODES, "scales": np.where(np.arange(3) == 2, 255, EXPONENTS).astype(np.uint8)},
        ValueError,
        r"'x_scales'.*must not be NaN \(255\), got it at \(0, 0, 2\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(tmp_path, name):
    tensors, error, message = REFUSED[name]
    tensors = {f"x_{suffix}": np.ascontiguousarray(array) for suffix, array in tensors.items()}
    write(tmp_path, tensors, quantization=MXFP4)
    with pytest.raises(error, match=message):
        checkpoint.load(tmp_path, requantize=True)


def test_refuses_experts_that_are_left_out(tmp_path, rng):
    quantization = {**MXFP4, "modules_to_not_convert": ["model.layers.*.mlp"]}
    with pytest.raises(ValueError, match="must not be quantized.*names 'model.layers.0.mlp'"):
        loaded(tmp_path, *random(rng, 120, 124), quantization=quantization)
