# SPDX-License-Identifier: Apache-2.0
"""Tables of test_layering.py about csrc/: who may include whom, and who owns an effect."""

# Layer of csrc/: layers it may include. The order is that of the call path.
CSRC_LAYERS = {
    "shared": {"shared"},
    "kernels": {"kernels", "shared"},
    "runtime": {"runtime", "shared"},
    "jit": {"jit", "runtime", "shared"},
    "gemm": {"gemm", "jit", "runtime", "shared"},
    "quantize": {"quantize", "jit", "runtime", "shared"},
    "ffi": {"ffi", "gemm", "quantize", "jit", "runtime", "shared"},
    "bindings": {"bindings", "ffi", "gemm", "quantize", "jit", "runtime", "shared"},
    # Stands in for the driver, and compiles the kernels against its own wrappers. It names
    # configurations with two headers, and knows nothing else of gemm and quantize.
    "sim": {"sim", "kernels", "runtime", "shared"},
}
CSRC_EXCEPTIONS = {("sim", "gemm/config_key.h"), ("sim", "quantize/quantize_key.h")}
# Libraries, by the first part of an include's name: the only layer that may use each.
LIBRARY_LAYERS = {"nanobind": "bindings", "xla": "ffi"}
# Inside kernels/: part, by the start of a file's name: parts it may include.
KERNEL_PARTS = {
    "ptx": {"ptx"},
    "mma": {"mma", "ptx"},
    "pipeline": {"ptx"},
    "warp_scan": {"ptx"},
    "group_table": {"pipeline", "warp_scan", "ptx"},
    "promotion": {"pipeline", "ptx"},
    "tile_scheduler": {"group_table", "pipeline", "ptx"},
    "producer": {"pipeline", "tile_scheduler", "ptx"},
    "epilogue": {"pipeline", "tile_scheduler", "ptx"},
    "split_k": {"pipeline", "ptx"},
    "consumer": {"epilogue", "pipeline", "promotion", "split_k", "tile_scheduler", "mma", "ptx"},
    "quantize_scale": {"ptx"},
    "quantize_": {"quantize_scale", "warp_scan", "ptx"},
    "sm90_quantize": {"quantize_"},
    "sm90": {"consumer", "producer", "epilogue", "pipeline", "tile_scheduler", "mma", "ptx"},
}
# System headers device code may name: those that types.h gives the host compiler.
DEVICE_SYSTEM_INCLUDES = {("csrc/shared/types.h", "cstdint")}

# An effect, as a pattern in code: the only files that may have it (prefixes).
CPP_OWNERS = {
    r"\bgetenv\b": (),
    r"\basm\b": ("csrc/kernels/ptx/", "csrc/kernels/mma/", "csrc/sim/engine/fiber."),
    # At a boundary that no exception may cross: XLA's, and the simulated driver's.
    r"\bcatch\s*\(": ("csrc/ffi/", "csrc/sim/"),
    r"\bdlopen\b": ("csrc/runtime/driver.cc", "csrc/runtime/nvrtc.cc"),
    r"\bnvrtc[A-Z]\w+": ("csrc/runtime/nvrtc.cc",),
    r"\bcuTensorMapEncode\w*": (
        "csrc/runtime/tensor_map.cc",
        "csrc/runtime/driver.",
        "csrc/sim/driver.cc",
    ),
    r"\bcuLaunchKernel\w*": (
        "csrc/runtime/module.cc",
        "csrc/runtime/driver.",
        "csrc/sim/driver.cc",
    ),
    r"\b(abort|exit|printf)\s*\(": (),
    r"\bassert\s*\(": (),
}
