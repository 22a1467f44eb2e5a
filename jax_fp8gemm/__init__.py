# SPDX-License-Identifier: Apache-2.0
"""Block-scaled FP8 matrix multiplication for NVIDIA Hopper GPUs, inside `jax.jit`."""

import contextlib

from jax_fp8gemm import checkpoint as checkpoint
from jax_fp8gemm import deep_gemm as deep_gemm
from jax_fp8gemm import frameworks as frameworks
from jax_fp8gemm import testing as testing
from jax_fp8gemm._src.native.export import export_checks as export_checks
from jax_fp8gemm._src.native.export import register_targets as register_targets
from jax_fp8gemm._src.native.plan import plan as plan
from jax_fp8gemm._src.native.precompile import precompile as precompile
from jax_fp8gemm._src.native.version import __version__ as __version__
from jax_fp8gemm._src.operands.block_arrays import concatenate as concatenate
from jax_fp8gemm._src.operands.block_arrays import stack as stack
from jax_fp8gemm._src.operands.block_scaled import BlockScaled as BlockScaled
from jax_fp8gemm._src.ops.activation import geglu as geglu
from jax_fp8gemm._src.ops.activation import gelu as gelu
from jax_fp8gemm._src.ops.activation import rms_norm as rms_norm
from jax_fp8gemm._src.ops.activation import swiglu as swiglu
from jax_fp8gemm._src.ops.gemm import gemm as gemm
from jax_fp8gemm._src.ops.grouped_gemm import contiguous_alignment as contiguous_alignment
from jax_fp8gemm._src.ops.grouped_gemm import grouped_gemm as grouped_gemm
from jax_fp8gemm._src.ops.grouped_gemm import grouped_gemm_contiguous as grouped_gemm_contiguous
from jax_fp8gemm._src.ops.grouped_gemm_masked import grouped_gemm_masked as grouped_gemm_masked
from jax_fp8gemm._src.ops.k_grouped_gemm import k_grouped_gemm as k_grouped_gemm
from jax_fp8gemm._src.ops.quantize import quantize as quantize
from jax_fp8gemm._src.ops.quantize_transposed import quantize_k_grouped as quantize_k_grouped
from jax_fp8gemm._src.ops.quantize_transposed import quantize_transposed as quantize_transposed
from jax_fp8gemm._src.training.collectives import psum_scatter as psum_scatter
from jax_fp8gemm._src.training.dot import dot as dot
from jax_fp8gemm._src.training.dot_general import dot_general as dot_general
from jax_fp8gemm._src.training.master_weight import MasterWeight as MasterWeight
from jax_fp8gemm._src.training.quantized_activation import (
    QuantizedActivation as QuantizedActivation,
)
from jax_fp8gemm._src.training.ragged_dot import ragged_dot as ragged_dot
from jax_fp8gemm._src.training.recipe import Recipe as Recipe
from jax_fp8gemm._src.training.recipe import use_recipe as use_recipe

# Pickles, tracebacks and generated documentation name the public place of a public object.
for _public in [each for each in vars().values() if callable(each)]:
    _public.__module__ = __name__

# For programs that another process exported or compiled. Plain JAX works without the extension, so
# what keeps it from loading is for `register_targets`, the kernels and `doctor` to say.
with contextlib.suppress(ImportError, OSError, RuntimeError):
    register_targets()
