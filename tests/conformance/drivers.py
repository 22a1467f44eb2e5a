# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver API through ctypes, for a GPU and for the simulator that stands for one.

Both offer the same few functions, so that one `Machine` runs a micro-kernel on either.
"""

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from catalogue import MicroKernel
from problems import Problem, Tensor

NUM_ARGS = 12
_DRIVER_HEADER = Path(__file__).resolve().parents[2] / "csrc/driver/driver.h"
_MAX_DYNAMIC_SMEM = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
_SWIZZLE = {0: 0, 32: 1, 64: 2, 128: 3}  # span in bytes to CUtensorMapSwizzle
_DATA_TYPE = {"uint8": 0, "float16": 6, "float32": 7, "bfloat16": 9}  # CUtensorMapDataType
# Alignment of what the simulator reads as global memory; a GPU's allocations have more.
_ALIGNMENT = 256


class DriverError(RuntimeError):
    """A driver function failed; the message has its name, its code and the simulator's report."""


class _LaunchAttribute(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_uint),
        ("pad", ctypes.c_uint),
        ("cluster", ctypes.c_uint * 3),
        ("rest", ctypes.c_char * 52),
    ]


class _LaunchConfig(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("smem_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    ]


class _Params(ctypes.Structure):
    """Params of micro_kernels.cuh; must start at a multiple of 128 bytes."""

    _fields_ = [
        ("maps", ctypes.c_uint64 * 16 * 2),
        ("input", ctypes.c_uint64),
        ("output", ctypes.c_uint64),
        ("args", ctypes.c_uint32 * NUM_ARGS),
    ]


def _aligned(num_bytes: int, alignment: int = _ALIGNMENT) -> np.ndarray:
    raw = np.zeros(num_bytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + num_bytes]


class Machine:
    """What runs micro-kernels: a function table, an image with all kernels, and memory."""

    def __init__(self, functions: dict, image: bytes) -> None:
        """Takes driver functions by name, and the image that holds the kernels."""
        self._functions = functions
        self._image = image
        self._kernels: dict[str, ctypes.c_void_p] = {}
        self._call("cuInit", 0)

    def run(self, kernel: MicroKernel, problem: Problem) -> bytes:
        """Runs a micro-kernel; returns its `out` and then every output tensor."""
        function = self._function(kernel)
        params = _Params.from_buffer(_aligned(ctypes.sizeof(_Params)))
        out = np.full(4 * problem.out_words, 0xA5, np.uint8)
        buffers = [problem.words.view(np.uint8), out] + [t.memory() for t in problem.tensors]
        addresses = [self._upload(buffer) for buffer in buffers]
        params.input, params.output, *bases = addresses
        for i, (tensor, base) in enumerate(zip(problem.tensors, bases, strict=True)):
            self._encode(params.maps[i], tensor, base)
        for i, arg in enumerate(problem.args):
            params.args[i] = arg & 0xFFFFFFFF
        self._launch(function, kernel, problem.num_ctas, params)
        outputs = [self._download(addresses[1], out)]
        for tensor, base, buffer in zip(problem.tensors, bases, buffers[2:], strict=True):
            if tensor.is_output:
                outputs.append(self._download(base, buffer))
        self._release(addresses)
        return b"".join(outputs)

    def _encode(self, tensor_map, tensor: Tensor, base: int) -> None:
        encoded = _aligned(128)
        rows, columns = tensor.shape
        dims = (ctypes.c_uint64 * 2)(columns, rows)
        strides = (ctypes.c_uint64 * 1)(tensor.pitch_bytes)
        box = (ctypes.c_uint32 * 2)(tensor.box[1], tensor.box[0])
        ones = (ctypes.c_uint32 * 2)(1, 1)
        self._call(
            "cuTensorMapEncodeTiled",
            encoded.ctypes.data_as(ctypes.c_void_p),
            _DATA_TYPE[tensor.type],
            2,
            ctypes.c_void_p(base),
            dims,
            strides,
            box,
            ones,
            0,
            _SWIZZLE[tensor.swizzle],
            0,
            0,
        )
        ctypes.memmove(tensor_map, encoded.ctypes.data, 128)

    def _function(self, kernel: MicroKernel) -> ctypes.c_void_p:
        if kernel.name not in self._kernels:
            library, handle = self._library(kernel), ctypes.c_void_p()
            name = self._kernel_name(kernel).encode()
            self._call("cuLibraryGetKernel", ctypes.byref(handle), library, name)
            self._call("cuKernelSetAttribute", _MAX_DYNAMIC_SMEM, kernel.smem_bytes, handle, 0)
            function = ctypes.c_void_p()
            self._call("cuKernelGetFunction", ctypes.byref(function), handle)
            self._kernels[kernel.name] = function
        return self._kernels[kernel.name]

    def _load(self, image: bytes) -> ctypes.c_void_p:
        library = ctypes.c_void_p()
        nothing = (None, None, 0, None, None, 0)
        self._call("cuLibraryLoadData", ctypes.byref(library), ctypes.c_char_p(image), *nothing)
        return library

    def _launch(self, function, kernel: MicroKernel, num_ctas: int, params: _Params) -> None:
        attribute = _LaunchAttribute(id=_CLUSTER_DIMENSION, cluster=(kernel.cluster, 1, 1))
        config = _LaunchConfig(
            grid=(num_ctas, 1, 1),
            block=(kernel.threads, 1, 1),
            smem_bytes=kernel.smem_bytes,
            attributes=ctypes.pointer(attribute),
            num_attributes=1 if kernel.cluster > 1 else 0,
        )
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        self._call("cuLaunchKernelEx", ctypes.byref(config), function, arguments, None)
        self._synchronize()

    def _call(self, name: str, *arguments: object) -> None:
        status = self._functions[name](*arguments)
        if status != 0:
            raise DriverError(f"{name} returned {status}. {self._report()}")

    def _report(self) -> str:
        return ""

    # Where the two worlds differ.

    def _library(self, kernel: MicroKernel) -> ctypes.c_void_p:
        raise NotImplementedError

    def _kernel_name(self, kernel: MicroKernel) -> str:
        return kernel.name

    def _upload(self, buffer: np.ndarray) -> int:
        raise NotImplementedError

    def _download(self, address: int, like: np.ndarray) -> bytes:
        raise NotImplementedError

    def _release(self, addresses: Sequence[int]) -> None:
        raise NotImplementedError

    def _synchronize(self) -> None:
        raise NotImplementedError


class SimulatedGpu(Machine):
    """The simulator: global memory is this process's own."""

    def __init__(self, library: Path) -> None:
        """Loads a simulator library that has the micro-kernels registered."""
        self._simulator = ctypes.CDLL(str(library))
        entry = self._simulator.Fp8GemmSimDriver
        entry.restype = ctypes.POINTER(ctypes.c_void_p)
        table = entry()
        # The fields of DriverApi, in order.
        names = re.findall(r"\(\*(\w+)\)\(", _DRIVER_HEADER.read_text())
        functions = {}
        for i, name in enumerate(names):
            result = ctypes.c_char_p if name == "last_report" else ctypes.c_int
            functions[name] = ctypes.CFUNCTYPE(result)(table[i])
        self._buffers: dict[int, np.ndarray] = {}
        super().__init__(functions, b"")

    def set_options(self, **options: int) -> None:
        """Sets fields of SimOptions: seed, timing, scheduler, numerics, shadow, num_sms."""
        current = _SimOptions()
        self._simulator.Fp8GemmSimGetOptions(ctypes.byref(current))
        for name, value in options.items():
            setattr(current, name, value)
        self._simulator.Fp8GemmSimSetOptions(ctypes.byref(current))

    def _report(self) -> str:
        return (self._functions["last_report"]() or b"").decode()

    def _library(self, kernel: MicroKernel) -> ctypes.c_void_p:
        return self._load(f"fp8gemm-sim\n{kernel.name}\n".encode())

    def _upload(self, buffer: np.ndarray) -> int:
        memory = _aligned(max(buffer.size, 16))
        memory[: buffer.size] = buffer
        self._buffers[memory.ctypes.data] = memory
        return memory.ctypes.data

    def _download(self, address: int, like: np.ndarray) -> bytes:
        return self._buffers[address][: like.size].tobytes()

    def _release(self, addresses: Sequence[int]) -> None:
        for address in addresses:
            del self._buffers[address]

    def _synchronize(self) -> None:
        pass  # a simulated launch returns when it has run


class _SimOptions(ctypes.Structure):
    _fields_ = [("seed", ctypes.c_uint64)] + [
        (name, ctypes.c_int32) for name in ("timing", "scheduler", "numerics", "shadow", "num_sms")
    ]


class CudaGpu(Machine):
    """The first CUDA device."""

    def __init__(self, cubin: bytes) -> None:
        """Makes the device's primary context current and loads the micro-kernels."""
        driver = ctypes.CDLL("libcuda.so.1")
        versioned = {name: f"{name}_v2" for name in ("cuMemAlloc", "cuMemFree")}
        versioned |= {name: f"{name}_v2" for name in ("cuMemcpyHtoD", "cuMemcpyDtoH")}
        plain = (
            "cuInit cuDeviceGet cuDeviceGetName cuDeviceGetAttribute cuDevicePrimaryCtxRetain"
            " cuCtxSetCurrent cuCtxSynchronize cuDriverGetVersion cuLibraryLoadData"
            " cuLibraryGetKernel cuKernelGetFunction cuKernelSetAttribute cuLaunchKernelEx"
            " cuTensorMapEncodeTiled"
        ).split()
        functions = {name: getattr(driver, name) for name in plain}
        functions |= {name: getattr(driver, symbol) for name, symbol in versioned.items()}
        super().__init__(functions, cubin)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._device = device
        self._cubin_library = self._load(cubin)

    def describe(self) -> dict[str, str]:
        """Returns the device's name and the driver's version."""
        name, version = ctypes.create_string_buffer(128), ctypes.c_int()
        self._call("cuDeviceGetName", name, len(name), self._device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return {"gpu": name.value.decode(), "driver_cuda_version": str(version.value)}

    def _library(self, kernel: MicroKernel) -> ctypes.c_void_p:
        return self._cubin_library

    def _upload(self, buffer: np.ndarray) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc", ctypes.byref(address), ctypes.c_size_t(max(buffer.size, 16)))
        if buffer.size:
            source = buffer.ctypes.data_as(ctypes.c_void_p)
            self._call("cuMemcpyHtoD", address, source, ctypes.c_size_t(buffer.size))
        return address.value

    def _download(self, address: int, like: np.ndarray) -> bytes:
        result = np.empty_like(like)
        target = result.ctypes.data_as(ctypes.c_void_p)
        if result.size:
            source = ctypes.c_uint64(address)
            self._call("cuMemcpyDtoH", target, source, ctypes.c_size_t(result.size))
        return result.tobytes()

    def _release(self, addresses: Sequence[int]) -> None:
        for address in addresses:
            self._call("cuMemFree", ctypes.c_uint64(address))

    def _synchronize(self) -> None:
        self._call("cuCtxSynchronize")
