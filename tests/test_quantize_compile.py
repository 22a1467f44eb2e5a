# SPDX-License-Identifier: Apache-2.0
"""Every quantize kernel compiles, with each NVRTC, to code that keeps to registers and vectors."""

import importlib.util

import pytest
from _kernels import compile_kernel_with_code
from _nvrtc import find_all
from _sass import find_nvdisasm, log_failures

if importlib.util.find_spec("jax_fp8gemm._core") is None:
    pytest.skip("needs the compiled extension jax_fp8gemm._core", allow_module_level=True)

from jax_fp8gemm._src.native.extension import core  # noqa: E402

pytestmark = pytest.mark.skipif(
    not find_all() or find_nvdisasm() is None,
    reason="needs an NVRTC wheel and nvidia-cuda-nvdisasm",
)

KEYS = core().quantize_configs()
# Bytes that one lane loads at once: four elements of a row, two where x is transposed.
ELEMENT_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "e4m3": 1}
LOADS = {
    2: "LDG.E.U16.CONSTANT",
    4: "LDG.E.CONSTANT",
    8: "LDG.E.64.CONSTANT",
    16: "LDG.E.128.CONSTANT",
}
# Two CTAs of 256 threads must fit on an SM.
MAX_REGISTERS = 128


def test_keys_name_every_combination():
    # Rows, blocks, two transposed layouts without and with rows, three activations and a norm, of
    # three dtypes, two results and two kinds of scales; and float8 scaled anew.
    assert len(KEYS) == len(set(KEYS)) == 10 * 3 * 2 * 2 + 2
    assert core().quantize_key("k_grouped", "float8_e4m3fn", "float8_e4m3fn", "pow2") in KEYS
    with pytest.raises(RuntimeError, match="is not a quantize kernel"):
        core().kernel_source("quantize_rows.e4m3.e4m3.f32")


@pytest.mark.sampled(29)
@pytest.mark.parametrize("nvrtc", find_all(), ids=lambda n: n.name)
@pytest.mark.parametrize("key", KEYS)
def test_kernel(key, nvrtc):
    kernel, code = compile_kernel_with_code(
        nvrtc, core().kernel_source(key), core().nvrtc_options()
    )
    facts = kernel.facts
    family, x_type, dtype, _ = key.split(".")
    assert log_failures(kernel.log) == []
    assert facts.kernel == f"sm90_{family}"
    assert facts.local_memory == facts.frame_bytes == facts.stack_bytes == 0
    assert facts.registers <= MAX_REGISTERS

    opcodes = [instruction.opcode for instruction in code]
    is_transposed = family.endswith(("transposed", "kgrouped"))
    is_activation = family.endswith("lu")
    is_norm = family.endswith("norm")
    has_rows = family.startswith("quantize_rows") or is_activation or is_norm
    columns = 2 if is_transposed and not has_rows else 4
    rows = 8 if has_rows and not is_transposed else 16
    factors = 2 if family.endswith("glu") else 1
    assert opcodes.count(LOADS[ELEMENT_BYTES[x_type] * columns]) >= rows * factors
    if is_norm:
        # Factors of four columns once for all rows; two products and one with the scale.
        is_wide = LOADS[ELEMENT_BYTES[x_type] * columns] == LOADS[16]
        assert opcodes.count(LOADS[16]) == 1 + rows * is_wide
        assert opcodes.count("FMUL") == 3 * rows * columns
    if is_activation:
        assert opcodes.count("MUFU.EX2") == rows * columns <= opcodes.count("MUFU.RCP")
    # Every element once, two at a time; of two layouts twice.
    conversions = [o for o in opcodes if o.startswith(f"F2FP.SATFINITE.{dtype.upper()}.F32")]
    assert len(conversions) == rows * columns // 2 * (1 + (is_transposed and has_rows))
    maxima = rows if has_rows else 0 if is_transposed else 2
    assert sum(o.startswith("REDUX.MAX") for o in opcodes) == maxima
    if is_transposed:
        assert "STS.128" in opcodes and "LDS.128" in opcodes and "STG.E.128" in opcodes
