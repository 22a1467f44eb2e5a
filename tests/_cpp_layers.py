# SPDX-License-Identifier: Apache-2.0
"""Tables of test_layering.py about csrc/: who may include whom, and who owns an effect."""

# Folder of csrc/: folders it may include beside itself. The order is that of the call path.
CSRC_LAYERS = {
    "shared": set(),
    "kernels/ptx": {"shared"},
    "kernels/mma": {"kernels/ptx", "shared"},
    "kernels": {"kernels/ptx", "shared"},  # what both families of kernels use
    "kernels/fp8_gemm": {"kernels", "kernels/mma", "kernels/ptx", "shared"},
    "kernels/fp8_quantize": {"kernels", "kernels/ptx", "shared"},
    "driver": set(),
    "jit": {"driver", "shared"},
    "gemm": {"driver", "jit", "shared"},
    "quantize": {"driver", "jit", "shared"},
    "ffi": {"driver", "gemm", "jit", "quantize", "shared"},
    "bindings": {"driver", "ffi", "gemm", "jit", "quantize", "shared"},
    # Stands in for the driver, and runs the kernels over twins of ptx/ and mma/.
    "sim/engine": {"shared", "sim", "sim/device"},
    "sim/device": {"kernels/ptx", "shared", "sim"},
    "sim/kernels": {"kernels/fp8_gemm", "kernels/fp8_quantize", "shared", "sim"},
    "sim": {"driver", "shared", "sim/engine"},
}
# The names of configurations, which the simulator's kernels are found by.
CSRC_EXCEPTIONS = {
    ("sim/kernels", "gemm/config_key.h"),
    ("sim/kernels", "gemm/sim_kernels.h"),
    ("sim/kernels", "quantize/quantize_key.h"),
}
# Libraries, by the first part of an include's name: the only layer that may use each.
LIBRARY_LAYERS = {"nanobind": "bindings", "xla": "ffi"}
# Inside a family of kernels: file, or the start of its name: files of the family it may include.
KERNEL_PARTS = {
    "fp8_gemm/barriers": set(),
    "fp8_gemm/pipeline": set(),
    "fp8_gemm/group_table": {"pipeline"},
    "fp8_gemm/promotion_1d1d": {"promotion"},
    "fp8_gemm/promotion": {"pipeline"},
    "fp8_gemm/tile_scheduler": {"group_table", "pipeline"},
    "fp8_gemm/grouped_tiles": {"contiguous", "k_grouped", "masked", "ragged", "tile_scheduler"},
    **{
        f"fp8_gemm/{kind}": {"tile_scheduler"}
        for kind in ("contiguous", "k_grouped", "masked", "ragged")
    },
    "fp8_gemm/a_scales": {"tile_scheduler"},
    "fp8_gemm/producer": {"a_scales", "pipeline", "tile_scheduler"},
    "fp8_gemm/epilogue": {"barriers", "pipeline", "tile_scheduler"},
    "fp8_gemm/split_k": {"pipeline"},
    "fp8_gemm/consumer": {
        "a_scales",
        "epilogue",
        "pipeline",
        "promotion",
        "split_k",
        "tile_scheduler",
    },
    "fp8_gemm/sm90": {
        "barriers",
        "consumer",
        "grouped_tiles",
        "producer",
        "promotion_1d1d",
    },
    "fp8_quantize/quantize_scale": set(),
    "fp8_quantize/activation": {"quantize_scale"},
    "fp8_quantize/quantize_rows": {"activation", "quantize_scale"},
    "fp8_quantize/quantize_blocks": {"quantize_scale"},
    "fp8_quantize/quantize_transposed": {"quantize_scale", "quantize_rows"},
    "fp8_quantize/sm90": {"quantize_blocks", "quantize_rows", "quantize_transposed"},
}
# System headers device code may name: those that types.h gives the host compiler.
DEVICE_SYSTEM_INCLUDES = {("csrc/shared/types.h", "cstdint")}

# An effect, as a pattern in code: the only files that may have it (prefixes).
CPP_OWNERS = {
    r"\bgetenv\b": (),
    r"\basm\b": ("csrc/kernels/ptx/", "csrc/kernels/mma/", "csrc/sim/engine/fiber."),
    # At a boundary that no exception may cross: Python's, XLA's, and the simulated driver's.
    r"\bcatch\s*\(": ("csrc/bindings/module.cc", "csrc/ffi/", "csrc/sim/"),
    r"\bdlopen\b": ("csrc/driver/driver.cc", "csrc/jit/nvrtc.cc", "csrc/sim/registry.cc"),
    r"\bnvrtc[A-Z]\w+": ("csrc/jit/nvrtc.cc",),
    r"\bcuTensorMapEncode\w*": (
        "csrc/driver/tensor_map.cc",
        "csrc/driver/driver.",
        "csrc/sim/driver.cc",
    ),
    r"\bcuLaunchKernel\w*": (
        "csrc/jit/kernel.cc",
        "csrc/driver/driver.",
        "csrc/sim/driver.cc",
    ),
    r"\b(abort|exit|printf)\s*\(": (),
    r"\bassert\s*\(": (),
}
