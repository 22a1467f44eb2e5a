# SPDX-License-Identifier: Apache-2.0
"""Writes files whole or not at all."""

import os
import pathlib
import tempfile


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes or replaces a file; its folder is created where it is missing.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a name that nobody else has, since hosts may write to one folder at once.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
