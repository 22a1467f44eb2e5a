# SPDX-License-Identifier: Apache-2.0
"""Programs that leave the process: what `jax.export` and XLA need to know of the custom calls."""

import jax.export

from jax_fp8gemm._src.native import extension


def register_targets() -> None:
    """Registers this package's custom calls with XLA.

    Importing the package does it, so that a process can run programs that another one exported or
    compiled (`jax.export`, `jax.experimental.serialize_executable`, XLA's cache) without calling
    anything of the package. An import says nothing where the compiled extension does not load, as
    plain JAX works without it; this function then raises. Calling it again changes nothing.

    Returns:
        None.

    Raises:
        ImportError: The extension is missing, or was built for another Python or platform.
        RuntimeError: XLA refuses a target, for example one of an incompatible release.

    Transformations:
        None: it takes and returns no arrays.

    Example:
        >>> register_targets()
    """
    extension.core()


def export_checks() -> list[jax.export.DisabledSafetyCheck]:
    """Returns the checks to disable when exporting a program that calls this package's kernels.

    `jax.export` refuses custom calls that it does not know. The names of this package's carry
    a version, and a program that was exported with one keeps its meaning.

    Returns:
        One `jax.export.DisabledSafetyCheck` per custom call target.

    Raises:
        Nothing.

    Transformations:
        None: it takes and returns no arrays.

    The process that runs the program imports this package first, which registers the custom calls;
    see `register_targets`.

    Example:
        >>> jax.export.export(jax.jit(f), platforms=["cuda"], disabled_checks=export_checks())(x)
    """
    return [jax.export.DisabledSafetyCheck.custom_call(name) for name in extension.TARGET_NAMES]
