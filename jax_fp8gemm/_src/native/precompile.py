# SPDX-License-Identifier: Apache-2.0
"""precompile: the kernels of a traced program into the cache, on any machine."""

import concurrent.futures
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax

from jax_fp8gemm._src.native import bundle as bundle_lib
from jax_fp8gemm._src.native import extension, gemm_problem, ranking
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.operands import checks

_LOGGER = logging.getLogger("jax_fp8gemm")
# The call that stands for a product until XLA's partitioner has sharded it.
_UNSHARDED = "CustomSPMDPartitioning"


class Kernel(NamedTuple):
    """A custom call of a program: its problem, and the configuration it names or ""."""

    problem: Problem
    config: str
    pdl: bool


class Compiled(NamedTuple):
    """One kernel in the cache."""

    config: str
    size_bytes: int
    seconds: float

    def __str__(self) -> str:
        """Returns a line for a log."""
        return f"{self.config}: {self.size_bytes} bytes in {self.seconds:.2f} s"


def precompile(
    traced: jax.stages.Traced,
    *,
    num_sms: int | None = None,
    gpu: str | None = None,
    jobs: int = 4,
    bundle: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Compiles the kernels that a traced program calls on a GPU, into the cache on disk.

    Compiling the program itself, later and on the machine with the GPU, then finds every kernel.
    Needs NVRTC, but no GPU, and compiles nothing else of the program. Each kernel is logged when it
    is there, by the logger "jax_fp8gemm" with level INFO.

    Args:
        traced: `jax.jit(function).trace(*args)`, of arrays or of `jax.ShapeDtypeStruct`s. Its
            products must not be sharded by an automatic mesh: their parts are only known once the
            program is compiled. A warning tells how many were.
        num_sms: SMs of the GPU that will run the program, 1 to 1024; None for what it was traced
            for: those of this machine's first GPU, or of an H100 SXM where there is none.
        gpu: The model of that GPU, as `jax.Device.device_kind` names it, whose tuned table is
            used; None for that of this machine's first GPU, if any.
        jobs: How many kernels to compile at a time, at least 1.
        bundle: A file to write the kernels into as well, for `python -m jax_fp8gemm cache import`
            on machines with the same package and NVRTC; None for none.

    Returns:
        The keys of the configurations, sorted; empty if the program calls no kernel.

    Raises:
        TypeError: `traced` is not traced, a number is not an int, or `bundle` is no path.
        ValueError: `num_sms` or `jobs` is out of range.
        RuntimeError: NVRTC is missing, or a kernel does not compile.
        OSError: `bundle` cannot be written; where its folder does not exist, before anything is
            compiled.

    Transformations:
        None: it takes and returns no arrays.

    Example:
        >>> layer = jax.jit(lambda x, w: gemm(x, w))
        >>> keys = precompile(layer.trace(x, w))
    """
    op_name = "precompile"
    what = "jax.jit(function).trace(*args)"
    checks.instance(op_name, "traced", traced, jax.stages.Traced, what)
    num_sms = checks.num_sms(op_name, num_sms)
    jobs = checks.extent(op_name, "jobs", jobs, 1)
    bundle_path = None if bundle is None else bundle_lib.checked_path(op_name, bundle)
    lowered = traced.lower(lowering_platforms=("cuda",))
    module = cast(Any, lowered.compiler_ir("stablehlo")).operation
    keys = {_key(kernel, num_sms, gpu) for kernel in kernels_of(module)}
    keys = sorted(keys | quantizers_of(module))
    configs = [compiled.config for compiled in compile_keys(keys, jobs)]
    if bundle_path is not None:
        bundle_lib.write(bundle_path, configs)
    return configs


def kernels_of(module: Any) -> list[Kernel]:
    """Returns the calls of the package's kernels in a module of StableHLO, in its order."""
    kernels, unsharded = [], 0
    for target, attributes in _calls(module):
        unsharded += target == _UNSHARDED
        if target == extension.GEMM_TARGET:
            kernels.append(_kernel(_fields(attributes)))
    if unsharded:
        warnings.warn(
            f"precompile: an automatic mesh shards {unsharded} operations of this program, and"
            " their kernels are only known once it is compiled.",
            RuntimeWarning,
            stacklevel=3,
        )
    return kernels


def quantizers_of(module: Any) -> set[str]:
    """Returns the keys of the quantize kernels that a module of StableHLO calls."""
    names = ("layout", "x_dtype", "dtype", "scale_format")
    every = [
        _fields(each) for target, each in _calls(module) if target == extension.QUANTIZE_TARGET
    ]
    return {extension.core().quantize_key(*(fields[name] for name in names)) for fields in every}


def _calls(module: Any) -> Iterator[tuple[str, Any]]:
    """Yields target and attributes of every custom call."""
    for operation in _operations(module):
        if "call_target_name" in operation.attributes:
            yield operation.attributes["call_target_name"].value, operation.attributes


def _fields(attributes: Any) -> dict[str, Any]:
    """Returns what the caller of a custom call gave it."""
    return {pair.name: pair.attr.value for pair in attributes["mhlo.backend_config"]}


def _operations(operation: Any) -> Iterator[Any]:
    yield operation
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield from _operations(inner.operation)


def _kernel(attributes: Mapping[str, Any]) -> Kernel:
    """Returns the call with these attributes, as calls.matmul wrote them."""
    fields = {name: attributes[name] for name in Problem._fields}
    problem = gemm_problem.from_fields(fields)
    return Kernel(problem, attributes["config"], attributes["pdl"])


def _key(kernel: Kernel, num_sms: int | None, gpu: str | None) -> str:
    """Returns the configuration that the call gets when its program is compiled."""
    config = kernel.config
    if not config or num_sms or gpu is not None:
        problem = kernel.problem
        if num_sms:
            problem = problem._replace(num_sms=num_sms)
        config = best_key(problem, gpu)
    return config + (".pdl" if kernel.pdl else "")


def best_key(problem: Problem, gpu: str | None = None) -> str:
    """Returns the configuration that the heuristics choose for a GPU; see `ranking.rank`."""
    return ranking.rank(problem, backend="cuda", gpu=gpu)[0]["config"]


def compile_keys(keys: Sequence[str], jobs: int) -> Iterator[Compiled]:
    """Compiles kernels into the cache, several at a time; yields them in order.

    Raises:
        RuntimeError: NVRTC is missing, or a kernel does not compile.
    """
    core = extension.core()
    if keys:
        core.nvrtc_version()  # raises once, before the threads do, where there is no compiler

    def compile_one(config: str) -> Compiled:
        start = time.perf_counter()
        compiled = Compiled(config, len(core.kernel_image(config)), time.perf_counter() - start)
        _LOGGER.info("compiled %s", compiled)
        return compiled

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(compile_one, keys)
