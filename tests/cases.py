# SPDX-License-Identifier: Apache-2.0
"""Named problems and their operands, shared by the tests and the benchmarks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2


@dataclasses.dataclass(frozen=True)
class GemmCase:
    """One dense problem: `(m, k) @ (n, k).T`."""

    name: str
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        """Names the case in test ids."""
        return f"{self.name}-{self.m}x{self.n}x{self.k}"


# Small, for tests: every edge that a tile, a scale block or a 16-byte row can have.
EDGE_CASES = (
    GemmCase("one_element", 1, 1, 1),
    GemmCase("one_block", 128, 128, 128),
    GemmCase("one_row", 1, 256, 384),
    GemmCase("one_column", 200, 1, 256),
    GemmCase("row_past_tile", 65, 136, 256),
    GemmCase("column_past_block", 64, 129, 256),
    GemmCase("columns_of_8", 96, 264, 256),
    GemmCase("odd_columns", 33, 77, 256),
    GemmCase("k_of_16", 64, 128, 144),
    GemmCase("odd_k", 64, 128, 131),
    GemmCase("less_than_one_k_block", 64, 128, 37),
    GemmCase("odd_everything", 71, 203, 301),
    GemmCase("several_tiles", 300, 520, 640),
)
EMPTY_CASES = (
    GemmCase("no_rows", 0, 128, 128),
    GemmCase("no_columns", 128, 0, 128),
    GemmCase("no_k", 24, 40, 0),
    GemmCase("nothing", 0, 0, 0),
)

# (N, K) of the projections of DeepSeek-V3, per GPU of its tensor-parallel layout.
DEEPSEEK_V3_WEIGHTS = (
    (2112, 7168),
    (24576, 1536),
    (32768, 512),
    (7168, 16384),
    (4096, 7168),
    (7168, 2048),
)
DECODE_CASES = tuple(
    GemmCase("decode", m, n, k) for m in (1, 16, 64, 128) for n, k in DEEPSEEK_V3_WEIGHTS
)
PREFILL_CASES = tuple(GemmCase("prefill", 4096, n, k) for n, k in DEEPSEEK_V3_WEIGHTS)
SQUARE_CASES = tuple(GemmCase("square", size, size, size) for size in (1024, 2048, 4096, 8192))


def normal(shape: tuple[int, ...], seed: int, dtype=np.float32):
    """Returns normally distributed numbers, the same in every process."""
    numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return jnp.asarray(numbers, dtype)


def gemm_operands(
    case: GemmCase,
    *,
    seed: int = 0,
    lhs_dtype=E4M3,
    rhs_dtype=E4M3,
    rhs_block: tuple[int, int] = (128, 128),
    positive: bool = False,
) -> tuple[fp8.BlockScaled, fp8.BlockScaled]:
    """Returns quantised operands of a case; `positive` ones show an accumulation's bias."""
    lhs, rhs = normal((case.m, case.k), seed), normal((case.n, case.k), seed + 1)
    if positive:
        lhs, rhs = jnp.abs(lhs), jnp.abs(rhs)
    return fp8.quantize(lhs, dtype=lhs_dtype), fp8.quantize(rhs, rhs_block, dtype=rhs_dtype)
