# SPDX-License-Identifier: Apache-2.0
"""The `doctor` command: what is installed, what is found, and what follows for `gemm`."""

import pathlib
import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jaxlib.version

from jax_fp8gemm._src.native import environment, extension, sim_library, tuned
from jax_fp8gemm._src.native.version import __version__
from jax_fp8gemm._src.tools import doctor_checks
from jax_fp8gemm._src.tools.progress import progress
from jax_fp8gemm._src.transforms import platforms

_INSTALL_CUDA = "pip install 'jax[cuda13]', or 'jax[cuda12]' for a driver before 580"


class Finding(NamedTuple):
    """One line of the report; what is not good has a remedy."""

    name: str
    text: str
    remedy: str = ""

    @property
    def is_good(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.remedy


def report() -> dict[str, Any]:
    """Returns what is found as JSON has it; "ok" says whether the package itself is whole."""
    findings, core = [*_versions(), _devices()], None
    try:
        core = extension.core()
        findings.append(Finding("extension", f"loaded, XLA FFI API 0.{core.ffi_api_minor}"))
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "reinstall it: pip install --force-reinstall jax-fp8gemm; or make develop"
        findings.append(Finding("extension", _first_line(error), remedy))
    if core is not None:
        findings += [_driver(core), _compiler(core), _simulation(), _kernel_cache(core)]
        findings.append(_tuned_table(core, extension.planning_gpu("cuda")))
    wrong = environment.complaints()
    for name, text in environment.values().items():
        remedy = f"unset {name}, or set it to what README says" if name in wrong else ""
        findings.append(Finding(name, wrong.get(name, text), remedy))
    return {
        "ok": core is not None,
        "findings": [f._asdict() | {"ok": f.is_good} for f in findings],
        "verdict": _verdict({f.name: f.is_good for f in findings}),
        "checks": [],
    }


def lines(report: dict[str, Any]) -> list[str]:
    """Returns the report for a terminal."""
    variables, text = environment.values(), []
    for finding in report["findings"]:
        bad = "WRONG VALUE: " if finding["name"] in variables else "NOT AVAILABLE: "
        text.append(f"{finding['name']:<22} {'' if finding['ok'] else bad}{finding['text']}")
        if not finding["ok"]:
            text.append(f"{'':<22} remedy: {finding['remedy']}")
    return [*text, report["verdict"]]


def checks(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the kept kernels' state, then a product of every kind on every device."""
    if not report["ok"]:
        return  # the kernels cannot be asked for
    directory = environment.cache_dir()
    if directory is not None and not (core := extension.core()).disk_cache_refusal():
        faults = list(kernel_faults(core))
        problem = "" if not faults else f"{len(faults)} bad: python -m jax_fp8gemm cache clear"
        yield {"kind": "kernel cache", "ok": not faults, "problem": problem}
    yield from doctor_checks.run()


def kernel_faults(core: Any) -> Iterator[tuple[str, str]]:
    """Reads every kept kernel; yields the name of each that would not be loaded, and why."""
    names = [name for name, *_ in core.list_disk_cache()]
    for name in progress(names, "verify", len(names)):
        if fault := core.disk_entry_fault(name):
            yield name, fault


def check_line(check: dict[str, Any]) -> str:
    """Returns one check for a terminal."""
    where = f"{check['device']} {check['implementation']}" if "device" in check else ""
    return f"{where:<11} {check['kind']:<24} {check['problem'] or 'ok'}"


def _versions() -> list[Finding]:
    return [
        Finding("jax_fp8gemm", __version__),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("jax", f"{jax.__version__}, jaxlib {jaxlib.version.__version__}"),
    ]


def _devices() -> Finding:
    try:
        kinds = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
    except RuntimeError as error:
        remedy = f"set JAX_PLATFORMS=cpu, or install what it names: {_INSTALL_CUDA}"
        return Finding("jax devices", _first_line(error), remedy)
    return Finding("jax devices", ", ".join(kinds))


def _driver(core: Any) -> Finding:
    try:
        info = core.device_info()
    except RuntimeError as error:
        remedy = "none for a machine without a GPU; else install NVIDIA's driver, 525 or later"
        return Finding("gpu", _first_line(error), remedy)
    major, minor = divmod(info["driver_version"], 1000)
    capability = ".".join(map(str, info["compute_capability"]))
    text = (
        f"{info['name']}, compute capability {capability}, {info['sm_count']} SMs, driver for CUDA"
        f" {major}.{minor // 10}, {_mapped('libcuda.so')}"
    )
    remedy = "" if capability == doctor_checks.HOPPER else "hide it with CUDA_VISIBLE_DEVICES"
    return Finding("gpu", text, remedy)


def _mapped(library: str) -> str:
    """Returns the path of a library of this process."""
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    paths = (line.split(maxsplit=5)[5] for line in maps if line.count(" ") > 5 and "/" in line)
    return next((path for path in paths if pathlib.Path(path).name.startswith(library)), library)


def _compiler(core: Any) -> Finding:
    try:
        major, minor = core.nvrtc_version()
    except RuntimeError as error:
        return Finding("nvrtc", _first_line(error), f"{_INSTALL_CUDA}; nvidia-cuda-nvrtc does too")
    return Finding("nvrtc", f"{major}.{minor}, {core.nvrtc_path()}")


def _simulation() -> Finding:
    missing = sim_library.missing()
    remedy = "install a wheel, or make develop in a checkout" if missing else ""
    return Finding("simulator", missing or "installed, with its kernels", remedy)


def _kernel_cache(core: Any) -> Finding:
    directory = environment.cache_dir()
    if directory is None:
        return Finding("kernel cache", environment.CACHE_IS_OFF)
    if refusal := core.disk_cache_refusal():
        remedy = f"make it yours alone, or set {environment.CACHE_DIR} to another directory"
        return Finding("kernel cache", refusal, remedy)
    entries = core.list_disk_cache()
    size_mib = sum(size_bytes for _, _, size_bytes in entries) / 2**20
    limit_mib = environment.cache_limit_bytes() >> 20
    text = f"{len(entries)} kernels, {size_mib:.1f} of at most {limit_mib} MiB, in {directory}"
    return Finding("kernel cache", text)


def _tuned_table(core: Any, gpu: str) -> Finding:
    if not gpu:
        return Finding("tuned table", "none: there is no GPU")
    try:
        return Finding("tuned table", f"{tuned.count(gpu)} problems")
    except tuned.TableError as error:
        remedy = f"unset {environment.TUNED}, or make the table anew with tune"
        return Finding("tuned table", _first_line(error), remedy)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _verdict(is_good: dict[str, bool]) -> str:
    if not is_good["extension"]:
        return "The extension does not load: reinstall jax_fp8gemm; only 'xla' works."
    if others := platforms.other_gpus():
        return (
            f"gemm runs as 'xla' here: JAX also sees {', '.join(others)}; hide other GPUs with"
            " CUDA_VISIBLE_DEVICES."
        )
    if not is_good["gpu"]:
        return "gemm runs as 'xla' here: there is no Hopper GPU."
    if not is_good["nvrtc"]:
        return (
            "gemm cannot compile its kernels here: install NVRTC 12.9 or newer with jax[cuda13] or"
            " jax[cuda12]."
        )
    if jax.default_backend() != "gpu":
        return "gemm runs as 'xla' here: JAX does not use the GPU; install jax[cuda13]."
    return "gemm runs as 'cuda' here."
