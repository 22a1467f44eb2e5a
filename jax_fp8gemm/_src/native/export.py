# SPDX-License-Identifier: Apache-2.0
"""export_checks: what `jax.export` needs to accept this package's custom calls."""

import jax.export

from jax_fp8gemm._src.native import extension


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

    Example:
        >>> jax.export.export(jax.jit(f), platforms=["cuda"], disabled_checks=export_checks())(x)
    """
    return [jax.export.DisabledSafetyCheck.custom_call(name) for name in extension.TARGET_NAMES]
