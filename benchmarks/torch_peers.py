# SPDX-License-Identifier: Apache-2.0
"""Peers that are reached through PyTorch: cuBLASLt, a plain Triton kernel, DeepGEMM.

Operands are those of JAX, handed over by DLPack.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.operands import Operands
from benchmarks.peer import (
    BLOCK_SCALED,
    TENSOR_WISE,
    WIDE,
    NotApplicableError,
    Peer,
    PeerMissingError,
    Prepared,
)


def require(*modules: str) -> Callable[[], None]:
    """Returns a probe that asks for modules, and for a GPU that torch sees."""

    def probe() -> None:
        for name in modules:
            if importlib.util.find_spec(name) is None:
                raise PeerMissingError(f"{name} is not installed")
            try:
                importlib.import_module(name)
            except Exception as error:  # installed and broken is missing, with its reason
                reason = f"{type(error).__name__}: {error}"
                raise PeerMissingError(f"{name} cannot be imported: {reason}") from error
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise PeerMissingError("this torch sees no GPU")

    return probe


def import_torch() -> Any:
    return importlib.import_module("torch")


def import_deep_gemm() -> Any:
    return importlib.import_module("deep_gemm")


def deep_gemm_scales(scales: Any) -> Any:
    """Returns scales per row in the layout that DeepGEMM's kernels load."""
    deep_gemm = import_deep_gemm()
    names = ("get_mn_major_tma_aligned_tensor", "get_col_major_tma_aligned_tensor")
    return next(getattr(deep_gemm, name) for name in names if hasattr(deep_gemm, name))(scales)


def to_torch(x: jax.Array) -> Any:
    """Returns the same memory as a torch tensor; of float8, which travels as bytes, a copy."""
    torch = import_torch()
    if x.dtype == jnp.float8_e4m3fn:
        data = jax.lax.bitcast_convert_type(x, jnp.uint8).block_until_ready()
        return torch.from_dlpack(data).view(torch.float8_e4m3fn)
    return torch.from_dlpack(x.block_until_ready())


def prepared_torch(function: Callable[[], Any], **notes: Any) -> Prepared:
    """Returns a function of nothing, ready to be timed. It has not run yet."""
    torch = import_torch()

    def rows(result: Any, indices: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(indices).to(result.device)
        return result[chosen].float().cpu().numpy()

    return Prepared(function, lambda _: torch.cuda.synchronize(), rows, notes)


def _column_major(x: Any) -> Any:
    """Returns a matrix with the same elements whose first dimension is contiguous."""
    return x.t().contiguous().t()


def _pitched(x: Any, pitch: int) -> Any:
    """Returns a matrix with the same elements whose rows begin every `pitch` elements."""
    torch = import_torch()
    return torch.empty_strided(x.shape, (pitch, 1), dtype=x.dtype, device=x.device).copy_(x)


def _cublaslt_block_scaled(operands: Operands) -> Prepared:
    """1x128 and 128x128 float32 scales: torch 2.8 and CUDA 12.9 on."""
    torch, case = import_torch(), operands.case
    if case.k % 128 or case.n % 16:
        raise NotApplicableError("K must be a multiple of 128 and N of 16")
    lhs, rhs = to_torch(operands.lhs.values), to_torch(operands.rhs.values)
    lhs_scales = _column_major(to_torch(operands.lhs.scales))
    given = to_torch(operands.rhs.scales)

    def product(rhs_scales: Any) -> Any:
        return torch._scaled_mm(
            lhs,
            rhs.t(),
            scale_a=lhs_scales,
            scale_b=rhs_scales.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=False,
        )

    # cuBLASLt has rows of these scales begin at multiples of four floats, which some versions of
    # torch ask for; others only know dense rows.
    columns = given.shape[1]
    rhs_scales = _pitched(given, -(-columns // 4) * 4)
    try:
        product(rhs_scales)
    except (RuntimeError, ValueError):
        rhs_scales = _pitched(given, columns)
    return prepared_torch(functools.partial(product, rhs_scales))


def _cublaslt_tensor_wise(operands: Operands) -> Prepared:
    torch = import_torch()
    if operands.case.k % 16 or operands.case.n % 16:
        raise NotApplicableError("K and N must be multiples of 16")
    wide = [to_torch(x) for x in operands.dequantized(jnp.float32)]
    scales = [x.abs().max() / 448 for x in wide]
    lhs, rhs = ((x / scale).to(torch.float8_e4m3fn) for x, scale in zip(wide, scales, strict=True))

    def product():
        return torch._scaled_mm(
            lhs,
            rhs.t(),
            scale_a=scales[0],
            scale_b=scales[1],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    return prepared_torch(product, fast_accumulation=True)


def _torch_bf16(operands: Operands) -> Prepared:
    torch = import_torch()
    lhs, rhs = (to_torch(x) for x in operands.dequantized(jnp.bfloat16))
    return prepared_torch(lambda: torch.nn.functional.linear(lhs, rhs))


def _triton_block_scaled(operands: Operands) -> Prepared:
    from benchmarks.triton_kernel import block_scaled_matmul

    lhs, rhs = to_torch(operands.lhs.values), to_torch(operands.rhs.values)
    lhs_scales = _column_major(to_torch(operands.lhs.scales))
    rhs_scales = to_torch(operands.rhs.scales)
    return prepared_torch(lambda: block_scaled_matmul(lhs, lhs_scales, rhs, rhs_scales))


def deep_gemm_function(*names: str) -> Callable:
    """Returns the first of its functions that this version has.

    Raises:
        NotApplicableError: It has none of them.
    """
    deep_gemm = import_deep_gemm()
    for name in names:
        if hasattr(deep_gemm, name):
            return getattr(deep_gemm, name)
    raise NotApplicableError(f"this version has no {names[0]}")


def prepared_deep_gemm(function: Callable[[], Any]) -> Prepared:
    """Returns one of its functions, ready to be timed."""
    version = getattr(import_deep_gemm(), "__version__", "unknown")
    # SGLang's wheel has the same module, built beforehand.
    distributions = importlib.metadata.packages_distributions().get("deep_gemm", ["unknown"])
    return prepared_torch(function, version=version, distribution=distributions[0])


def _deep_gemm(operands: Operands) -> Prepared:
    """The scales are brought into its layout before: its time is the product's alone."""
    torch, case = import_torch(), operands.case
    if case.n % 8:
        raise NotApplicableError("N must be a multiple of 8")
    lhs, rhs = (
        (to_torch(x.values), to_torch(x.scales).contiguous()) for x in (operands.lhs, operands.rhs)
    )
    lhs = (lhs[0], deep_gemm_scales(lhs[1]))
    if case.kind == "wgrad":
        rhs = (rhs[0], deep_gemm_scales(rhs[1]))
        return _deep_gemm_weight_gradient(lhs, rhs, to_torch(operands.accumulators[0]).clone())
    out = torch.empty((case.m, case.n), dtype=torch.bfloat16, device=lhs[0].device)
    function = deep_gemm_function("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt")

    def product() -> Any:
        function(lhs, rhs, out)
        return out

    return prepared_deep_gemm(product)


def _deep_gemm_weight_gradient(lhs: tuple, rhs: tuple, out: Any) -> Prepared:
    """Scales per row of both; adds to `out`, a float32 matrix, in place."""
    function = deep_gemm_function("fp8_gemm_nt", "wgrad_gemm_fp8_fp8_fp32_nt")
    # The older one is for nothing else.
    is_new = hasattr(import_deep_gemm(), "fp8_gemm_nt")
    options = {"c": out, "recipe": (1, 1, 128)} if is_new else {}

    def product() -> Any:
        function(lhs, rhs, out, **options)
        return out

    return prepared_deep_gemm(product)


_GPU = ("gpu",)
TORCH_PEERS = (
    Peer(
        "cublaslt_block",
        "cuBLASLt block-scaled (torch)",
        BLOCK_SCALED,
        _GPU,
        _cublaslt_block_scaled,
        require("torch"),
    ),
    Peer(
        "cublaslt_tensor",
        "cuBLASLt tensor-wise (torch)",
        TENSOR_WISE,
        _GPU,
        _cublaslt_tensor_wise,
        require("torch"),
        same_product=False,
    ),
    Peer("torch_bf16", "cuBLAS bfloat16 (torch)", WIDE, _GPU, _torch_bf16, require("torch")),
    Peer(
        "triton_block",
        "Triton block-scaled",
        BLOCK_SCALED,
        _GPU,
        _triton_block_scaled,
        require("torch", "triton"),
    ),
    Peer(
        "deep_gemm",
        "DeepGEMM",
        BLOCK_SCALED,
        _GPU,
        _deep_gemm,
        require("torch", "deep_gemm"),
        kinds=("forward", "wgrad"),
    ),
)
