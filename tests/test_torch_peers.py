# SPDX-License-Identifier: Apache-2.0
"""Peers of the benchmarks that torch reaches, on the CPU with stand-ins for what needs a GPU.

A stand-in accepts what the real function accepts, strides too, and multiplies in float32. Where
torch is installed; the peers' own code needs it.
"""

import importlib
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind the installed package

torch = pytest.importorskip("torch", exc_type=ImportError)

from benchmarks import operands, peers, torch_peers  # noqa: E402
from benchmarks.cases import BenchCase  # noqa: E402
from benchmarks.peer import NotApplicableError, PeerMissingError  # noqa: E402
from jax_fp8gemm._src.tools.tuning.operands import MAX_ERROR  # noqa: E402

_BLOCK = 128


def _blocks(size: int) -> int:
    return -(-size // _BLOCK)


def _wide(values, scales, rows_per_scale: int):
    """Returns what values stand for; scales of 1x128 or 128x128 blocks."""
    rows, columns = values.shape
    scales = scales.repeat_interleave(rows_per_scale, 0)[:rows]
    return values.float() * scales.repeat_interleave(_BLOCK, 1)[:, :columns]


def _has_layout(x, shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    pairs = zip(x.shape, x.stride(), strides, strict=True)
    return tuple(x.shape) == shape and all(n == 1 or got == want for n, got, want in pairs)


# ---- torch --------------------------------------------------------------------------------------


def _scaled_mm(row_pitch: int):
    """Returns a `torch._scaled_mm` that asks for a weight's scales in rows of such a pitch."""

    def product(a, b, *, scale_a, scale_b, out_dtype, use_fast_accum):
        assert a.stride(1) == 1 and b.stride(0) == 1, "row-major times column-major"
        weight = b.t()
        if scale_a.numel() == 1:
            return ((a.float() * scale_a) @ (weight.float() * scale_b).t()).to(out_dtype)
        assert not use_fast_accum
        (m, k), n = a.shape, weight.shape[0]
        good = _has_layout(scale_a, (m, _blocks(k)), (1, m))
        pitch = -(-_blocks(k) // row_pitch) * row_pitch
        good &= _has_layout(scale_b.t(), (_blocks(n), _blocks(k)), (pitch, 1))
        if not good:
            raise RuntimeError("Invalid scaling configuration")
        product = _wide(a, scale_a, 1) @ _wide(weight, scale_b.t(), _BLOCK).t()
        return product.to(out_dtype)

    return product


# ---- DeepGEMM -----------------------------------------------------------------------------------


def _aligned_scales(scales):
    """Returns scales with rows contiguous, at a pitch of multiples of four."""
    assert scales.is_contiguous()
    pitch = -(-scales.shape[-2] // 4) * 4
    out = scales.new_empty((*scales.shape[:-2], scales.shape[-1], pitch))
    out = out[..., : scales.shape[-2]].transpose(-1, -2)
    return out.copy_(scales)


def _check_rows(pair) -> None:
    values, scales = pair
    assert values.stride(-1) == 1 and values.dtype == torch.float8_e4m3fn
    assert scales.shape == (*values.shape[:-1], _blocks(values.shape[-1]))
    assert scales.stride(-1) == -(-values.shape[-2] // 4) * 4
    assert scales.shape[-2] == 1 or scales.stride(-2) == 1


def _dense(lhs, rhs, out, c=None, recipe=(1, 128, 128)) -> None:
    _check_rows(lhs)
    if recipe == (1, 1, 128):
        _check_rows(rhs)
        assert c is out and out.dtype == torch.float32
        out += _wide(*lhs, 1) @ _wide(*rhs, 1).t()
        return
    assert c is None and out.dtype == torch.bfloat16 and rhs[1].is_contiguous()
    assert rhs[1].shape == (_blocks(rhs[0].shape[0]), _blocks(rhs[0].shape[1]))
    out.copy_(_wide(*lhs, 1) @ _wide(*rhs, _BLOCK).t())


def _contiguous(lhs, rhs, out, groups) -> None:
    _check_rows(lhs)
    assert groups.dtype == torch.int32 and groups.shape == out.shape[:1]
    assert rhs[1].is_contiguous() and rhs[1].dim() == rhs[0].dim() == 3
    wide = _wide(*lhs, 1)
    for group, (values, scales) in enumerate(zip(*rhs, strict=True)):
        out[groups == group] = (wide @ _wide(values, scales, _BLOCK).t())[
            groups == group
        ].bfloat16()


def _masked(lhs, rhs, out, counts, expected_m) -> None:
    _check_rows(lhs)
    assert counts.dtype == torch.int32 and isinstance(expected_m, int)
    assert lhs[0].dim() == lhs[1].dim() == rhs[0].dim() == rhs[1].dim() == out.dim() == 3
    for i, count in enumerate(counts.tolist()):
        product = _wide(lhs[0][i], lhs[1][i], 1) @ _wide(rhs[0][i], rhs[1][i], _BLOCK).t()
        out[i, :count] = product[:count].bfloat16()


def _k_grouped(lhs, rhs, out, sizes, groups, c=None) -> None:
    assert c is out and out.dtype == torch.float32 and groups.dtype == torch.int32
    assert groups.tolist() == sizes and all(size % _BLOCK == 0 for size in sizes)
    for values, scales, rows in ((*lhs, out.shape[1]), (*rhs, out.shape[2])):
        assert values.dim() == 1 and values.numel() == rows * sum(sizes)
        assert scales.shape == (rows, sum(sizes) // _BLOCK) and scales.stride(0) == 1
    begin = 0
    for i, size in enumerate(sizes):
        wide = []
        for (values, scales), rows in ((lhs, out.shape[1]), (rhs, out.shape[2])):
            part = values[rows * begin : rows * (begin + size)].view(rows, size)
            columns = scales[:, begin // _BLOCK : (begin + size) // _BLOCK]
            wide.append(_wide(part, columns, 1))
        out[i] += wide[0] @ wide[1].t()
        begin += size


def _deep_gemm(**functions) -> ModuleType:
    module = ModuleType("deep_gemm")
    vars(module).update(functions)
    return module


_NEW = {
    "get_mn_major_tma_aligned_tensor": _aligned_scales,
    "fp8_gemm_nt": _dense,
    "m_grouped_fp8_gemm_nt_contiguous": _contiguous,
    "m_grouped_fp8_gemm_nt_masked": _masked,
    "k_grouped_fp8_gemm_nt_contiguous": _k_grouped,
}


# The wheel sgl-deep-gemm 0.2.5 in its own words, which its torch operators do not bend.
def _sgl_dense(a, b, d, c=None, recipe=None, recipe_a=None, recipe_b=None, compiled_dims=""):
    assert isinstance(recipe, tuple | None)
    _dense(a, b, d, c, recipe or (1, 128, 128))


def _sgl_contiguous(a, b, d, grouped_layout, recipe=None, recipe_a=None, recipe_b=None):
    _contiguous(a, b, d, grouped_layout)


def _sgl_masked(a, b, d, masked_m, expected_m, recipe=None, recipe_a=None, recipe_b=None):
    _masked(a, b, d, masked_m, expected_m)


def _sgl_k_grouped(a, b, d, ks, grouped_layout, c=None, recipe=(1, 1, 128)):
    assert type(ks) is list and all(type(k) is int for k in ks)
    _k_grouped(a, b, d, ks, grouped_layout, c)


_SGL = {
    "__version__": "0.2.5",
    "get_mn_major_tma_aligned_tensor": _aligned_scales,
    "fp8_gemm_nt": _sgl_dense,
    "m_grouped_fp8_gemm_nt_contiguous": _sgl_contiguous,
    "m_grouped_fp8_gemm_nt_masked": _sgl_masked,
    "k_grouped_fp8_gemm_nt_contiguous": _sgl_k_grouped,
}
# Of April to July 2025.
_OLD = {
    "get_col_major_tma_aligned_tensor": _aligned_scales,
    "gemm_fp8_fp8_bf16_nt": _dense,
    "wgrad_gemm_fp8_fp8_fp32_nt": lambda a, b, out: _dense(a, b, out, out, (1, 1, 128)),
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous": _contiguous,
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked": _masked,
}


# ---- Triton -------------------------------------------------------------------------------------


class _Untuned:
    """Stands for an autotuned kernel, whose trials need a GPU: always one of its configurations."""

    def __init__(self, kernel, config) -> None:
        self._kernel, self._config = kernel, config

    def __getitem__(self, grid):
        return lambda *arguments, **more: self._kernel[grid](
            *arguments, **more, **self._config.kwargs
        )


@pytest.fixture(params=range(0, 7, 3))
def triton_kernel(request, monkeypatch):
    """The module with its kernel interpreted on the CPU, in one of its configurations."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # before Triton defines its own functions
    pytest.importorskip("triton", exc_type=ImportError)
    monkeypatch.delitem(sys.modules, "benchmarks.triton_kernel", raising=False)
    module = importlib.import_module("benchmarks.triton_kernel")
    tuned = module._kernel
    monkeypatch.setattr(module, "_kernel", _Untuned(tuned.fn, tuned.configs[request.param]))
    yield
    sys.modules.pop("benchmarks.triton_kernel")


# ---- Tests --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def _error(name: str, case: BenchCase) -> float:
    """Returns the error of the first result of a peer, as a run checks it."""
    (peer,) = (peer for peer in peers.all_peers("gpu") if peer.name == name)
    assert case.kind in peer.kinds
    peer.probe()
    given = operands.operands_for(case)
    call = peer.prepare(given)
    result = call.start()
    call.finish(result)
    return given.error_of(call.rows(result, given.checked_rows))


_DENSE = BenchCase("t", "dense", 36, 272, 384)
_CASES = (
    _DENSE,
    BenchCase("t", "one_row", 1, 128, 512),
    BenchCase("t", "wgrad", 40, 136, 256, "wgrad"),
    BenchCase("t", "contiguous", 256, 136, 256, "contiguous", num_groups=2),
    BenchCase("t", "masked", 20, 136, 256, "masked", num_groups=3),
    BenchCase("t", "k_grouped", 72, 136, 512, "k_grouped", num_groups=3),
)


@pytest.mark.parametrize("pitch", [1, 4], ids=["dense_rows", "aligned_rows"])
@pytest.mark.parametrize("case", _CASES[:2], ids=lambda case: case.name)
def test_cublaslt_block_scaled(monkeypatch, case, pitch):
    """Both layouts of scales that versions of torch ask for: K of 384 has 3 of them."""
    monkeypatch.setattr(torch, "_scaled_mm", _scaled_mm(pitch))
    assert _error("cublaslt_block", case) <= MAX_ERROR


@pytest.mark.parametrize(("name", "limit"), [("cublaslt_tensor", 2e-3), ("torch_bf16", 1e-4)])
def test_other_products_of_torch(monkeypatch, name, limit):
    monkeypatch.setattr(torch, "_scaled_mm", _scaled_mm(1))
    assert _error(name, _DENSE) <= limit


@pytest.mark.parametrize("case", _CASES[:2], ids=lambda case: case.name)
def test_triton_block_scaled(triton_kernel, case):
    """The interpreter truncates where it rounds to bfloat16."""
    assert _error("triton_block", case) <= MAX_ERROR


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_deep_gemm(monkeypatch, case):
    monkeypatch.setitem(sys.modules, "deep_gemm", _deep_gemm(**_NEW))
    _check_spec(monkeypatch)
    assert _error("deep_gemm", case) <= MAX_ERROR


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_prebuilt_deep_gemm(monkeypatch, case):
    """Its wheel is of another name than its module, and the record has both."""
    monkeypatch.setitem(sys.modules, "deep_gemm", _deep_gemm(**_SGL))
    _check_spec(monkeypatch)
    found = {"deep_gemm": ["sgl-deep-gemm"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: found)
    assert _error("deep_gemm", case) <= MAX_ERROR
    call = torch_peers.prepared_deep_gemm(lambda: None)
    assert call.notes == {"version": "0.2.5", "distribution": "sgl-deep-gemm"}


@pytest.mark.parametrize("case", _CASES[:5], ids=lambda case: case.name)
def test_older_deep_gemm(monkeypatch, case):
    monkeypatch.setitem(sys.modules, "deep_gemm", _deep_gemm(**_OLD))
    _check_spec(monkeypatch)
    assert _error("deep_gemm", case) <= MAX_ERROR


def test_what_deep_gemm_has_not_is_not_applicable(monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", _deep_gemm(**_OLD))
    _check_spec(monkeypatch)
    with pytest.raises(NotApplicableError, match="k_grouped_fp8_gemm_nt_contiguous"):
        _error("deep_gemm", _CASES[-1])
    ragged = BenchCase("t", "ragged", 40, 136, 256, "ragged", num_groups=3)
    with pytest.raises(NotApplicableError, match="padding"):
        _error("deep_gemm", ragged)


def test_deep_gemm_that_does_not_import_is_missing_with_its_reason(monkeypatch, tmp_path):
    """It asserts that it finds a CUDA toolkit, without a message."""
    (tmp_path / "deep_gemm.py").write_text("assert None is not None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PeerMissingError, match="cannot be imported: AssertionError"):
        _error("deep_gemm", _DENSE)


def _check_spec(monkeypatch) -> None:
    """Lets importlib find a module that only sys.modules has."""
    from importlib.machinery import ModuleSpec

    monkeypatch.setattr(sys.modules["deep_gemm"], "__spec__", ModuleSpec("deep_gemm", None))
