# SPDX-License-Identifier: Apache-2.0
"""Our instructions against those that Triton's compiler writes for an FP8 product on sm_90.

Compared: mnemonic with all its qualifiers, and the form of the operands, of what both use; and the
bits of the shared-memory descriptors beside the address. Triton compiles without a GPU.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from _asm_text import asm_body, asm_parts, literals
from _source import ROOT
from _witness_packages import TRUTH, compile_program, needs, run
from test_cute_instructions import our_statements, our_text

pytestmark = pytest.mark.slow

_KERNELS = ROOT / "csrc" / "kernels"
# Type of A, of B, and columns: what Triton compiles.
PRODUCTS = [
    ("e4m3", "e4m3", 128),
    ("e5m2", "e4m3", 64),
    ("e4m3", "e5m2", 32),
    ("e5m2", "e5m2", 256),
]
# Our functions, and the instruction of theirs that Triton uses too.
SHARED = {
    "mbarrier_init": "mbarrier.init",
    "mbarrier_arrive_expect_tx": "mbarrier.arrive.expect_tx",
    "mbarrier_wait_parity": "mbarrier.try_wait.parity",
    "cp_async_bulk_tensor_2d_g2s": "cp.async.bulk.tensor.2d.shared",
    "cp_async_bulk_tensor_2d_s2g": "cp.async.bulk.tensor.2d.global",
    "cp_async_bulk_commit_group": "cp.async.bulk.commit_group",
    "fence_proxy_async_shared_cta": "fence.proxy.async",
    "elect_sync": "elect.sync",
    "stmatrix_x4": "stmatrix",
    "wgmma_fence": "wgmma.fence",
    "wgmma_commit_group": "wgmma.commit_group",
    "wgmma_wait_group": "wgmma.wait_group",
}


def form(instruction: str) -> str:
    """Returns an instruction with `r` for each register or number, and lists by their length."""
    words = re.sub(r"^@!?\S+\s+", "", instruction.strip()).split(None, 1)
    mnemonic, operands = words[0], words[1] if len(words) > 1 else ""
    # The state space of the CTA itself, which PTX ISA 8.6 added: it lies within the cluster's.
    if mnemonic.startswith("cp.async.bulk.tensor.2d.shared::cta.global"):
        mnemonic = mnemonic.replace("shared::cta", "shared::cluster")
    operands = re.sub(r"[%\w]+(?:\[\w+\])?(?:\+\d+)?", "r", operands.replace("-", ""))
    operands = re.sub(r"\s+", "", operands)
    operands = re.sub(r"\{r(?:,r){4,}\}", lambda m: f"{{{m[0].count('r')}}}", operands)
    return f"{mnemonic} {operands}".strip()


def forms(text: str) -> set[str]:
    """Returns the forms of all instructions of a text of PTX."""
    lines = re.sub(r"//[^\n]*", "", text).replace("{\n", "\n").replace("\n}", "\n")
    found = (line.strip() for line in re.split(r"[;\n]", lines))
    return {form(line) for line in found if re.match(r"(@!?\S+\s+)?[a-z][\w.:]*(\s|$)", line)}


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> dict[tuple, str]:
    """What Triton writes, for each of PRODUCTS."""
    if importlib.util.find_spec("triton") is None:
        needs("triton", extra="truth-triton")
    folder = tmp_path_factory.mktemp("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache")}
    written = {}
    for product in PRODUCTS:
        path = folder / "_".join(map(str, product))
        command = [sys.executable, TRUTH / "_triton_product.py", *map(str, product), path]
        made = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert made.returncode == 0, made.stderr
        written[product] = path.read_text()
    return written


def our_forms(function: str) -> set[str]:
    """Returns the forms of the instructions in one of our functions."""
    texts = [path.read_text() for path in (_KERNELS / "ptx").glob("*.cuh")]
    (body,) = [
        asm_body(text, match.end())
        for text in texts
        for match in re.finditer(rf"FP8GEMM_DEVICE \w+ {function}\(", text)
    ]
    return forms(literals(asm_parts(body)[0]))


@pytest.mark.parametrize("function", SHARED)
def test_instruction_is_tritons(ptx, function):
    start = SHARED[function]
    (ours,) = [each for each in our_forms(function) if each.startswith(start)]
    theirs = set().union(*map(forms, ptx.values()))
    assert ours in theirs, [each for each in theirs if each.startswith(start)]


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_wgmma_is_tritons(ptx, product):
    a, b, columns = product
    theirs = {each for each in forms(ptx[product]) if each.startswith("wgmma.mma_async")}
    width = next(int(re.search(r"m64n(\d+)k32", each)[1]) for each in theirs)
    statement = our_statements(our_text())[width, a.upper(), b.upper()]
    instruction = re.search(r"(wgmma\.mma_async\S*?)(\{.*);", statement.text)
    assert theirs == {form(f"{instruction[1]} {instruction[2]}")}
    assert f"m64n{columns}k32.f32.{a}.{b}" in next(iter(theirs))


def descriptors(text: str) -> set[int]:
    """Returns the constants of a text of PTX that have the bits of a descriptor's last field."""
    return {int(each) for each in re.findall(r"\b\d{19}\b", text)}


def test_descriptors_are_tritons(ptx, tmp_path_factory):
    flags = [f"-I{ROOT / 'csrc/sim/device'}", f"-I{_KERNELS}"]
    program = compile_program(tmp_path_factory, "descriptors", ["descriptors"], flags=flags)
    ours = set(map(int, run(program).stdout.split()))
    assert len(ours) == 4
    for product, text in ptx.items():
        theirs = descriptors(text)
        # Triton 3.8 writes the four steps along K as constants, 3.9 adds the last three as it runs.
        assert min(ours) in theirs and theirs <= ours, product


def test_forms_tell_instructions_apart():
    assert (
        form("@%p1 mbarrier.init.shared::cta.b64 [%r6], 1") == "mbarrier.init.shared::cta.b64 [r],r"
    )
    assert forms("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n}") == {"elect.sync r|r,r"}
    assert form("a.b {%0, %1}, [%2]") != form("a.b [%2], {%0, %1}")
    assert form("a.b {%0, %1, %2, %3, %4}") != form("a.b {%0, %1, %2, %3, %4, %5}")


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [
        ("mbarrier_init", "shared::cta", "shared::cluster"),
        ("cp_async_bulk_tensor_2d_g2s", "[r,{r,r}],[r]", "[r],[r,{r,r}]"),
        ("cp_async_bulk_tensor_2d_s2g", ".bulk_group", ""),
        ("stmatrix_x4", ".x4", ".x2"),
        ("wgmma_fence", ".aligned", ""),
    ],
)
def test_changed_instruction_is_found(ptx, function, right, wrong):
    (ours,) = [each for each in our_forms(function) if each.startswith(SHARED[function])]
    assert right in ours
    assert ours.replace(right, wrong) not in set().union(*map(forms, ptx.values()))
