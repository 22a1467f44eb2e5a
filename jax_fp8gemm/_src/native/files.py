# SPDX-License-Identifier: Apache-2.0
"""Writes files whole or not at all."""

import pathlib
import secrets


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes or replaces a file; its folder is created where it is missing.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a name that nobody else has, since hosts may write to one folder at once.
    temporary = path.with_name(f"jax_fp8gemm-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
