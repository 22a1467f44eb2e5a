# SPDX-License-Identifier: Apache-2.0
"""Hooks of MkDocs: pages from Markdown outside of docs/, and links as the site needs them.

Links are written for a code host, relative to the file they stand in. Those that lead to a page of
the site lead there; those to other files of the repository become text, as long as mkdocs.yml names
no repo_url to link to.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

_ROOT = Path(__file__).parent.parent
# Pages of the site: files of the repository, beside those in docs/.
PAGES = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "csrc.md": "csrc/README.md",
    "examples.md": "examples/README.md",
    "security.md": "SECURITY.md",
    "truth.md": "tests/truth/README.md",
}
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_LITERAL = re.compile(r"::$", re.MULTILINE)
_FENCED_OR_LINK = re.compile(
    r"^```.*?^```|\[((?:[^\[\]`]|`[^`]*`)+)\]\((?!https?:|#)([^()\s#]+)(#[^()\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)


class Docstrings(griffe.Extension):
    """Has what docstrings mark in their own way shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames `Example:`, and takes a colon off `::`, before what is indented anyhow."""
        if obj.docstring:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _LITERAL.sub(":", text)


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the pages that lie outside of docs/."""
    for page, path in PAGES.items():
        files.append(File.generated(config, page, content=(_ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Returns a page's text with the links of the site."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {path: name for name, path in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if text is None:  # a block of code
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        name = pages.get(path, path.removeprefix("docs/"))
        if path in pages or (path.startswith("docs/") and files.get_file_from_path(name)):
            return f"[{text}]({name}{anchor or ''})"
        if not (_ROOT / path).exists():
            return match[0]  # for MkDocs to complain of
        return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else text

    return _FENCED_OR_LINK.sub(link, markdown)
