# SPDX-License-Identifier: Apache-2.0
"""README.md for a package index, where links to the repository's files lead nowhere.

A provider of scikit-build-core for the metadata field `readme`, as pyproject.toml names it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

_LOCAL_LINK = re.compile(r"\[([^\[\]]+)\]\((?!https?://)[^()]+\)")


def dynamic_metadata(field: str, _settings: Mapping[str, object]) -> dict[str, str]:
    """Returns README.md with the text of local links in their place."""
    if field != "readme":
        raise ValueError(f"field must be 'readme', got {field!r}")
    text = Path("README.md").read_text(encoding="utf-8")
    return {"content-type": "text/markdown", "text": _LOCAL_LINK.sub(r"\1", text)}
