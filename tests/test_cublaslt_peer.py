# SPDX-License-Identifier: Apache-2.0
"""The peer that calls cuBLASLt's grouped product, on the CPU with a stand-in for the library.

The stand-in reads what the real one would: addresses from arrays of addresses, extents from arrays
of extents, scales where cuBLASLt expects them. Where torch is installed.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind the installed package

torch = pytest.importorskip("torch", exc_type=ImportError)

import ml_dtypes  # noqa: E402

from benchmarks import cublaslt_peer, operands, peers  # noqa: E402
from benchmarks.cases import BenchCase  # noqa: E402
from benchmarks.peer import NotApplicableError, PeerMissingError  # noqa: E402
from jax_fp8gemm._src.tools.tuning.operands import MAX_ERROR  # noqa: E402

_BLOCK = 128
_SIZES = {"c_int": 4, "c_byte": 1, "c_long": 8, "c_ulong": 8, "c_void_p": 8}


def _read(address: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype).reshape(shape)


def _padded(count: int) -> int:
    return -(-count // 4) * 4


class _StandIn:
    """As much of cuBLASLt as the peer uses; handles are numbers of its objects."""

    def __init__(self, version: int = 130802, algorithms: int = 1) -> None:
        self._version, self._algorithms = version, algorithms
        self._objects: list[dict] = [{}]

    def __getattr__(self, name: str):
        named = {
            "cublasLtGetVersion": lambda: self._version,
            "cublasLtMatmulAlgoGetHeuristic": self._choose,
            "cublasLtMatmul": self._run,
        }
        if name in named:
            return named[name]
        if name.endswith("Create"):
            return self._create
        if name.endswith("SetAttribute"):
            return self._set
        raise AttributeError(name)

    def _create(self, result, *arguments) -> int:
        self._objects.append({"arguments": arguments})
        result._obj.value = len(self._objects) - 1
        return 0

    def _set(self, target, number: int, value, size) -> int:
        assert size.value == _SIZES[type(value._obj).__name__]
        self._objects[target.value][number] = value._obj.value
        return 0

    def _choose(self, handle, description, a, b, c, d, preference, *rest) -> int:
        asked, found, number = rest
        chosen = self._objects[preference.value]
        assert asked == 1 and chosen[1] == 32 << 20 and min(chosen[i] for i in (13, 14, 15)) > 0
        found._obj.algorithm[0] = 77
        number._obj.value = self._algorithms
        return 0

    def _extents(self, layout) -> tuple[int, np.ndarray, np.ndarray]:
        dtype, groups, rows, columns, pitch = self._objects[layout.value]["arguments"]
        assert rows.value == pitch.value, "no gaps between columns"
        return dtype, *(_read(x.value, (groups,), np.int32) for x in (rows, columns))

    def _run(self, handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout,
             d, d_layout, algorithm, workspace, workspace_bytes, stream) -> int:  # fmt: skip
        chosen = self._objects[description.value]
        assert algorithm._obj.algorithm[0] == 77 and stream is None
        assert [chosen[i] for i in (2, 3, 4, 25, 31, 32)] == [1, 1, 0, 0, 5, 4]
        assert [_read(x.value, (1,), np.float32)[0] for x in (alpha, beta)] == [1, 0]
        dtype, depth, columns = self._extents(a_layout)
        assert dtype == 28 and self._extents(b_layout)[0] == 28 and c.value == d.value
        result_type, out_rows, rows = self._extents(d_layout)
        assert result_type == 14 and (out_rows == columns).all()
        assert (self._extents(b_layout)[1] == depth).all()
        assert (self._extents(b_layout)[2] == rows).all()
        arrays = [_read(x, (len(rows),), np.int64)
                  for x in (a.value, b.value, d.value, chosen[17], chosen[18])]  # fmt: skip
        for k, n, m, *addresses in zip(depth, columns, rows, *arrays, strict=True):
            _multiply(int(k), int(n), int(m), *map(int, addresses))
        return 0


def _multiply(k: int, n: int, m: int, a: int, b: int, d: int, a_scales: int, b_scales: int) -> None:
    assert not any(address % 16 for address in (a, b, d, a_scales, b_scales))
    blocks = -(-k // _BLOCK)
    weight, x = (_read(p, (r, k), ml_dtypes.float8_e4m3fn) for p, r in ((a, n), (b, m)))
    by_block = _read(a_scales, (-(-n // _BLOCK), _padded(blocks)), np.float32)[:, :blocks]
    by_row = _read(b_scales, (blocks, _padded(m)), np.float32)[:, :m].T
    weight = weight.astype(np.float32) * by_block.repeat(_BLOCK, 0)[:n].repeat(_BLOCK, 1)[:, :k]
    x = x.astype(np.float32) * by_row.repeat(_BLOCK, 1)[:, :k]
    target = _read(d, (m, n), ml_dtypes.bfloat16)
    target[:] = x @ weight.T


@pytest.fixture
def library(monkeypatch):
    """Returns a function that puts a stand-in in the place of the library."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def put(**options) -> None:
        stand_in = _StandIn(**options)
        monkeypatch.setattr(cublaslt_peer, "_library", lambda: stand_in)

    return put


def _error(case: BenchCase) -> float:
    (peer,) = (peer for peer in peers.all_peers("gpu") if peer.name == "cublaslt_grouped")
    assert case.kind in peer.kinds
    peer.probe()
    given = operands.operands_for(case)
    call = peer.prepare(given)
    result = call.start()
    call.finish(result)
    return given.error_of(call.rows(result, given.checked_rows))


_CASES = (
    BenchCase("t", "ragged", 100, 144, 384, "ragged", num_groups=3),
    BenchCase("t", "contiguous", 256, 144, 640, "contiguous", num_groups=2),
    BenchCase("t", "masked", 20, 272, 256, "masked", num_groups=3),
)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_grouped_product(library, case):
    library()
    assert _error(case) <= MAX_ERROR


def test_what_it_has_not_is_not_applicable(library):
    library()
    with pytest.raises(NotApplicableError, match="K must be a multiple of 128"):
        _error(BenchCase("t", "ragged", 100, 144, 400, "ragged", num_groups=3))
    library(algorithms=0)
    with pytest.raises(NotApplicableError, match="no algorithm"):
        _error(_CASES[0])


def test_an_older_library_is_missing_with_its_reason(library):
    library(version=130100)
    with pytest.raises(PeerMissingError, match=r"cuBLASLt 13.1: .* from 13.4 on"):
        _error(_CASES[0])


def test_no_library_is_missing_with_its_reason(monkeypatch):
    monkeypatch.setattr(cublaslt_peer, "_LIBRARY", "libcublasLt.so.none")
    with pytest.raises(PeerMissingError, match="libcublasLt.so.none cannot be loaded"):
        cublaslt_peer._library.__wrapped__()
