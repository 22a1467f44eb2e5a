# SPDX-License-Identifier: Apache-2.0
"""The site: what is on it, and in a browser that its pages render and its search finds.

Needs `make docs`, and the browser a chromium (`apt-get install chromium`).
"""

import functools
import http.server
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import pytest
import test_docs
from _source import ROOT

API = (ROOT / "docs" / "api.md").read_text()
# Notebooks, and what one of their cells has put out.
NOTEBOOKS = {
    "first_steps/": r"largest difference \d",
    "train/": "gradients agree in every bit: True",
    "serve/": "device memory is the bound",
    "read_a_kernel/": "late True",
}
# A page of each other kind, and what it shows when it is rendered.
PAGES = {
    "": "Verification status",  # README.md
    "api/": "preferred_element_type",  # from docstrings
    "csrc/": "ffi/gemm_handlers.cc",  # from another folder
    "kernel_1d2d/": "producer",  # a guide
    "results/": "not measured",
    "glossary/": "1d2d",
    "changelog/": "0.1.0",
}


def test_api_page_has_every_public_name_once():
    listed = re.findall(r"^::: jax_fp8gemm\.(\S+)$", API, re.MULTILINE)
    modules = {module.__name__.rpartition(".")[2] for module in test_docs.MODULES}
    classes = {name for name in listed if name.partition(".")[0] in modules and name[-1] != "_"}
    functions = set(test_docs.EVERYTHING)
    assert len(listed) == len(set(listed))
    assert set(listed) >= functions
    # Beside the functions, only classes that users meet.
    assert set(listed) - functions <= {"checkpoint.Checkpoint", "checkpoint.Stored"} & classes


def test_every_notebook_is_listed():
    assert {f"{path.stem}/" for path in ROOT.glob("docs/*.py")} == set(NOTEBOOKS)


def _not_executed(page: pathlib.Path) -> str | None:
    """Returns what shows that a notebook was not executed without a complaint, if anything does."""
    text = page.read_text()
    numbers = re.findall(r"In\xa0\[([^\]]*)\]", text)
    if not numbers or numbers != [str(i + 1) for i in range(len(numbers))]:
        return f"cells are numbered {numbers}"
    complaint = re.search(r'jupyter\.stderr"[^>]*>\s*<pre>(.{0,500})', text, re.DOTALL)
    return complaint and complaint[1]


def _broken_links(folder: pathlib.Path) -> list[str]:
    """Returns pages with links to no page."""
    broken = []
    for page in sorted(page for page in folder.rglob("*.html") if page.name != "404.html"):
        for link in re.findall(r'<a [^>]*?href="([^"#?:]+)["#?]', page.read_text()):
            target = page.parent / link
            if not (target / "index.html" if target.is_dir() else target).is_file():
                broken.append(f"{page.relative_to(folder).as_posix()}: {link}")
    return broken


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing of what was asked for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site, built anew."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    options = dict(cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})  # as `make docs`
    run = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def site(folder):
    """Address of the site."""
    handler = functools.partial(_Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(site):
    """A browser without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make docs")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser):
    """A page of the browser, which must meet no error and ask nobody else for anything."""
    page, errors = browser.new_page(), []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.on("request", lambda r: None if r.url.startswith(site) else errors.append(r.url))
    yield page
    page.wait_for_load_state("networkidle")
    page.close()
    assert errors == []


@pytest.mark.slow
def test_links_lead_to_pages(folder):
    """MkDocs sees to those of Markdown, and not to those of notebooks."""
    assert len(list(folder.rglob("*.html"))) > 20 and _broken_links(folder) == []


def test_links_to_no_page_are_found(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "api" / "index.html").write_text('<a href="../">home</a><a class="x" href="gone/">')
    links = [f'<a href="{link}">' for link in ("api/", "api/#gemm", "#x", "no.html#y", "empty/")]
    (tmp_path / "index.html").write_text("\n".join(links))
    assert _broken_links(tmp_path) == [
        "api/index.html: gone/",
        "index.html: no.html",
        "index.html: empty/",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.strip("/"))
def test_notebook_is_executed(folder, path):
    assert _not_executed(folder / path / "index.html") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.strip("/"))
def test_notebook_shows_what_it_puts_out(site, page, path):
    assert page.goto(f"{site}/{path}").ok
    shown = page.locator("article .jp-OutputArea-output").all_inner_texts()
    assert re.search(NOTEBOOKS[path], "\n".join(shown))
    assert page.locator("article h1").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.strip("/") or "home")
def test_page_renders(site, page, path):
    assert page.goto(f"{site}/{path}").ok
    article = page.locator("article")
    assert PAGES[path] in article.inner_text()
    assert article.locator("h1").count() == 1


@pytest.mark.slow
def test_search_finds_a_function(site, page):
    page.goto(site)
    page.locator("input[data-md-component=search-query]").click()
    page.keyboard.type("grouped_gemm_masked")
    results = page.locator(".md-search-result__link")
    results.first.wait_for(timeout=30_000)
    links = [link.get_attribute("href") for link in results.all()]
    assert any(re.search(r"/api/.*#jax_fp8gemm.grouped_gemm_masked$", link) for link in links)


@pytest.mark.slow
def test_broken_links_fail_the_build(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs: make docs")
    for name in (".ci", "benchmarks", "csrc", "examples", "jax_fp8gemm", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for path in filter(pathlib.Path.is_file, ROOT.iterdir()):
        shutil.copy(path, tmp_path)
    settings = (ROOT / "mkdocs.yml").read_text().replace("execute: true", "execute: false")
    (tmp_path / "mkdocs.yml").write_text(settings)
    with (tmp_path / "docs" / "tuning.md").open("a") as page:
        page.write("\n[x](no_such_page.md), [y](glossary.md#no-such-word)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    # Built without executing them, which must not pass for having done so.
    pages = [tmp_path / "build" / "site" / path / "index.html" for path in NOTEBOOKS]
    assert all("cells are numbered" in str(_not_executed(page)) for page in pages)
    faults = [line for line in run.stderr.splitlines() if line.startswith("WARNING")]
    assert len(faults) == 2, faults
    assert "no_such_page.md" in faults[0] + faults[1] and "#no-such-word" in faults[0] + faults[1]
