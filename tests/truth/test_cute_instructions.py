# SPDX-License-Identifier: Apache-2.0
"""Instructions against CuTe's: every wgmma in our table, and the barrier of a cluster.

CuTe's operations `MMA_64xNx32_F32{A}{B}_SS_TN` and our `WgmmaM64K32<N>::run<A, B>` are each one asm
statement. Both are read from the headers, with operands put in place of their numbers.
"""

import dataclasses
import itertools
import re
import subprocess

import pytest
from _asm_text import asm_body, asm_parts, literals
from _source import ROOT
from _witness_packages import compiler, cute_headers

WIDTHS = range(16, 257, 16)
TYPES = ("E4M3", "E5M2")


@dataclasses.dataclass(frozen=True)
class Statement:
    """One asm statement, with names of operands in its text."""

    text: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]


def _operands(part: str) -> list[tuple[str, str]]:
    """Returns constraint and name of each operand."""
    found = re.findall(r'"([^"]+)"\s*\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)', part)
    return [(constraint, _name(expression)) for constraint, expression in found]


def _name(expression: str) -> str:
    """Returns one name for what ours and CuTe's call differently."""
    if number := re.fullmatch(r"d\[?0*(\d+)\]?", expression.strip()):
        return f"d{number[1]}"
    for name, spelling in [
        ("a", r"\ba_desc\b|\bdesc_a\b"),
        ("b", r"\bb_desc\b|\bdesc_b\b"),
        ("scale_d", r"\bscale_d\b|\bscale_D\b"),
        ("1", r"\bscaleA\b|\bscaleB\b"),  # GMMA::ScaleIn::One, which is 1
    ]:
        if re.search(spelling, expression):
            return name
    raise ValueError(f"unknown operand {expression}")


def statement(body: str) -> Statement:
    """Reads the inside of `asm volatile(...)`."""
    text, outputs, inputs = asm_parts(body)[:3]
    operands = _operands(outputs) + _operands(inputs)
    joined = literals(text)
    named = re.sub(r"%(\d+)", lambda match: operands[int(match[1])][1], joined)
    immediate = [operand for operand in operands if operand[0] == "n"]
    return Statement(
        re.sub(r"\s+", "", named),
        tuple(f"{c} {name}" for c, name in _operands(outputs)),
        tuple(f"{c} {name}" for c, name in _operands(inputs) if (c, name) not in immediate),
    )


@pytest.fixture(scope="module")
def cute() -> dict[tuple[int, str, str], Statement]:
    """CuTe's statements, by width and types."""
    arch = cute_headers()[0] / "cute" / "arch"
    text = "".join((arch / f"mma_sm90_gmma{part}.hpp").read_text() for part in ("", "_ext"))
    assert re.search(r"enum class ScaleIn\s*\{[^}]*One\s*=\s*1", text)
    found = {}
    for match in re.finditer(r"struct MMA_64x(\d+)x32_F32(E\dM\d)(E\dM\d)_SS_TN\b", text):
        key = (int(match[1]), match[2], match[3])
        found[key] = statement(asm_body(text, match.end()))
    return found


def our_text() -> str:
    """Returns our header as the compiler sees it, with its macros replaced."""
    kernels = ROOT / "csrc" / "kernels"
    command = [compiler(), "-std=c++20", "-E", "-P", f"-I{kernels}", f"-I{ROOT / 'csrc'}"]
    source = "#include <mma/wgmma_fp8.cuh>\n"
    command += ["-x", "c++", "-"]
    made = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return made.stdout


def our_statements(text: str) -> dict[tuple[int, str, str], Statement]:
    """Returns our statements, by width and types: those that the first true condition guards."""
    found = {}
    for body in re.split(r"struct WgmmaM64K32<(?=\d+>)", text)[1:]:
        width = int(body.partition(">")[0])
        branches = re.split(r"\bif constexpr ", body)[1:]
        # The last branch is followed by that of `else`, which has no condition.
        guarded = [(part.partition("{")[0], asm_body(part)) for part in branches]
        otherwise = asm_body(re.split(r"\belse\s*\{", branches[-1])[1])
        guarded.append(("True", otherwise))
        for a, b in itertools.product(TYPES, TYPES):
            names = {"kA": f"k{a}", "kB": f"k{b}"} | {f"k{each}": f"k{each}" for each in TYPES}
            taken = next(
                asm
                for condition, asm in guarded
                if eval(condition.replace("Fp8Type::", "").replace("&&", "and"), names)
            )
            found[width, a, b] = statement(taken)
    return found


@pytest.fixture(scope="module")
def ours() -> dict[tuple[int, str, str], Statement]:
    """Our statements, by width and types."""
    return our_statements(our_text())


def test_every_wgmma_is_cutes(ours, cute):
    expected = {(n, a, b) for n in WIDTHS for a in TYPES for b in TYPES}
    assert set(ours) == expected and expected <= set(cute)
    for key in expected:
        assert ours[key] == cute[key], key
        n, a, b = key
        assert f"wgmma.mma_async.sync.aligned.m64n{n}k32.f32.{a}.{b}".lower() in ours[key].text
        assert len(ours[key].outputs) == n // 2


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"m64n96k32", "m64n80k32"),
        (r'"e5m2" "\." "e4m3"', '"e4m3" "." "e5m2"'),
        (r'"%48, %49, p, 1, 1', '"%49, %48, p, 1, 1'),
        (r'"%48, %49, p, 1, 1', '"%48, %49, p, -1, 1'),
        (r'"\+f"\(d\[3\]\)', '"+f"(d[2])'),
        (r"kA == Fp8Type::kE4M3 &&", "kA == Fp8Type::kE5M2 &&"),
    ],
)
def test_changed_wgmma_is_found(cute, pattern, replacement):
    text, changed = re.subn(pattern, replacement, our_text())
    assert changed
    assert any(found != cute[key] for key, found in our_statements(text).items())


# ---- The barrier of a cluster --------------------------------------------------------------------

# Ours, by CuTe's name for it. Without qualifiers an arrival is a release, a wait an acquire (PTX).
CLUSTER_BARRIERS = {
    "cluster_arrive": "barrier_cluster_arrive",
    "cluster_arrive_relaxed": "barrier_cluster_arrive_relaxed",
    "cluster_wait": "barrier_cluster_wait",
}


def _text_of(text: str, function: str) -> str:
    start = re.search(rf"\b{function}\([^)]*\)\s*\{{", text).end()
    return literals(asm_parts(asm_body(text, start))[0]).strip()


def test_barriers_of_a_cluster_are_cutes():
    theirs = (cute_headers()[0] / "cute/arch/cluster_sm90.hpp").read_text()
    ours = (ROOT / "csrc/kernels/ptx/cluster.cuh").read_text()
    for name, own_name in CLUSTER_BARRIERS.items():
        own = _text_of(ours, own_name)
        assert re.sub(r"\.(release|acquire)\b", "", own) == _text_of(theirs, name), name


def test_asynchronous_stores_are_cutes():
    """Ours stores four floats where CuTe's stores one word, to the same kinds of addresses."""
    theirs = (cute_headers()[0] / "cute/arch/cluster_sm90.hpp").read_text()
    ours = (ROOT / "csrc/kernels/ptx/cluster.cuh").read_text()
    (one_word,) = re.findall(r'"(st\.async\.[^"]*;)"', theirs)
    four = _text_of(ours, "st_async_v4_f32")
    assert four.count("mapa.shared::cluster.u32") == 2  # as set_block_rank does for both addresses
    assert "mapa.shared::cluster.u32" in theirs
    four = re.search(r"st\.async\..*;", four)[0]
    for own, their in (
        (".v4.f32", ".u32"),
        ("[remote]", "[%0]"),
        ("{%3, %4, %5, %6}", "%1"),
        ("[remote_bar]", "[%2]"),
    ):
        assert own in four
        four = four.replace(own, their)
    assert four == one_word


def test_cutlass_shows_fenced_mbarriers_by_a_relaxed_arrival():
    """As our kernels do at their start: fence, relaxed arrival, wait."""
    include = cute_headers()[0] / "cutlass"
    fence = (ROOT / "csrc/kernels/ptx/mbarrier.cuh").read_text()
    fence = _text_of(fence, "fence_mbarrier_init_release_cluster")
    assert fence in (include / "arch/barrier.h").read_text()
    pipelines = (include / "pipeline/sm90_pipeline.hpp").read_text()
    assert "cutlass::arch::fence_barrier_init();" in pipelines
    kernel = (include / "gemm/kernel/sm90_gemm_tma_warpspecialized_pingpong.hpp").read_text()
    made, arrival, wait = (
        kernel.index(text)
        for text in (
            "MainloopPipeline mainloop_pipeline(",
            "cute::cluster_arrive_relaxed();",
            "cluster_wait_fn();",
        )
    )
    assert made < arrival < wait
