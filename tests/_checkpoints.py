# SPDX-License-Identifier: Apache-2.0
"""Small block-quantized checkpoints, written by hand with numpy and the safetensors package."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import safetensors
from _source import ROOT
from safetensors.numpy import save_file

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
SCALE_DTYPES = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
}
QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def quantized(rng, shape, scale_dtype=np.float32, powers_of_two=False):
    """Returns values, scales as stored, and the float32 array they stand for, block by block."""
    values = rng.normal(size=shape).astype(E4M3)
    counts = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    exponents = rng.integers(-6, 3, size=counts)
    scales = 2.0**exponents
    if scale_dtype == np.float32 and not powers_of_two:  # any number will do
        scales = scales * rng.uniform(1, 2, size=counts)
    if scale_dtype == np.uint8:  # an exponent with bias 127 and nothing else
        stored = (exponents + 127).astype(np.uint8)
    else:
        stored = scales.astype(scale_dtype)
    dense = values.astype(np.float32)
    for n in range(counts[-2]):
        for k in range(counts[-1]):
            block = (..., slice(128 * n, 128 * n + 128), slice(128 * k, 128 * k + 128))
            factor = scales[..., n, k].astype(np.float32)
            dense[block] *= factor[..., None, None]
    return values, stored, dense


def write(folder, *files, quantization=QUANTIZATION, config=None):
    """Writes files of tensors, an index where there are several, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
        weight_map = {tensor: name for name, f in zip(names, files, strict=True) for tensor in f}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name)
    config = dict(config or {"model_type": "tiny"})
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def content(folder):
    """Returns dtype, shape and bytes of every tensor in the files of a folder, by name."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, entry in safetensors.deserialize(path.read_bytes()):
            assert name not in found
            found[name] = (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    return found


def config_of(folder):
    """Returns what config.json says."""
    return json.loads((folder / "config.json").read_text())


def assert_same(folder, new):
    """Names, dtypes, shapes and bytes, and the configuration."""
    before, after = content(folder), content(new)
    assert {k: v[:2] for k, v in after.items()} == {k: v[:2] for k, v in before.items()}
    assert after == before
    assert config_of(new) == config_of(folder)


def kinds(folder):
    """Dtype and shape of every tensor."""
    return {name: found[:2] for name, found in content(folder).items()}


def run_program(text, *arguments, num_devices=1):
    """Runs a program in a process of its own; returns what it printed, as JSON."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
    }
    run = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


_ATTENTION = {  # of multi-head latent attention, whose ranks are no multiples of 128
    "q_a_proj": (192, 256),
    "q_b_proj": (384, 192),
    "kv_a_proj_with_mqa": (160, 256),
    "kv_b_proj": (320, 96),
    "o_proj": (256, 256),
}
_DEEPSEEK = ("mlp.gate_proj", "mlp.up_proj", "mlp.shared_experts.down_proj")
# Names and shapes of the attention, names of the MLP, dtype of the scales, what
# quantization_config says besides, and what is not quantized.
STYLES = {
    "DeepSeek-V3, DeepSeek-R1": (_ATTENTION, _DEEPSEEK, np.float32, {}, ()),
    "DeepSeek-V3.1": (_ATTENTION, _DEEPSEEK, np.float32, {"scale_fmt": "ue8m0"}, ()),
    "UE8M0 scales": (
        _ATTENTION,
        _DEEPSEEK,
        ml_dtypes.float8_e8m0fnu,
        {"scale_fmt": "ue8m0"},
        (),
    ),
    "Kimi-K2": (_ATTENTION, ("mlp.shared_experts.up_proj",), np.float32, {}, ()),
    "Qwen3-FP8": (
        {name: (256, 256) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        ("mlp.down_proj",),
        ml_dtypes.bfloat16,
        {"fmt": None, "modules_to_not_convert": ["lm_head", "model.layers.3.mlp.gate"]},
        ("self_attn.q_norm",),
    ),
}


def in_style(rng, style):
    """Returns tensors, scales and all, of one layer; what they stand for; quantization_config."""
    attention, mlp, scale_dtype, changes, kept = STYLES[style]
    layer = "model.layers.3."
    shapes = {f"{layer}self_attn.{name}.weight": shape for name, shape in attention.items()}
    shapes |= {f"{layer}{name}.weight": (200, 256) for name in mlp}
    for i in range(2):
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"{layer}mlp.experts.{i}.{name}.weight"] = (136, 256)
    tensors, dense = {}, {}
    for name, shape in shapes.items():
        tensors[name], tensors[name + "_scale_inv"], dense[name] = quantized(
            rng, shape, scale_dtype, powers_of_two="scale_fmt" in changes
        )
    plain = ("lm_head.weight", f"{layer}mlp.gate.weight", *(f"{layer}{n}.weight" for n in kept))
    for name in plain:
        dense[name] = tensors[name] = rng.normal(size=(8, 256)).astype(ml_dtypes.bfloat16)
    quantization = {k: v for k, v in {**QUANTIZATION, **changes}.items() if v is not None}
    return tensors, dense, quantization
