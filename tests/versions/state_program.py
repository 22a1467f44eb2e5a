# SPDX-License-Identifier: Apache-2.0
"""Runs the handlers of state_handler.cc: python state_program.py LIBRARY.

Prints the release and what each found in its state as JSON: 42, or -1 where it had none.
"""

import ctypes
import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jaxlib.version  # noqa: E402
import numpy as np  # noqa: E402

TYPE = "jax_fp8gemm_test.number"


def main(path: str) -> None:
    """Registers both handlers and calls each from a compiled program."""
    jax.devices()  # a handler with state must not be there before the CPU client is
    library = ctypes.CDLL(path)
    library.NumberTypeId.restype = library.NumberTypeInfo.restype = ctypes.c_void_p
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    jax.ffi.register_ffi_type(
        TYPE,
        {
            "type_id": capsule(library.NumberTypeId(), None, None),
            "type_info": capsule(library.NumberTypeInfo(), None, None),
        },
        platform="cpu",
    )
    found = {"jaxlib": jaxlib.version.__version__}
    for name in ("Ours", "Plain"):
        handlers = {
            "instantiate": jax.ffi.pycapsule(library.NumberInstantiate),
            "execute": jax.ffi.pycapsule(library[f"{name}Execute"]),
        }
        target = f"jax_fp8gemm_test.{name}"
        jax.ffi.register_ffi_target(target, handlers, platform="cpu")
        result = jax.ShapeDtypeStruct((), np.int32)
        call = jax.ffi.ffi_call(target, result, has_side_effect=True)
        found[name] = int(jax.jit(lambda call=call: call(value=np.int64(42)))())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
