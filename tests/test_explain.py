# SPDX-License-Identifier: Apache-2.0
"""explain: the numbers it derives, and what it says where something is missing."""

import re

import pytest

from jax_fp8gemm._src.native import gemm_problem, ranking
from jax_fp8gemm._src.tools.sass.disassembly import find_nvdisasm


@pytest.fixture
def explain(extension):
    """The module, which needs the extension."""
    from jax_fp8gemm._src.tools import explain as explain_lib

    return explain_lib


def _ranked(extension, word):
    problem = gemm_problem.parse(word)
    return problem, ranking.rank(problem, backend="cuda", gpu="")


def _by_config(ranked, part):
    return next(c for c in ranked if part in c["config"])


def test_bytes_and_stages_of_a_tile(explain, extension):
    problem, ranked = _ranked(extension, "4096x7168x2048")
    shared = _by_config(ranked, "m256n128.w2.s3.c1x2.")
    assert explain.l2_bytes_per_k_block(shared) == (256 // 2 + 128) * 128
    alone = _by_config(ranked, "m256n128.w2.s3.c1x1.")
    assert explain.l2_bytes_per_k_block(alone) == (256 + 128) * 128
    # 16 x 56 tiles of 16 K blocks, and each element of the result once.
    assert explain.l2_bytes(alone, problem) == 16 * 56 * 16 * 384 * 128 + 2 * 4096 * 7168
    assert explain.binding(alone) == "shared-memory port"
    assert explain.stages_needed(alone) == 1
    few_rows = _by_config(ranked, "m16n16.")
    assert explain.binding(few_rows) == "one warpgroup's chain"
    assert explain.stages_needed(few_rows) == 6


def test_split_k_moves_no_operand_twice(explain, extension):
    problem, ranked = _ranked(extension, "64x128x4096")
    split = _by_config(ranked, "m64n128.w1.s7.c1x1.e4m3.e4m3.bf16.split2")
    whole = _by_config(ranked, "m64n128.w1.s7.c1x1.e4m3.e4m3.bf16")
    assert explain.l2_bytes(split, problem) == explain.l2_bytes(whole, problem)


@pytest.mark.parametrize(
    "word",
    [
        "4096x7168x2048",
        "1x16x128",
        "64x128x4096:result=f32:rows:accumulate",
        "ragged:8192x4096x7168:groups=8",
        "contiguous:8192x4096x7168:groups=8",
        "masked:1024x4096x7168:groups=4:expected=192",
        "k_grouped:4096x7168x16384:groups=4",
    ],
)
def test_lines(explain, extension, word):
    problem, ranked = _ranked(extension, word)
    text = "\n".join(explain.lines(problem, ranked, 2))
    assert f"problem {problem} on 132 SMs" in text and f"chosen  {ranked[0]['config']}" in text
    assert "least modelled time" in text and f"{len(ranked)} candidates" in text
    for bound in explain.BOUNDS.values():
        cells = re.search(rf"^  {bound} +(\S+) +(\S+)$", text, re.M).groups()
        assert all(float(cell.lstrip("*")) > 0 for cell in cells)
    starred = re.findall(r"\*\d+", text)
    assert len(starred) == min(2, len(ranked))
    modelled = re.search(r"^modelled us +(\S+) +(\S+)$", text, re.M)
    assert float(modelled[1]) <= float(modelled[2])


def test_lines_of_a_tuned_problem(explain, extension):
    problem, ranked = _ranked(extension, "64x256x384")
    ranked[0]["measured_microseconds"] = 3.25
    text = "\n".join(explain.lines(problem, ranked, 2))
    assert "it measured fastest: 3.25 us" in text
    assert re.search(r"^measured us +3.25 +-$", text, re.M)


def test_code_of_the_choice(explain, extension):
    if find_nvdisasm() is None:
        pytest.skip("needs nvdisasm, of the wheel nvidia-cuda-nvdisasm")
    try:
        extension.core().nvrtc_version()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    text = "\n".join(explain.code_lines("1d2d.m128n128.w2.s5.c1x1.e4m3.e4m3.bf16"))
    assert re.search(r"0 spills\nmain loop \(1 K block\): \d+ instructions, of them 4 QGMMA", text)
    assert "64 FFMA" in text and "takes 256 a warpgroup, 512 in all" in text


def test_missing_disassembler_is_told(explain, monkeypatch):
    monkeypatch.setattr(explain, "find_nvdisasm", lambda: None)
    explain.code_facts.cache_clear()
    (line,) = explain.code_lines("1d2d.m64n64.w1.s13.c1x1.e4m3.e4m3.bf16")
    assert line.endswith("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")


# Clusters that an H100 or H200 of 132 SMs holds at once, by size: fewer than 132 / size, since each
# lies within a GPC (accel-sim/gpu-app-collection#87, NVIDIA/cutlass#1921).
RESIDENT = {2: 66, 4: 31, 8: 15}


@pytest.mark.parametrize("n", [n for n in range(64, 4200, 64) if n % 128 or n < 2200])
def test_split_k_is_planned_for_one_wave(extension, n):
    _, ranked = _ranked(extension, f"64x{n}x7168")
    split = [c for c in ranked if c["split_k"] > 1]
    assert all(c["tiles"] <= RESIDENT[c["split_k"]] * c["split_k"] for c in split)
    by_size = {c["split_k"]: c["tiles"] // c["split_k"] for c in split}
    if n == 1920:  # 15 tiles of 128 columns, and one more does not fit
        assert by_size[8] == 15
    if n == 2048:
        assert 8 not in by_size


@pytest.mark.parametrize(
    "n, tiles, split, narrower",
    [(1920, 15, 8, 8), (2048, 16, 8, 4), (3968, 31, 4, 4), (4096, 32, 4, 2)],
)
def test_clusters_that_do_not_fit_are_not_planned(extension, n, tiles, split, narrower):
    """133 SMs of which any four or eight were a cluster would hold one cluster more."""
    problem = gemm_problem.parse(f"64x{n}x7168")
    best = {
        num_sms: ranking.rank(problem._replace(num_sms=num_sms), backend="cuda", gpu="")[0]
        for num_sms in (132, 133)
    }
    assert (best[133]["split_k"], best[133]["tiles"]) == (split, tiles * split)
    assert best[132]["split_k"] == narrower
