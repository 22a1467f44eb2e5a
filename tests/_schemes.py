# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints of every scheme that is read, as the tools that write them lay them out."""

import ml_dtypes
import numpy as np
from _checkpoints import E4M3

N, K = 200, 300  # ragged blocks in both directions
LAYER = "model.layers.0"
BF16 = ml_dtypes.bfloat16

# What scales of (N, K) are by: shape in the file, and how often each is repeated over N and K.
SCALES = {
    "block": ((2, 3), (128, 128)),
    "block_4d": ((2, 1, 3, 1), (128, 128)),
    "tensor": ((), (N, K)),
    "tensor_1d": ((1,), (N, K)),
    "channel": ((N, 1), (1, K)),
    "channel_1d": ((N,), (1, K)),
}


def compressed_tensors(strategy, ignore=("lm_head",), **changes):
    """A config of compressed-tensors, quant_config.py and quant_scheme.py."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    weights |= {"dynamic": False, "actorder": None, "observer": "minmax", "group_size": None}
    weights["block_structure"] = [128, 128] if strategy == "block" else None
    activations = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights | changes, "input_activations": activations}
    return {
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def modelopt(algorithm, **changes):
    """What ModelOpt's convert_hf_config.py puts into config.json."""
    activations = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {
        "config_groups": {"group_0": {"input_activations": activations, "weights": activations}},
        "ignore": ["lm_head", "model.vision*"],
        "quant_algo": algorithm,
        "producer": {"name": "modelopt", "version": "0.29.0"},
        "quant_method": "modelopt",
        **changes,
    }


# AutoFP8's config.py; the activations of both are quantized by one number, known beforehand.
AUTO_FP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
# transformers' finegrained_fp8.py, FP8Linear without block_size, as Ministral 3 is stored.
PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
PER_TENSOR |= {"modules_to_not_convert": ["lm_head"], "dequantize": False}

# Of each scheme: quantization_config, suffix and layout of scales, their dtype, and what else a
# module has. The scale multiplies in all of them.
SCHEMES = {
    "compressed-tensors, block": (compressed_tensors("block"), "_scale", "block", BF16, ()),
    "compressed-tensors, block, float32": (
        compressed_tensors("block", ["re:.*lm_head", "re:.*mlp.gate$"]),
        "_scale",
        "block",
        np.float32,
        (),
    ),
    "compressed-tensors, tensor": (
        compressed_tensors("tensor"),
        "_scale",
        "tensor_1d",
        BF16,
        ("input_scale",),
    ),
    "compressed-tensors, channel": (compressed_tensors("channel"), "_scale", "channel", BF16, ()),
    "AutoFP8": (AUTO_FP8, "_scale", "tensor", np.float32, ("input_scale",)),
    "transformers, per tensor": (
        PER_TENSOR,
        "_scale_inv",
        "tensor",
        BF16,
        ("activation_scale",),
    ),
    "ModelOpt FP8": (
        modelopt("FP8"),
        "_scale",
        "tensor",
        np.float32,
        ("input_scale", "k_scale"),
    ),
    "ModelOpt, channel": (
        modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        "_scale",
        "channel_1d",
        np.float32,
        (),
    ),
    "ModelOpt, block": (modelopt("fp8_pb_wo"), "_scale", "block_4d", np.float32, ()),
}


def scales_of(rng, layout, dtype=np.float32, rows_agree=True):
    """Returns scales as stored, and as an (N, K) float64 array, one for each value."""
    shape, (rows, columns) = SCALES[layout]
    counts = (-(-N // rows), -(-K // columns))
    scales = rng.uniform(0.001, 0.01, counts).astype(dtype)
    if layout.startswith("channel") and rows_agree:
        scales = np.repeat(scales[::128], 128, axis=0)[:N]
    each = np.repeat(np.repeat(scales.astype(np.float64), rows, axis=0), columns, axis=1)
    return scales.reshape(shape), each[:N, :K]


def in_scheme(rng, scheme):
    """Returns the tensors of a layer, what each weight stands for in float64, and its config."""
    quantization, suffix, layout, scale_dtype, more = SCHEMES[scheme]
    tensors, dense = {}, {}
    modules = [f"{LAYER}.self_attn.q_proj", *(f"{LAYER}.mlp.experts.{i}.up_proj" for i in (0, 1))]
    for module in modules:
        values = rng.normal(size=(N, K)).astype(np.float32).astype(E4M3)
        scales, each = scales_of(rng, layout, scale_dtype)
        tensors |= {f"{module}.weight": values, f"{module}.weight{suffix}": scales}
        tensors |= {f"{module}.{name}": np.array(0.5, np.float32) for name in more}
        dense[f"{module}.weight"] = values.astype(np.float64) * each
    tensors["lm_head.weight"] = rng.normal(size=(8, 4)).astype(BF16)
    tensors["model.norm.weight"] = np.ones(4, BF16)
    return tensors, dense, quantization
