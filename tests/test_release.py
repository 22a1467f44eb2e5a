# SPDX-License-Identifier: Apache-2.0
"""What a release says about itself: version, licences of what is linked in, README, the sdist."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib

import pytest
from _source import ROOT

import jax_fp8gemm as fp8

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTICES = ROOT / "THIRD_PARTY_NOTICES.txt"
# What a build needs beside a compiler, which the test extra brings.
BUILD_TOOLS = ("scikit_build_core", "nanobind", "cmake", "ninja", "jaxlib")


def test_version_is_that_of_the_changelog_and_of_the_citation():
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest[1] == citation[1] == fp8.__version__
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT


def test_readme_of_an_index_has_no_local_links():
    path = ROOT / ".ci" / "index_readme.py"
    spec = importlib.util.spec_from_file_location("index_readme", path)
    provider = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(provider)
    readme = (ROOT / "README.md").read_text()
    text = provider.dynamic_metadata("readme", {})["text"]
    links = re.compile(r"\]\(([^)]*)\)")
    assert [link for link in links.findall(text) if not link.startswith("https://")] == []
    remote = [link for link in links.findall(readme) if link.startswith("https://")]
    assert links.findall(text) == remote and "`python -m jax_fp8gemm`" in text
    # The words of a link stay.
    assert "Verification\nstatus says exactly what" in text


def _words(text: str) -> str:
    return " ".join(re.sub(r"^ \*", "", text, flags=re.MULTILINE).split())


def test_notices_are_those_of_what_is_linked_in():
    files = importlib.metadata.files("nanobind")
    notices = _words(NOTICES.read_text())
    (license_file,) = (f for f in files if f.name == "LICENSE")
    (robin_map,) = (f for f in files if f.name == "robin_map.h")
    mit = re.match(r"/\*\*\n(.*?)\n \*/", robin_map.locate().read_text(), re.DOTALL)[1]
    assert _words(license_file.locate().read_text()) in notices
    assert _words(mit) in notices
    assert "Copyright 2023 The OpenXLA Authors." in notices
    assert NOTICES.name in PROJECT["license-files"]


@pytest.mark.slow
def test_sdist_builds_without_a_network_and_its_demo_runs(tmp_path):
    for name in BUILD_TOOLS:
        assert importlib.util.find_spec(name), f"the test extra brings {name}"
    # A checkout that was built in must not leak into the sdist.
    program = "from scikit_build_core.build import build_sdist as b; import sys; b(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        sdist.extractall(tmp_path, filter="data")
    assert not [n for n in names if n.endswith(".so") or n.startswith(("build/", "dist/", ".venv"))]
    # The demo's environment: that of this process, by its path, with pip on no network.
    root = tmp_path / archive.name.removesuffix(".tar.gz")
    subprocess.run([sys.executable, "-m", "venv", root / ".venv"], check=True)
    (site,) = (root / ".venv").glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "of_this_process.pth").write_text("\n".join(here))
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    environment |= {"JAX_PLATFORMS": "cpu", "PATH": f"{root}/.venv/bin:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        ["make", "demo"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert re.search(r"error of the gemm", run.stdout)
    where = [root / ".venv/bin/python", "-c", "import jax_fp8gemm; print(jax_fp8gemm.__file__)"]
    found = subprocess.run(where, check=True, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert found.stdout.startswith(str(root))
