# SPDX-License-Identifier: Apache-2.0
"""checkpoint.load of the families of models that store float8 with scales per 128x128."""

import numpy as np
import pytest

pytest.importorskip("safetensors")

from _checkpoints import STYLES, in_style, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint


@pytest.mark.parametrize("style", STYLES)
def test_styles(tmp_path, style):
    """Names, ragged blocks, scales and quantization_config as each family of models has them."""
    tensors, dense, quantization = in_style(np.random.default_rng(0), style)
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=quantization))
    seen = 0
    for name, array in loaded.items():
        if ".experts." in name:
            stem, _, part = name.rpartition(".experts.")
            want = np.stack([dense[f"{stem}.experts.{i}.{part}"] for i in range(2)])
        else:
            want = dense[name]
        seen += len(want) if ".experts." in name else 1
        assert isinstance(array, fp8.BlockScaled) == (want.dtype == np.float32)
        got = array.dequantize() if isinstance(array, fp8.BlockScaled) else array
        assert np.asarray(got).tobytes() == want.tobytes(), name
    assert seen == len(dense)
