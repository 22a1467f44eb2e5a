# SPDX-License-Identifier: Apache-2.0
"""Named problems and their operands, shared by the tests and the benchmarks."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
# Compiles as for users, where a test is about the very bits of XLA: both tiers have another emitter
# of loops, which contracts x + x * y and turns every NaN into one.
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True}


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


# Operands do not depend on the kernels under test.
def quantize(x, block: tuple[int, int] = (1, 128), *, dtype=E4M3) -> fp8.BlockScaled:
    """Returns the bits of `fp8.quantize`; by NumPy where a compilation would take longer."""
    if x.size > 1 << 20:
        return fp8.quantize(x, block, dtype=dtype, implementation="xla")
    x = np.asarray(x, np.float32)
    padding = [(0, -size % step) for size, step in zip(x.shape[-2:], block, strict=True)]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + padding)
    *batch, rows, columns = padded.shape
    blocks = padded.reshape(*batch, rows // block[0], block[0], columns // block[1], block[1])
    amax = np.abs(blocks).max(axis=(-3, -1), initial=0)
    scales = np.maximum(amax / np.float32(jnp.finfo(dtype).max), np.finfo(np.float32).tiny)
    scales = np.where(amax == 0, np.float32(1), scales)
    values = (blocks * (np.float32(1) / scales)[..., None, :, None]).reshape(padded.shape)
    values = values[..., : x.shape[-2], : x.shape[-1]].astype(dtype)
    return fp8.BlockScaled(jnp.asarray(values), jnp.asarray(scales), block)


quantize_k_grouped = functools.partial(fp8.quantize_k_grouped, implementation="xla")


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
    """Returns quantized operands of a case; `positive` ones show an accumulation's bias."""
    lhs, rhs = normal((case.m, case.k), seed), normal((case.n, case.k), seed + 1)
    if positive:
        lhs, rhs = jnp.abs(lhs), jnp.abs(rhs)
    return quantize(lhs, dtype=lhs_dtype), quantize(rhs, rhs_block, dtype=rhs_dtype)


@dataclasses.dataclass(frozen=True)
class GroupedCase:
    """One grouped problem: sizes of the groups, and extents beside them."""

    name: str
    sizes: tuple[int, ...]
    n: int
    k: int
    spare_rows: int = 0  # rows past the last group

    def __str__(self) -> str:
        """Names the case in test ids."""
        return f"{self.name}-{len(self.sizes)}x{self.n}x{self.k}"

    @property
    def num_rows(self) -> int:
        """Rows of all groups, and the spare ones."""
        return sum(self.sizes) + self.spare_rows

    @property
    def group_sizes(self):
        """The sizes on the device."""
        return jnp.asarray(self.sizes, jnp.int32)


# Every edge that a group can have; n and k with tails.
GROUPED_CASES = (
    GroupedCase("one_group", (70,), 136, 200),
    GroupedCase("around_a_tile", (127, 0, 128, 129, 1), 136, 200),
    GroupedCase("first_takes_all", (300, 0, 0), 72, 131, spare_rows=5),
    GroupedCase("last_takes_all", (0, 0, 300), 77, 128),
    GroupedCase("all_empty", (0, 0, 0), 64, 128, spare_rows=40),
    GroupedCase("spare_rows", (3, 64, 20), 129, 384, spare_rows=150),
    GroupedCase("one_row_each", (1,) * 40, 40, 256),
)
# Too much for a simulator.
MANY_GROUPS_CASES = (
    GroupedCase("256_groups", tuple(i % 5 for i in range(256)), 136, 128, spare_rows=3),
    GroupedCase("512_groups", (1, 2) * 256, 24, 130),
    GroupedCase("one_of_256", (0,) * 200 + (400,) + (0,) * 55, 64, 200),
)


def poisoned(x: fp8.BlockScaled, keep) -> fp8.BlockScaled:
    """Returns `x` with NaN in the values and scales of rows for which `keep` is False."""
    keep = jnp.asarray(keep)[..., None]
    values = jnp.where(keep, x.values, jnp.asarray(jnp.nan, x.values.dtype))
    return fp8.BlockScaled(values, jnp.where(keep, x.scales, jnp.nan), x.block)


def expert_weights(case: GroupedCase, *, seed: int = 1, dtype=E4M3) -> fp8.BlockScaled:
    """Returns quantized weights of a case."""
    weights = normal((len(case.sizes), case.n, case.k), seed)
    return quantize(weights, (128, 128), dtype=dtype)


def ragged_operands(case: GroupedCase, *, seed: int = 0, lhs_dtype=E4M3, rhs_dtype=E4M3):
    """Returns operands and sizes for `grouped_gemm`, with NaN in the spare rows."""
    lhs = quantize(normal((case.num_rows, case.k), seed), dtype=lhs_dtype)
    lhs = poisoned(lhs, np.arange(case.num_rows) < sum(case.sizes))
    return lhs, expert_weights(case, seed=seed + 1, dtype=rhs_dtype), case.group_sizes


def contiguous_operands(case: GroupedCase, *, seed: int = 0):
    """Returns operands and ids for `grouped_gemm_contiguous`, last group first, NaN in padding."""
    ids = []
    for group in reversed(range(len(case.sizes))):
        ids += [group] * case.sizes[group]
        ids += [-1] * (-len(ids) % fp8.contiguous_alignment())
    ids = np.asarray(ids + [-1] * case.spare_rows, np.int32)
    lhs = poisoned(quantize(normal((len(ids), case.k), seed)), ids >= 0)
    return lhs, expert_weights(case, seed=seed + 1), jnp.asarray(ids)


def masked_operands(case: GroupedCase, *, seed: int = 0):
    """Returns operands and `masked_m` for `grouped_gemm_masked`, with NaN in padding."""
    room = max(case.sizes) + case.spare_rows
    lhs = quantize(normal((len(case.sizes), room, case.k), seed))
    keep = np.arange(room) < np.asarray(case.sizes)[:, None]
    return poisoned(lhs, keep), expert_weights(case, seed=seed + 1), case.group_sizes


def k_grouped_operands(case: GroupedCase, *, m: int = 72, seed: int = 0, dtypes=(E4M3, E4M3)):
    """Returns operands and sizes for `k_grouped_gemm`, with NaN in the columns past all groups."""
    sides = []
    for i, (rows, dtype) in enumerate(zip((m, case.n), dtypes, strict=True)):
        x = normal((case.num_rows, rows), seed + i)
        x = quantize_k_grouped(x, case.group_sizes, dtype=dtype)
        last = sum(-(-size // 128) for size in case.sizes)
        past_block = jnp.arange(x.scales.shape[1]) >= last
        past = jnp.repeat(past_block, 128)
        nan = jnp.asarray(jnp.nan, dtype)
        values = jnp.where(past[None], nan, x.values)
        sides.append(
            fp8.BlockScaled(values, jnp.where(past_block[None], jnp.nan, x.scales), x.block)
        )
    return (*sides, case.group_sizes)
