# SPDX-License-Identifier: Apache-2.0
"""Custom calls of a program, and their handlers called as XLA calls them: xla_stand_in.cc."""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

# Numbers of XLA_FFI_ExecutionStage.
INSTANTIATE, INITIALIZE, EXECUTE = 0, 2, 3
# Numbers of XLA_FFI_DataType by the names of MLIR.
DATA_TYPES = {
    "f8E4M3FN": 20,
    "f8E5M2": 19,
    "bf16": 16,
    "f16": 10,
    "f32": 11,
    "i32": 4,
}
_PRED, _S64, _U64, _F64 = 1, 5, 9, 12
_ARRAY, _DICTIONARY, _SCALAR, _STRING = 1, 2, 3, 4  # XLA_FFI_AttrType


class Buffer(ctypes.Structure):
    """An argument or a result."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_uint64),
    ]


class Attribute(ctypes.Structure):
    """An attribute of a custom call; `number` are the bits of a scalar, or the bytes of a text."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("text", ctypes.c_char_p),
        ("number", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("type", ctypes.c_int32),
    ]


class Context(ctypes.Structure):
    """What a handler asks XLA for."""

    _fields_ = [("state", ctypes.c_void_p), ("stream", ctypes.c_uint64)]


def buffer(type: int, shape: Sequence[int], data: int) -> Buffer:
    """Returns a buffer with an address."""
    return Buffer(type, len(shape), (ctypes.c_int64 * max(1, len(shape)))(*shape), data)


def _attribute(name: str, value: Any) -> Attribute:
    encoded = name.encode(errors="surrogatepass")
    match value:
        case str():
            text = value.encode(errors="surrogatepass")
            return Attribute(encoded, text, len(text), _STRING, 0)
        case bool():
            return Attribute(encoded, None, value, _SCALAR, _PRED)
        case int() if -(2**63) <= value < 2**63:
            return Attribute(encoded, None, value, _SCALAR, _S64)
        case int():
            return Attribute(encoded, None, value, _SCALAR, _U64)
        case float():
            (bits,) = struct.unpack("q", struct.pack("d", value))
            return Attribute(encoded, None, bits, _SCALAR, _F64)
        case list():
            return Attribute(encoded, None, 1, _ARRAY, _S64)
    return Attribute(encoded, None, 0, _DICTIONARY, 0)


class Xla:
    """XLA, as far as a handler sees it."""

    def __init__(self, library: str) -> None:
        """Loads the library of xla_stand_in.cc."""
        self._call = ctypes.CDLL(library).CallHandler
        self._call.restype = ctypes.c_char_p

    def call(
        self,
        handler: Any,
        stage: int,
        context: Context,
        arguments: Sequence[Buffer],
        results: Sequence[Buffer],
        attributes: dict[str, Any],
    ) -> str | None:
        """Calls a handler, a capsule; returns the message of its error, or None."""
        pointer, name = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
        every = sorted(
            (_attribute(*each) for each in attributes.items()), key=lambda each: each.name
        )
        parts = []
        for values, kind in ((arguments, Buffer), (results, Buffer), (every, Attribute)):
            parts += [(kind * max(1, len(values)))(*values), ctypes.c_int64(len(values))]
        address = ctypes.c_void_p(pointer(handler, name(handler)))
        error = self._call(address, stage, ctypes.byref(context), *parts)
        return None if error is None else error.decode(errors="replace")


def custom_calls(lowered: Any) -> list[dict]:
    """Returns target, attributes, and types of operands and results of each call of a program."""
    found = []

    def visit(operation):
        if operation.name == "stablehlo.custom_call":
            attributes = operation.attributes
            target = attributes["call_target_name"].value
            if target.startswith("jax_fp8gemm."):
                config = attributes["mhlo.backend_config"]
                types = {
                    kind: [(str(v.type.element_type), list(v.type.shape)) for v in values]
                    for kind, values in (
                        ("operands", operation.operands),
                        ("results", operation.results),
                    )
                }
                values = {each.name: each.attr.value for each in config}
                found.append({"target": target, "attributes": values, **types})
        for region in operation.regions:
            for block in region:
                for inner in block:
                    visit(inner.operation)

    visit(lowered.compiler_ir("stablehlo").operation)
    return found
