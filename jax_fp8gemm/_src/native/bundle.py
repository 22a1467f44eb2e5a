# SPDX-License-Identifier: Apache-2.0
"""Bundles: compiled kernels in one file, for the caches of other machines.

A file is a line that names its format, a line with the SHA-256 digest of what follows, a line of
JSON that lists the kernels, and their machine code, one after the other. A kernel comes with its
cache key, so that one which this machine would make otherwise is told apart, whatever the reason.
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax_fp8gemm._src.native import environment, extension, files

_NAME = b"jax_fp8gemm kernels, format "
_FORMAT = _NAME + b"1"


class _Kernel(NamedTuple):
    """What the list has of a kernel."""

    config: str
    key: str
    size_bytes: int


def checked_path(op_name: str, path: Any) -> pathlib.Path:
    """Returns where a bundle is to be written.

    Raises:
        TypeError: It is no path.
        FileNotFoundError: Its folder does not exist, or it is one itself.
    """
    try:
        target = pathlib.Path(os.fsdecode(path))
    except TypeError:
        got = type(path).__name__
        raise TypeError(f"{op_name}: bundle must be a path, got {got}.") from None
    if target.is_dir() or not target.parent.is_dir():
        raise FileNotFoundError(
            f"{op_name}: bundle must be a file in a folder that exists, got {str(target)!r}."
        )
    return target


def write(path: str | os.PathLike[str], configs: Sequence[str]) -> None:
    """Writes kernels into a bundle, whole or not at all, compiling those that are in no cache.

    Raises:
        OSError: The file cannot be written.
        RuntimeError: NVRTC is missing, or a kernel does not compile.
    """
    core, path = extension.core(), pathlib.Path(path)
    images = [core.kernel_image(config) for config in configs]
    kernels = [
        _Kernel(config, core.cache_key(config), len(image))._asdict()
        for config, image in zip(configs, images, strict=True)
    ]
    content = b"\n".join([json.dumps(kernels).encode(), b"".join(images)])
    digest = hashlib.sha256(content).hexdigest().encode()
    files.write(path, b"\n".join([_FORMAT, digest, content]))


def unpack(path: str | os.PathLike[str]) -> list[str]:
    """Puts the kernels of a bundle into the cache on disk; returns their configurations.

    All are checked before the first is written. The digest finds accidents, not attackers: a bundle
    is code, and what is compared are cache keys.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no bundle, is damaged, has a kernel that this package and this NVRTC would
            not make, or is larger than the cache may be.
        RuntimeError: NVRTC is missing, or the cache cannot be written.
    """
    core, path = extension.core(), pathlib.Path(path)
    core.nvrtc_version()  # raises where there is none, and so no key of a kernel
    kernels, images = _read(path)
    for kernel in kernels:
        if why := _why_not_ours(kernel):
            raise ValueError(
                f"{path}: kernel {kernel.config[:200]!r} is not for this machine: {why}"
            )
    limit_bytes = environment.cache_limit_bytes()
    size_bytes = sum(len(kernel.key.encode()) + kernel.size_bytes for kernel in kernels)
    if size_bytes > limit_bytes:
        raise ValueError(
            f"{path} has {size_bytes} bytes of kernels, and {environment.CACHE_LIMIT} lets the"
            f" cache keep {limit_bytes}"
        )
    at = 0
    for kernel in kernels:
        if failure := core.store_kernel(kernel.config, images[at : at + kernel.size_bytes]):
            raise RuntimeError(failure)
        at += kernel.size_bytes
    return [kernel.config for kernel in kernels]


def _read(path: pathlib.Path) -> tuple[list[_Kernel], bytes]:
    """Returns what a bundle lists, and the machine code of all."""
    name, _, rest = path.read_bytes().partition(b"\n")
    if not name.startswith(_NAME):
        raise ValueError(f"{path} is no bundle of kernels, as precompile --bundle makes them")
    if name != _FORMAT:
        theirs, ours = name[len(_NAME) :][:20], _FORMAT[len(_NAME) :]
        raise ValueError(f"{path} is of format {theirs!r}, and this package reads {ours!r}")
    digest, _, content = rest.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged: its digest is wrong")
    head, _, images = content.partition(b"\n")
    try:
        kernels = [_listed(fields) for fields in json.loads(head)]
    except (KeyError, RecursionError, TypeError, ValueError):
        raise ValueError(f"{path}: its list of kernels is wrong") from None
    if sum(kernel.size_bytes for kernel in kernels) != len(images):
        raise ValueError(f"{path}: its list of kernels is not that of its {len(images)} bytes")
    return kernels, images


def _listed(fields: Any) -> _Kernel:
    kernel = _Kernel(**fields)
    kinds = _Kernel.__annotations__.values()
    if not all(type(field) is kind for field, kind in zip(kernel, kinds, strict=True)):
        raise TypeError("a field of another type")
    kernel.key.encode()  # raises for half of a surrogate pair
    if not (kernel.config.isascii() and kernel.config.isprintable()):
        raise ValueError("a configuration that is no key")
    if kernel.size_bytes < 1:
        raise ValueError("a kernel without code")
    return kernel


def _why_not_ours(kernel: _Kernel) -> str:
    """Returns what is other in this machine's kernel of the configuration; empty for nothing."""
    try:
        ours = extension.core().cache_key(kernel.config)
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)[:400]
    if ours == kernel.key:
        return ""
    pairs = itertools.zip_longest(kernel.key.split("\n"), ours.split("\n"))
    there, here = next(pair for pair in pairs if pair[0] != pair[1])
    return f"{(there or '')[:200]!r} in its key is {(here or '')[:200]!r} here"
