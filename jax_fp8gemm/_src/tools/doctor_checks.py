# SPDX-License-Identifier: Apache-2.0
"""What `doctor --check` computes: a tiny product of every kind, against float64."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_fp8gemm import testing
from jax_fp8gemm._src.native import sim_library
from jax_fp8gemm._src.ops.gemm import gemm
from jax_fp8gemm._src.ops.grouped_gemm import (
    contiguous_alignment,
    grouped_gemm,
    grouped_gemm_contiguous,
)
from jax_fp8gemm._src.ops.grouped_gemm_masked import grouped_gemm_masked
from jax_fp8gemm._src.ops.k_grouped_gemm import k_grouped_gemm
from jax_fp8gemm._src.ops.quantize import quantize
from jax_fp8gemm._src.training.dot import dot

HOPPER = "9.0"  # the compute capability that the kernels are for
M, N, K, G = 70, 136, 160, 2  # no multiple of a tile
_SIZES = (3, 40)  # rows of each group
# Squared relative distances from products that were not rounded to float8: 2.65 % each, squared, of
# each of two operands, and room.
_MAX_QUANTIZATION_ERROR = 4e-3


def _normal(*shape: int) -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def _operands(implementation: str, *lhs_shape: int, rhs_shape: tuple, block: tuple = (128, 128)):
    lhs = quantize(_normal(*lhs_shape), implementation=implementation)
    return lhs, quantize(_normal(*rhs_shape), block, implementation=implementation)


def _quantize(implementation: str) -> None:
    x = _normal(M, K)
    back = quantize(x, implementation=implementation).dequantize()
    np.testing.assert_allclose(np.asarray(back), np.asarray(x), rtol=2.0**-4, atol=2.0**-9)


def _gemm(block: tuple[int, int]) -> Callable[[str], None]:
    def check(implementation: str) -> None:
        lhs, rhs = _operands(implementation, M, K, rhs_shape=(N, K), block=block)
        out = gemm(lhs, rhs, implementation=implementation)
        testing.assert_gemm_close(out, lhs, rhs, implementation=implementation)

    return check


def _grouped(kind: str) -> Callable[[str], None]:
    """Returns the check of groups of rows; each has its own place in `lhs`."""
    rows = contiguous_alignment()
    ids = np.repeat([0, -1, 1, -1], [_SIZES[0], rows - _SIZES[0], _SIZES[1], rows - _SIZES[1]])
    function, lhs_shape, groups = {
        "ragged": (grouped_gemm, (M, K), _SIZES),
        "contiguous": (grouped_gemm_contiguous, (2 * rows, K), ids),
        "masked": (grouped_gemm_masked, (G, M, K), _SIZES),
    }[kind]

    def check(implementation: str) -> None:
        lhs, rhs = _operands(implementation, *lhs_shape, rhs_shape=(G, N, K))
        given = jnp.asarray(groups, jnp.int32)
        out = function(lhs, rhs, given, implementation=implementation)
        testing.assert_grouped_gemm_close(
            out, lhs, rhs, given, kind=kind, implementation=implementation
        )

    return check


def _k_grouped(implementation: str) -> None:
    shapes = {"rhs_shape": (N, 2 * 128), "block": (1, 128)}
    lhs, rhs = _operands(implementation, M, 2 * 128, **shapes)
    sizes = jnp.asarray([128, 128], jnp.int32)
    out = k_grouped_gemm(lhs, rhs, sizes, implementation=implementation)
    testing.assert_grouped_gemm_close(
        out, lhs, rhs, sizes, kind="k_grouped", implementation=implementation
    )


def _dot(implementation: str) -> None:
    x, w = _normal(M, K), _normal(K, N)

    def total(x: jax.Array, w: jax.Array, product: Callable) -> jax.Array:
        return (product(x, w) ** 2).sum() / 2

    gradients = jax.grad(total, argnums=(0, 1))
    ours = gradients(x, w, lambda x, w: dot(x, w, implementation=implementation))
    exact = gradients(x, w, lambda x, w: jnp.matmul(x, w, precision="highest"))
    for ours_of_one, exact_of_one in zip(ours, exact, strict=True):
        error = testing.relative_error(ours_of_one, exact_of_one)
        if error > _MAX_QUANTIZATION_ERROR:
            raise AssertionError(f"a gradient is {error:.1e} away from float32's")


KINDS: dict[str, Callable[[str], None]] = {
    "quantize": _quantize,
    "gemm": _gemm((128, 128)),
    "gemm, scales per row": _gemm((1, 128)),
    "grouped_gemm": _grouped("ragged"),
    "grouped_gemm_contiguous": _grouped("contiguous"),
    "grouped_gemm_masked": _grouped("masked"),
    "k_grouped_gemm": _k_grouped,
    "dot, its gradients": _dot,
}


def _implementations(device: Any) -> list[str]:
    """Returns what a device must be able to run."""
    if device.platform == "cpu":
        return ["xla", *(["sim"] if sim_library.available() else [])]
    is_hopper = getattr(device, "compute_capability", "") == HOPPER
    return ["xla", *(["cuda"] if is_hopper else [])]


def _problem(kind: str, implementation: str, device: Any) -> str:
    """Returns what is wrong with a kind on a device, empty if nothing."""
    try:
        with jax.default_device(device):
            KINDS[kind](implementation)
    except Exception as error:  # whatever it is, it is what the report is for
        return (str(error) or type(error).__name__).strip().splitlines()[0]
    return ""


def run() -> Iterator[dict[str, Any]]:
    """Computes every kind on every device of this process and on a CPU; yields what came out."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        devices += jax.local_devices(backend="cpu")[:1]
    runs = [(device, name) for device in devices for name in _implementations(device)]
    for device, implementation in runs:
        for kind in KINDS:
            start = time.monotonic()
            problem = _problem(kind, implementation, device)
            yield {
                "device": f"{device.platform}:{device.id}",
                "implementation": implementation,
                "kind": kind,
                "ok": not problem,
                "problem": problem,
                "seconds": round(time.monotonic() - start, 3),
            }
