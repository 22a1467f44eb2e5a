# SPDX-License-Identifier: Apache-2.0
"""Peer: cuBLASLt's experimental grouped product with block scales, for which torch has no name.

Hopper has it from cuBLASLt 13.4 on (Transformer Engine's cublaslt_grouped_gemm.cu asks for that
much). Values of cublasLt.h 13.8. Columns come first there: D.T = W X.T, so A is the weight.
"""

import ctypes
import functools
from typing import Any

from benchmarks import torch_peers
from benchmarks.operands import GroupedOperands
from benchmarks.peer import BLOCK_SCALED, NotApplicableError, Peer, PeerMissingError, Prepared

_LIBRARY = "libcublasLt.so.13"
_LEAST_VERSION = 130400
_WORKSPACE_BYTES = 32 << 20
# cudaDataType, cublasComputeType_t
_FLOAT32, _BFLOAT16, _E4M3, _COMPUTE_FLOAT32 = 0, 14, 28, 68
# cublasLtMatmulDescAttributes_t: number of the attribute, its type, its value where it is fixed.
_DESCRIPTION = (
    (2, ctypes.c_int32, 1),  # alpha and beta lie on the device
    (3, ctypes.c_int32, 1),  # A transposed
    (4, ctypes.c_int32, 0),  # B not
    (25, ctypes.c_int8, 0),  # no fast accumulation
    (31, ctypes.c_int32, 5),  # scales of A for 128x128
    (32, ctypes.c_int32, 4),  # scales of B for 1x128
)
_A_SCALES, _B_SCALES = 17, 18
# cublasLtMatmulPreferenceAttributes_t
_MAX_WORKSPACE, _AVERAGE_K, _AVERAGE_ROWS, _AVERAGE_COLUMNS = 1, 13, 14, 15


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t, which begins with the algorithm."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@functools.cache
def _library() -> Any:
    """Loads what torch has loaded, or the loader finds."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise PeerMissingError(f"{_LIBRARY} cannot be loaded: {error}") from error
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    return library


def _probe() -> None:
    torch_peers.require("torch")()
    version = _library().cublasLtGetVersion()
    if version < _LEAST_VERSION:
        have, least = (f"{v // 10000}.{v // 100 % 100}" for v in (version, _LEAST_VERSION))
        raise PeerMissingError(f"cuBLASLt {have}: Hopper has grouped block scales from {least} on")


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


def _created(kind: str, *arguments: Any) -> ctypes.c_void_p:
    # Never destroyed: as long-lived as the peer.
    result = ctypes.c_void_p()
    _call(f"cublasLt{kind}Create", ctypes.byref(result), *arguments)
    return result


def _set(kind: str, target: ctypes.c_void_p, number: int, value: Any) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    _call(f"cublasLt{kind}SetAttribute", target, number, ctypes.byref(value), size)


def _address(x: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


class _Groups:
    """The groups as cuBLASLt takes them: arrays on the device of addresses and of extents."""

    def __init__(self, operands: GroupedOperands) -> None:
        """Lays out scales, each group's by itself, and finds where each group begins."""
        torch, case, given = torch_peers.import_torch(), operands.case, operands.given
        self.case = case
        sizes = [int(size) for size in operands.sizes]
        room = [case.m] * len(sizes) if case.kind == "masked" else sizes
        starts = [sum(room[:i]) for i in range(len(sizes))]
        self.lhs, self.rhs = (torch_peers.to_torch(x) for x in (given.lhs_values, given.rhs_values))
        self._device = self.lhs.device
        self.out = torch.zeros(
            (case.problem.d_rows, case.n), dtype=torch.bfloat16, device=self._device
        )
        self._lhs_scales = [
            _padded(torch_peers.to_torch(given.lhs_scales)[s : s + n].t())
            for s, n in zip(starts, sizes, strict=True)
        ]
        blocks = torch_peers.to_torch(given.rhs_scales)
        self._rhs_scales = [_padded(x) for x in blocks.view(len(sizes), -1, blocks.shape[1])]
        weights = [self.rhs[i * case.n] for i in range(len(sizes))]
        self.addresses = {
            "A": self._pointers(weights),
            "B": self._pointers([self.lhs[min(s, len(self.lhs) - 1)] for s in starts]),
            "D": self._pointers([self.out[min(s, len(self.out) - 1)] for s in starts]),
            _A_SCALES: self._pointers(self._rhs_scales),
            _B_SCALES: self._pointers(self._lhs_scales),
        }
        same = functools.partial(torch.full, (len(sizes),), dtype=torch.int32, device=self._device)
        rows = torch.tensor(sizes, dtype=torch.int32, device=self._device)
        k, n = same(case.k), same(case.n)
        self._extents = {"A": (k, n), "B": (k, rows), "D": (n, rows)}
        self.average_rows = max(1, sum(sizes) // len(sizes))

    def _pointers(self, tensors: list[Any]) -> Any:
        torch = torch_peers.import_torch()
        return torch.tensor([x.data_ptr() for x in tensors], dtype=torch.int64, device=self._device)

    def layout(self, name: str, dtype: int) -> ctypes.c_void_p:
        """Returns a layout of matrices without gaps between their columns."""
        rows, columns = self._extents[name]
        extents = (_address(rows), _address(columns), _address(rows))
        return _created("GroupedMatrixLayout", dtype, len(rows), *extents)


def _padded(x: Any) -> Any:
    """Returns a matrix whose rows begin at multiples of four floats."""
    torch = torch_peers.import_torch()
    return torch.nn.functional.pad(x, (0, -x.shape[1] % 4)).contiguous()


def _prepare(operands: GroupedOperands) -> Prepared:
    torch, case = torch_peers.import_torch(), operands.case
    if case.k % 128 or case.n % 16:
        raise NotApplicableError("K must be a multiple of 128 and N of 16")
    groups = _Groups(operands)
    description = _created("MatmulDesc", _COMPUTE_FLOAT32, _FLOAT32)
    for number, kind, value in _DESCRIPTION:
        _set("MatmulDesc", description, number, kind(value))
    for number in (_A_SCALES, _B_SCALES):
        _set("MatmulDesc", description, number, _address(groups.addresses[number]))
    a, b, d = (groups.layout(n, t) for n, t in (("A", _E4M3), ("B", _E4M3), ("D", _BFLOAT16)))
    handle, algorithm = _created(""), _Heuristic()
    _choose(handle, description, (a, b, d, d), groups, algorithm)
    device = groups.out.device
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    one, zero = (torch.tensor([x], dtype=torch.float32, device=device) for x in (1.0, 0.0))
    address = {name: _address(x) for name, x in groups.addresses.items()}

    def product() -> Any:
        _call("cublasLtMatmul", handle, description, _address(one), address["A"], a, address["B"],
              b, _address(zero), address["D"], d, address["D"], d, ctypes.byref(algorithm),
              _address(workspace), ctypes.c_size_t(_WORKSPACE_BYTES), None)  # fmt: skip
        return groups.out

    return torch_peers.prepared_torch(product, version=_library().cublasLtGetVersion())


def _choose(handle: Any, description: Any, layouts: tuple, groups: _Groups, found: Any) -> None:
    """Asks for the algorithm that suits groups of the mean size."""
    preference, number = _created("MatmulPreference"), ctypes.c_int()
    _set("MatmulPreference", preference, _MAX_WORKSPACE, ctypes.c_size_t(_WORKSPACE_BYTES))
    for attribute, value in (
        (_AVERAGE_K, groups.case.k),
        (_AVERAGE_ROWS, groups.case.n),
        (_AVERAGE_COLUMNS, groups.average_rows),
    ):
        # Of 64 bits: 13.8 refuses the 32 that its header speaks of.
        _set("MatmulPreference", preference, attribute, ctypes.c_int64(value))
    _call("cublasLtMatmulAlgoGetHeuristic", handle, description, *layouts, preference, 1,
          ctypes.byref(found), ctypes.byref(number))  # fmt: skip
    if number.value == 0:
        raise NotApplicableError("cuBLASLt has no algorithm for it")


CUBLASLT_GROUPED = Peer(
    "cublaslt_grouped",
    "cuBLASLt grouped block-scaled",
    BLOCK_SCALED,
    ("gpu",),
    _prepare,
    _probe,
    kinds=("ragged", "contiguous", "masked"),
)
