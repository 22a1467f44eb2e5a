# SPDX-License-Identifier: Apache-2.0
"""The range of the product of two scales in gemm's docstring: right inside, as said outside."""

import jax.numpy as jnp
import numpy as np
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm.testing import oracle

BLOCKS = [(128, 128), (1, 128)]
RNG = np.random.default_rng(0)
# Products of scales at the ends of the range, and how they are made up.
EDGES = {
    "largest": (2.0**100, 2.0**27 * 1.5),
    "largest, alike": (2.0**63, 2.0**63),
    "smallest": (2.0**-100, 2.0**-26),
    "smallest, alike": (2.0**-63, 2.0**-63),
    "opposite": (2.0**-120, 2.0**120),
}


def operand(values, scale: float, block) -> fp8.BlockScaled:
    values = jnp.asarray(values, jnp.float8_e4m3fn)
    rows = -(-values.shape[0] // block[0])
    return fp8.BlockScaled(values, jnp.full((rows, 1), scale, jnp.float32), block)


def product(lhs, rhs, implementation):
    return np.asarray(
        fp8.gemm(lhs, rhs, preferred_element_type=jnp.float32, implementation=implementation)
    )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", EDGES)
def test_products_of_scales_in_range(name, block, implementation):
    if implementation == "cuda":
        pytest.skip("of the CPU's implementations")
    # Sums stay finite with the largest scale, and normal with the smallest.
    unit = 2.0**-6 if max(EDGES[name]) > 1 else 2.0**4
    lhs_values, rhs_values = (unit * RNG.choice([1, 1.5, 2], (rows, 128)) for rows in (16, 24))
    lhs = operand(lhs_values, EDGES[name][0], (1, 128))
    rhs = operand(rhs_values, EDGES[name][1], block)
    want = oracle.float64(lhs) @ oracle.float64(rhs).T
    np.testing.assert_allclose(product(lhs, rhs, implementation), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_scale_that_is_no_normal_number_may_count_as_zero(block, implementation):
    """That of byte 0 of UE8M0, 2**-127: right, or 0, and nothing else."""
    lhs = operand(np.full((16, 128), 448.0), 2.0**100, (1, 128))
    rhs = operand(np.full((24, 128), 448.0), 2.0**-127, block)
    want = 448.0**2 * 128 * 2.0**-27
    assert set(np.unique(product(lhs, rhs, implementation))) <= {0, np.float32(want)}
    assert set(np.unique(np.asarray(rhs.dequantize()))) <= {0, np.float32(448 * 2.0**-127)}


@pytest.mark.parametrize("block", BLOCKS)
def test_products_of_scales_out_of_range(block, simulator_library):
    """What the docstring says of the kernels; plain JAX is right here."""
    ones = np.zeros((16, 128)), np.zeros((16, 128))
    ones[0][:, 0], ones[1][:, 1] = 1, 1  # orthogonal: the exact result is 0
    large = operand(ones[0], 2.0**65, (1, 128)), operand(ones[1], 2.0**65, block)
    assert not np.isfinite(product(*large, "sim")).any()
    assert (product(*large, "xla") == 0).all()
    full = np.full((16, 128), 448.0)
    small = operand(full, 2.0**-64, (1, 128)), operand(full, 2.0**-64, block)
    assert (product(*small, "sim") == 0).all()
    assert (product(*small, "xla") > 0).all()
