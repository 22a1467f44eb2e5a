# SPDX-License-Identifier: Apache-2.0
"""checkpoint: save(load(c)) is c, for any checkpoint of any scheme that load takes: drawn ones."""

import json
import pathlib
import tempfile

import jax
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("hypothesis")

import hypothesis
from _checkpoints import QUANTIZATION, SCALE_DTYPES, assert_same, config_of, content, kinds, write
from _schemes import AUTO_FP8, compressed_tensors, modelopt
from hypothesis import strategies as st

from jax_fp8gemm import checkpoint

E = "m.experts"
PLAIN_DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.bool_, np.uint8, np.int8]
PLAIN_DTYPES += [np.int32, np.int64, np.uint64, np.float64, ml_dtypes.float8_e8m0fnu]

# Suffixes and layouts of scales that a checkpoint of each scheme may have, and its config without
# what it leaves out.
KINDS = {
    "fp8": (("_scale_inv",), ("block",), QUANTIZATION),
    "fp8, per tensor": (("_scale", "_scale_inv"), ("tensor", "tensor_1d"), AUTO_FP8),
    "compressed-tensors": (
        ("_scale",),
        ("block", "tensor", "tensor_1d", "channel", "channel_1d"),
        compressed_tensors("block")
        | {
            "config_groups": {
                strategy: compressed_tensors(strategy)["config_groups"]["group_0"]
                for strategy in ("block", "tensor", "channel")
            }
        },
    ),
    "modelopt, FP8": (("_scale",), ("tensor", "tensor_1d"), modelopt("FP8")),
    "modelopt, channel": (
        ("_scale",),
        ("channel", "channel_1d"),
        modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
    ),
    "modelopt, block": (("_scale",), ("block", "block_4d"), modelopt("FP8_PB_WO")),
}
LEFT_OUT = ("modules_to_not_convert", "ignored_layers", "ignore")
# What a layout says of a matrix of so many blocks: how many scales, and their shape in the file.
LAYOUTS = {
    "block": lambda n, k: (n, k),
    "block_4d": lambda n, k: (n, 1, k, 1),
    "tensor": lambda n, k: (),
    "tensor_1d": lambda n, k: (1,),
    "channel": lambda n, k: (n, 1),
    "channel_1d": lambda n, k: (n,),
}


class Mixture:
    """Draws a checkpoint: tensors, what quantization_config says, and how they are in files."""

    def __init__(self, draw, kind):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.only_powers = draw(st.booleans())
        self.kind = kind
        self.suffixes, self.layouts, self.config = KINDS[kind]
        self.tensors = {}
        self.plain_modules = []

    def chosen(self, *options):
        return self.draw(st.sampled_from(options))

    def add_float8(self, name, scale_dtype, shape, stored):
        suffix, layout = stored
        *lead, n, k = shape
        file_shape = (*lead, *LAYOUTS[layout](-(-n // 128), -(-k // 128)))
        exponents = self.rng.integers(-9, 9, file_shape)
        if scale_dtype == "U8":
            scales = (127 + exponents).astype(np.uint8)
        else:
            factors = 1 if self.only_powers else self.rng.uniform(1, 2, file_shape)
            scales = np.asarray(2.0**exponents * factors).astype(SCALE_DTYPES[scale_dtype])
        if layout.startswith("channel"):  # the rows of a block have the same
            scales = np.repeat(scales, 128, axis=len(lead)).take(range(n), axis=len(lead))
        self.tensors[name] = self.rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
        self.tensors[name + suffix] = np.asarray(scales)  # 0-d arrays become numbers in sums

    def add_plain(self, name, dtype, shape):
        self.tensors[name] = self.rng.integers(0, 2, shape).astype(dtype)
        if name.endswith(".weight") and len(shape) == 2:
            self.plain_modules.append(name.removesuffix(".weight"))

    def add_layer(self, i):
        layer = f"model.layers.{i}"
        scale_dtype = self.chosen(*SCALE_DTYPES)
        stored = self.chosen(*self.suffixes), self.chosen(*self.layouts)
        shape = self.chosen((128, 128), (130, 5))
        self.add_float8(f"{layer}.q_proj.weight", scale_dtype, shape, stored)
        self.add_plain(f"{layer}.norm.weight", self.chosen(*PLAIN_DTYPES), self.chosen((4,), ()))
        self.add_plain(f"{layer}.gate.weight", self.chosen(*PLAIN_DTYPES), (4, 2))
        experts = f"{layer}.experts"
        kind = self.chosen("apart", "fused", "plain", "none")
        if kind == "fused":
            self.add_float8(f"{experts}.gate_up_proj", scale_dtype, (2, 130, 128), stored)
            self.add_plain(f"{experts}.gate_up_proj_bias", np.float32, (2, 4))
            self.add_plain(f"{experts}.table", np.int64, (2, 3, 4))
        elif kind != "none":
            self.add_experts(experts, kind == "apart", stored)

    def add_experts(self, experts, is_float8, stored):
        shape, dtype = self.chosen((128, 128), (130, 5)), self.chosen(*PLAIN_DTYPES)
        differ = self.draw(st.booleans())
        scale_dtype = self.chosen(*SCALE_DTYPES)
        for e in range(self.chosen(1, 2, 3)):
            if is_float8:
                scale_dtype = self.chosen(*SCALE_DTYPES) if differ else scale_dtype
                self.add_float8(f"{experts}.{e}.up.weight", scale_dtype, shape, stored)
            else:
                self.add_plain(f"{experts}.{e}.up.weight", dtype, (4, 2))
            self.add_plain(f"{experts}.{e}.up.bias", np.float64, (4,))
            self.add_plain(f"{experts}.{e}.up.input_scale", dtype, ())
            self.add_plain(f"{experts}.{e}.table", np.int64, (2, 3, 4))
            self.add_plain(f"{experts}.{e}.cube", np.float32, (1, 2, 3, 4))

    def quantization(self):
        maybe = lambda value: self.chosen(None, value)  # noqa: E731
        said = {key: value for key, value in self.config.items() if key not in LEFT_OUT}
        if self.kind == "fp8":
            said = {key: maybe(value) for key, value in said.items()}
            said["weight_block_size"] = [128, 128]
        if self.kind.startswith("fp8"):
            said["scale_fmt"] = "ue8m0" if self.only_powers else None
        entries = [name for name in self.plain_modules if self.draw(st.booleans())]
        (key,) = [key for key in LEFT_OUT if key in self.config] or LEFT_OUT[:1]
        said[key] = maybe(["lm_head", *entries, "model.visual"])
        said = {name: value for name, value in said.items() if value is not None}
        return said | self.chosen({}, {key: None}, {"extra": [1.5, "é"]})

    def configuration(self):
        """Returns config.json, and hf_quant_config.json or None, which says the same."""
        config = {"model_type": "tiny", "text_config": {"layers": 2}}
        if len(self.tensors) == 1:  # nothing is float8
            return config | self.chosen({}, {"quantization_config": {}}), None
        found = self.quantization()
        places = ("config", "text_config", *["file"] * self.kind.startswith("modelopt"))
        match self.chosen(*places):
            case "config":
                return config | {"quantization_config": found}, None
            case "text_config":
                config["text_config"]["quantization_config"] = found
                return config, None
        inner = {"quant_algo": found["quant_algo"], "exclude_modules": found.get("ignore")}
        return config, {"producer": {"name": "modelopt"}, "quantization": inner}


@st.composite
def mixtures(draw, kind):
    drawn = Mixture(draw, kind)
    for i in range(draw(st.integers(0, 2))):
        drawn.add_layer(i)
    drawn.add_plain("lm_head.weight", np.float32, (4, 2))
    names = draw(st.permutations(list(drawn.tensors)))
    cut = draw(st.integers(1, len(names)))
    files = [{name: drawn.tensors[name] for name in part} for part in (names[:cut], names[cut:])]
    return [file for file in files if file], *drawn.configuration()


def holds(kind, max_examples):
    """Draws checkpoints of a kind, and how they are loaded and saved, so many times."""

    @hypothesis.settings(derandomize=True, max_examples=max_examples, deadline=None, database=None)
    @hypothesis.given(
        mixtures(kind),
        st.fixed_dictionaries({"stack_experts": st.booleans(), "stack_layers": st.booleans()}),
        st.booleans(),
        st.sampled_from([1, 2000, 10**9]),
    )
    def comes_back(mixture, options, unstack, limit):
        files, config, hf_quant_config = mixture
        with tempfile.TemporaryDirectory() as name:
            folder = write(pathlib.Path(name) / "old", *files, quantization=None, config=config)
            if hf_quant_config is not None:
                (folder / "hf_quant_config.json").write_text(json.dumps(hf_quant_config))
                said = {"quant_method": "modelopt", **hf_quant_config}
                config = config | {"quantization_config": said}
            loaded = checkpoint.load(folder, **options)
            new = folder / "new"
            checkpoint.save(new, loaded, unstack_experts=unstack, max_file_bytes=limit)
            assert content(new) == content(folder)
            assert config_of(new) == config

    comes_back()


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_come_back(kind):
    """Of every scheme. What hf_quant_config.json said is in config.json then."""
    holds(kind, max_examples=6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mixtures_come_back(kind):
    holds(kind, max_examples=100)


@hypothesis.settings(derandomize=True, max_examples=8, deadline=None, database=None)
@hypothesis.given(
    st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.sampled_from(["", "text_config"])
)
def test_mxfp4_becomes_block_fp8_which_comes_back(seed, is_fused, stack, inside):
    """The one scheme that is converted: the same values, and a config that says so."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (2, 130, 5, 16), np.uint8)
    exponents = rng.integers(110, 124, codes.shape[:-1]).astype(np.uint8)
    tensors = {"lm_head.weight": np.ones((4, 2), np.float32), f"{E}.up_bias": np.ones((2, 3))}
    names = [f"{E}.up"] if is_fused else [f"{E}.{i}.up" for i in range(2)]
    for i, name in enumerate(names):
        index = slice(None) if is_fused else i
        tensors |= {f"{name}_blocks": codes[index], f"{name}_scales": exponents[index]}
    found = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.*.router"]}
    config = {inside: {"quantization_config": found}} if inside else {"quantization_config": found}
    with tempfile.TemporaryDirectory() as name:
        folder = write(pathlib.Path(name) / "old", tensors, quantization=None, config=config)
        loaded = checkpoint.load(folder, stack_experts=stack)
        checkpoint.save(folder / "new", loaded)
        stored = {
            key: found
            for each in names
            for key, found in {
                each: ("F8_E4M3", (*codes.shape[is_fused ^ 1 : 2], 160)),
                f"{each}_scale_inv": ("F32", (2,) * (2 + is_fused)),
            }.items()
        }
        plain = {f"{E}.up_bias": ("F64", (2, 3)), "lm_head.weight": ("F32", (4, 2))}
        assert kinds(folder / "new") == stored | plain
        said = {**QUANTIZATION, "modules_to_not_convert": found["modules_to_not_convert"]}
        inner = {"quantization_config": said}
        assert config_of(folder / "new") == ({inside: inner} if inside else inner)
        again = checkpoint.load(folder / "new", stack_experts=stack)
        for a, b in zip(jax.tree.leaves(dict(again)), jax.tree.leaves(dict(loaded)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        checkpoint.save(folder / "newer", again)
        assert_same(folder / "new", folder / "newer")
