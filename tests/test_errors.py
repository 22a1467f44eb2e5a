# SPDX-License-Identifier: Apache-2.0
"""Every error that depends on arguments alone: its type, and that it names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import E4M3, GemmCase, gemm_operands

import jax_fp8gemm as fp8
from jax_fp8gemm import deep_gemm, testing

X = np.ones((4, 256), np.float32)
LHS, RHS = gemm_operands(GemmCase("", 4, 200, 256))
SCALES = np.ones((4, 2), np.float32)
VALUES = np.ones((4, 256), np.float32).astype(E4M3)
ACCUMULATOR = jnp.ones((4, 200), jnp.bfloat16)


def gemm(**changes):
    arguments = {"lhs": LHS, "rhs": RHS, **changes}
    return fp8.gemm(arguments.pop("lhs"), arguments.pop("rhs"), **arguments)


def block_scaled(values=VALUES, scales=SCALES, block=(1, 128)):
    return fp8.BlockScaled(values, scales, block)


def quantize(x=X, *args, **kwargs):
    return fp8.quantize(x, *args, **kwargs)


def plan(m=64, n=64, k=64, **kwargs):
    return fp8.plan(m, n, k, **kwargs)


def close(out=ACCUMULATOR, **kwargs):
    return testing.assert_gemm_close(out, LHS, RHS, **kwargs)


def simulator(**options):
    with testing.simulator(**options):
        pass


def wide(x):
    return fp8.BlockScaled(x.values, x.scales[::128], (128, 128))


ERRORS = {
    # BlockScaled
    "values_not_array": (lambda: block_scaled(values=[[1.0]]), TypeError, "values"),
    "values_masked": (lambda: block_scaled(np.ma.array(VALUES)), TypeError, "values.*mask"),
    "scales_masked": (
        lambda: block_scaled(scales=np.ma.array(SCALES)),
        TypeError,
        r"scales must be an array without a mask.*filled",
    ),
    "x_masked": (lambda: quantize(np.ma.array(X)), TypeError, "quantize: x.*mask"),
    "sizes_masked": (
        lambda: fp8.quantize_k_grouped(X, np.ma.array([128])),
        TypeError,
        "group_sizes.*mask",
    ),
    "key": (lambda: quantize(jax.random.key(0)), TypeError, "quantize: x must have dtype.*key"),
    "values_not_float8": (lambda: block_scaled(values=X), TypeError, "values.*float32"),
    "values_1d": (lambda: block_scaled(values=VALUES[0]), ValueError, r"values.*\(256,\)"),
    "scales_not_array": (lambda: block_scaled(scales=1.0), TypeError, "scales"),
    "scales_not_float32": (
        lambda: block_scaled(scales=SCALES.astype(np.float16)),
        TypeError,
        "scales.*float16",
    ),
    "scales_shape": (
        lambda: block_scaled(scales=SCALES[:2]),
        ValueError,
        r"scales.*\(4, 2\).*\(2, 2\)",
    ),
    "block_unknown": (lambda: block_scaled(block=(1, 64)), ValueError, r"block.*\(1, 64\)"),
    "block_not_tuple": (lambda: block_scaled(block=128), TypeError, "block.*128"),
    "block_not_ints": (lambda: block_scaled(block=(1.0, 128)), TypeError, "block"),
    "dequantize_dtype": (lambda: LHS.dequantize(jnp.int32), TypeError, "dtype"),
    # quantize
    "x_not_array": (lambda: quantize([1.0]), TypeError, "x.*list"),
    "x_dtype": (lambda: quantize(X.astype(np.int32)), TypeError, "x.*int32"),
    "x_float8": (lambda: quantize(VALUES), TypeError, "x.*float8"),
    "x_1d": (lambda: quantize(X[0]), ValueError, r"x.*\(256,\)"),
    "x_block": (lambda: quantize(X, (128, 1)), ValueError, r"block.*\(128, 1\)"),
    "x_block_type": (lambda: quantize(X, 128), TypeError, "block.*128"),
    "fp8_dtype": (lambda: quantize(dtype=jnp.bfloat16), TypeError, "dtype.*bfloat16"),
    "fp8_dtype_nonsense": (lambda: quantize(dtype="fp8"), TypeError, "dtype.*'fp8'"),
    "scale_format": (lambda: quantize(scale_format="e8m0"), ValueError, "scale_format.*'e8m0'"),
    "x_implementation": (lambda: quantize(implementation="gpu"), ValueError, "implementation"),
    "x_implementation_type": (lambda: quantize(implementation=1), TypeError, "implementation"),
    # gemm
    "lhs_type": (lambda: gemm(lhs=X), TypeError, "lhs.*ndarray"),
    "lhs_triple": (lambda: gemm(lhs=(VALUES, SCALES, SCALES)), TypeError, "lhs"),
    "lhs_values_type": (lambda: gemm(lhs=([1.0], SCALES)), TypeError, "lhs values"),
    "lhs_values_dtype": (lambda: gemm(lhs=(X, SCALES)), TypeError, "lhs values.*float32"),
    "lhs_scales_dtype": (
        lambda: gemm(lhs=(VALUES, SCALES.astype(E4M3))),
        TypeError,
        "lhs scales.*float8_e4m3fn",
    ),
    "lhs_scales_shape": (
        lambda: gemm(lhs=(VALUES, SCALES[:1])),
        ValueError,
        r"lhs scales.*\(4, 2\).*\(1, 2\)",
    ),
    "lhs_block": (lambda: gemm(lhs=wide(LHS)), ValueError, r"lhs.*\(1, 128\).*\(128, 128\)"),
    "lhs_1d": (lambda: gemm(lhs=(VALUES[0], SCALES[0])), ValueError, "lhs values"),
    "lhs_3d": (
        lambda: gemm(lhs=(VALUES[None], SCALES[None])),
        ValueError,
        r"lhs.*\(1, 4, 256\).*vmap",
    ),
    "rhs_type": (lambda: gemm(rhs=None), TypeError, "rhs.*NoneType"),
    "rhs_values_dtype": (lambda: gemm(rhs=(X, SCALES)), TypeError, "rhs values.*float32"),
    "rhs_scales_shape": (
        lambda: gemm(rhs=(RHS.values, RHS.scales[:, :1])),
        ValueError,
        r"rhs scales.*\(2, 2\).*\(2, 1\)",
    ),
    "rhs_3d": (
        lambda: gemm(rhs=(RHS.values[None], RHS.scales[None])),
        ValueError,
        r"rhs.*\(1, 200, 256\)",
    ),
    "k_differs": (
        lambda: gemm(rhs=(RHS.values[:, :128], RHS.scales[:, :1])),
        ValueError,
        r"rhs.*256.*\(200, 128\)",
    ),
    "result_dtype": (
        lambda: gemm(preferred_element_type=jnp.int32),
        TypeError,
        "preferred_element_type.*int32",
    ),
    "result_dtype_nonsense": (
        lambda: gemm(preferred_element_type="half-ish"),
        TypeError,
        "preferred_element_type",
    ),
    "accumulator_type": (lambda: gemm(accumulator=1.0), TypeError, "accumulator.*float"),
    "accumulator_dtype": (
        lambda: gemm(accumulator=ACCUMULATOR, preferred_element_type=jnp.float32),
        TypeError,
        "accumulator.*float32.*bfloat16",
    ),
    "accumulator_shape": (
        lambda: gemm(accumulator=ACCUMULATOR[:, :1]),
        ValueError,
        r"accumulator.*\(4, 200\).*\(4, 1\)",
    ),
    "implementation": (lambda: gemm(implementation="triton"), ValueError, "implementation.*triton"),
    "implementation_type": (lambda: gemm(implementation=0), TypeError, "implementation.*int"),
    "num_sms_zero": (lambda: gemm(num_sms=0), ValueError, "num_sms.*1024.*0"),
    "num_sms_large": (lambda: gemm(num_sms=1025), ValueError, "num_sms.*1024.*1025"),
    "num_sms_type": (lambda: gemm(num_sms=1.0), TypeError, "num_sms.*1.0"),
    "num_sms_bool": (lambda: gemm(num_sms=True), TypeError, "num_sms.*True"),
    # plan
    "plan_m": (lambda: plan(m=0), ValueError, "m.*0"),
    "plan_n": (lambda: plan(n=-1), ValueError, "n.*-1"),
    "plan_k": (lambda: plan(k=1.5), TypeError, "k.*1.5"),
    "plan_lhs_dtype": (lambda: plan(lhs_dtype=jnp.float32), TypeError, "lhs_dtype"),
    "plan_rhs_dtype": (lambda: plan(rhs_dtype=jnp.int8), TypeError, "rhs_dtype"),
    "plan_result": (lambda: plan(preferred_element_type=E4M3), TypeError, "preferred_element_type"),
    "plan_num_sms": (lambda: plan(num_sms=2000), ValueError, "num_sms"),
    "plan_implementation": (lambda: plan(implementation="xla"), ValueError, "implementation"),
    # deep_gemm
    "set_num_sms": (lambda: deep_gemm.set_num_sms(-1), ValueError, "num_sms"),
    "set_num_sms_type": (lambda: deep_gemm.set_num_sms("all"), TypeError, "num_sms"),
    "element_size": (lambda: deep_gemm.get_tma_aligned_size(3, 5), ValueError, "element_size"),
    "tensor_dtype": (
        lambda: deep_gemm.get_col_major_tma_aligned_tensor(VALUES),
        TypeError,
        "x.*float8",
    ),
    "tensor_rank": (
        lambda: deep_gemm.get_col_major_tma_aligned_tensor(X[0]),
        ValueError,
        r"x.*\(256,\)",
    ),
    # testing
    "relative_error_shape": (lambda: testing.relative_error(X, X[0]), ValueError, "out"),
    "close_dtype": (lambda: close(VALUES), TypeError, "out.*float8"),
    "close_shape": (lambda: close(ACCUMULATOR[:2]), ValueError, r"out.*\(4, 200\).*\(2, 200\)"),
    "close_implementation": (lambda: close(implementation="gpu"), ValueError, "implementation"),
    "simulator_timing": (lambda: simulator(timing="never"), ValueError, "timing.*'never'"),
    "simulator_scheduler": (lambda: simulator(scheduler="fair"), ValueError, "scheduler"),
    "simulator_numerics": (lambda: simulator(numerics="fp64"), ValueError, "numerics"),
    "simulator_shadow": (lambda: simulator(shadow="on"), ValueError, "shadow"),
    "simulator_seed": (lambda: simulator(seed=-1), ValueError, "seed"),
    "simulator_seed_type": (lambda: simulator(seed="1"), TypeError, "seed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_argument_and_what_it_got(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_errors_come_while_tracing():
    def f(values, scales):
        return fp8.gemm((values, scales), RHS)

    shapes = (jax.ShapeDtypeStruct((4, 128), E4M3), jax.ShapeDtypeStruct((4, 1), jnp.float32))
    with pytest.raises(ValueError, match="rhs"):
        jax.eval_shape(f, *shapes)
