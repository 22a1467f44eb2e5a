# SPDX-License-Identifier: Apache-2.0
"""A block-scaled product as one would write it in Triton: tiles, a loop over K, autotuned."""

import torch
import triton
import triton.language as tl

_BLOCK = 128
_GROUP_M = 8
_TILES = (
    (16, 64, 4, 4),
    (16, 128, 4, 4),
    (64, 64, 4, 4),
    (64, 128, 4, 4),
    (128, 64, 4, 4),
    (128, 128, 4, 3),
    (128, 128, 8, 4),
)


@triton.autotune(
    configs=[
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in _TILES
    ],
    key=["m", "n", "k"],
)
@triton.jit
def _kernel(
    a,
    a_scales,
    b,
    b_scales,
    out,
    m,
    n,
    k,
    k_blocks,
    a_scale_pitch,
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
    GROUP_M: tl.constexpr,  # noqa: N803
):
    tile = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + tile % (GROUP_M * tiles_n) % group_rows
    tile_n = tile % (GROUP_M * tiles_n) // group_rows
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    row_ok, column_ok = rows < m, columns < n
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(k_blocks):
        at_k = block * BLOCK_K + steps
        k_ok = at_k < k
        x = tl.load(
            a + rows[:, None].to(tl.int64) * k + at_k[None, :],
            mask=row_ok[:, None] & k_ok[None, :],
            other=0.0,
        )
        y = tl.load(
            b + columns[None, :].to(tl.int64) * k + at_k[:, None],
            mask=column_ok[None, :] & k_ok[:, None],
            other=0.0,
        )
        x_scale = tl.load(a_scales + block * a_scale_pitch + rows, mask=row_ok, other=0.0)
        # BLOCK_N divides 128: one scale for all columns of the tile.
        y_scale = tl.load(b_scales + tile_n * BLOCK_N // 128 * k_blocks + block)
        total += tl.dot(x, y) * (x_scale * y_scale)[:, None]
    place = out + rows[:, None].to(tl.int64) * n + columns[None, :]
    tl.store(place, total.to(tl.bfloat16), mask=row_ok[:, None] & column_ok[None, :])


def block_scaled_matmul(
    a: torch.Tensor, a_scales: torch.Tensor, b: torch.Tensor, b_scales: torch.Tensor
) -> torch.Tensor:
    """Returns `a @ b.T` of what block-scaled operands stand for, as bfloat16.

    Args:
        a: (m, k) e4m3.
        a_scales: (m, ceil(k / 128)) float32 with m contiguous.
        b: (n, k) e4m3.
        b_scales: (ceil(n / 128), ceil(k / 128)) float32.
    """
    (m, k), n = a.shape, b.shape[0]
    out = torch.empty((m, n), dtype=torch.bfloat16, device=a.device)

    def grid(chosen):
        return (triton.cdiv(m, chosen["BLOCK_M"]) * triton.cdiv(n, chosen["BLOCK_N"]),)

    _kernel[grid](
        a,
        a_scales,
        b,
        b_scales,
        out,
        m,
        n,
        k,
        b_scales.shape[1],
        a_scales.stride(1),
        BLOCK_K=_BLOCK,
        GROUP_M=_GROUP_M,
    )
    return out
