# SPDX-License-Identifier: Apache-2.0
"""Small block-quantised checkpoints, written by hand with numpy and the safetensors package."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def quantised(rng, shape, scale_dtype=np.float32):
    """Returns values, scales as stored, and the float32 array they stand for, block by block."""
    values = rng.normal(size=shape).astype(E4M3)
    counts = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    exponents = rng.integers(-6, 3, size=counts)
    scales = 2.0**exponents
    if scale_dtype == np.float32:  # any number will do
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
