# SPDX-License-Identifier: Apache-2.0
"""Block-scaled FP8 matrix multiplication for NVIDIA Hopper GPUs, inside `jax.jit`."""

from jax_fp8gemm import deep_gemm as deep_gemm
from jax_fp8gemm import testing as testing
from jax_fp8gemm._block_scaled import BlockScaled as BlockScaled
from jax_fp8gemm._export import export_checks as export_checks
from jax_fp8gemm._gemm import gemm as gemm
from jax_fp8gemm._plan import plan as plan
from jax_fp8gemm._quantize import quantize as quantize
