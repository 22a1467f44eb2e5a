# SPDX-License-Identifier: Apache-2.0
"""The `doctor` command: what is installed, what is found, and what follows for `gemm`."""

import platform
from typing import Any, NamedTuple

import jax
import jaxlib.version

from jax_fp8gemm import __version__
from jax_fp8gemm._src.native import environment, extension, sim_library, tuned
from jax_fp8gemm._src.transforms import platforms


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    text: str
    is_good: bool = True


def report() -> tuple[list[str], bool]:
    """Returns the report's lines, and whether the package itself is whole."""
    findings, core = [*_versions(), *_devices()], None
    try:
        core = extension.core()
        findings.append(Finding("extension", f"loaded, XLA FFI API 0.{core.ffi_api_minor}"))
    except (ImportError, OSError, RuntimeError) as error:
        findings.append(Finding("extension", _first_line(error), is_good=False))
    if core is not None:
        findings += [_driver(core), _compiler(core), _simulation(), _kernel_cache(core)]
        findings.append(_tuned_table(core, extension.planning_gpu("cuda")))
    wrong = environment.complaints()
    for name, text in environment.values().items():
        findings.append(Finding(name, wrong.get(name, text), is_good=name not in wrong))
    lines = [f"{f.name:<22} {'' if f.is_good else _bad(f.name)}{f.text}" for f in findings]
    return [*lines, _verdict({f.name: f.is_good for f in findings})], core is not None


def _versions() -> list[Finding]:
    return [
        Finding("jax_fp8gemm", __version__),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("jax", f"{jax.__version__}, jaxlib {jaxlib.version.__version__}"),
    ]


def _devices() -> list[Finding]:
    try:
        kinds = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
    except RuntimeError as error:
        return [Finding("jax devices", _first_line(error), is_good=False)]
    return [Finding("jax devices", ", ".join(kinds))]


def _driver(core: Any) -> Finding:
    try:
        info = core.device_info("cuda", 0)
    except RuntimeError as error:
        return Finding("gpu", _first_line(error), is_good=False)
    major, minor = divmod(info["driver_version"], 1000)
    return Finding(
        "gpu", f"{info['name']}, {info['sm_count']} SMs, driver for CUDA {major}.{minor // 10}"
    )


def _compiler(core: Any) -> Finding:
    try:
        major, minor = core.nvrtc_version()
    except RuntimeError as error:
        return Finding("nvrtc", _first_line(error), is_good=False)
    return Finding("nvrtc", f"{major}.{minor}, {core.nvrtc_path()}")


def _simulation() -> Finding:
    missing = sim_library.missing()
    return Finding("simulator", missing or "installed, with its kernels", is_good=not missing)


def _kernel_cache(core: Any) -> Finding:
    directory = environment.cache_dir()
    if directory is None:
        return Finding("kernel cache", environment.CACHE_IS_OFF)
    if refusal := core.disk_cache_refusal():
        return Finding("kernel cache", refusal, is_good=False)
    return Finding("kernel cache", f"{len(core.list_disk_cache())} kernels in {directory}")


def _tuned_table(core: Any, gpu: str) -> Finding:
    if not gpu:
        return Finding("tuned table", "none: there is no GPU")
    try:
        return Finding("tuned table", f"{tuned.count(gpu, core.describe_config)} problems")
    except tuned.TableError as error:
        return Finding("tuned table", _first_line(error), is_good=False)


def _bad(name: str) -> str:
    is_variable = name in environment.values()
    return "WRONG VALUE: " if is_variable else "NOT AVAILABLE: "


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _verdict(is_good: dict[str, bool]) -> str:
    if not is_good["extension"]:
        return "The extension does not load: reinstall jax_fp8gemm; only 'xla' works."
    if not is_good["gpu"]:
        return "gemm runs as 'xla' here: there is no Hopper GPU."
    if others := platforms.other_gpus():
        return (
            f"gemm runs as 'xla' here: JAX also sees {', '.join(others)}; hide other GPUs with"
            " CUDA_VISIBLE_DEVICES."
        )
    if not is_good["nvrtc"]:
        return (
            "gemm cannot compile its kernels here: install NVRTC 12.9 or newer with jax[cuda13] or"
            " jax[cuda12]."
        )
    if jax.default_backend() != "gpu":
        return "gemm runs as 'xla' here: JAX does not use the GPU; install jax[cuda13]."
    return "gemm runs as 'cuda' here."
