# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: docstrings match signatures, examples run, links and names exist."""

import ast
import doctest
import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _nvrtc import find_all
from _source import ROOT

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import environment as environment_lib

FUNCTION_SECTIONS = ("Args", "Returns", "Raises", "Transformations", "Example")
CLASS_SECTIONS = ("Args", "Raises", "Transformations", "Example")
MODULES = (fp8.checkpoint, fp8.deep_gemm, fp8.frameworks, fp8.testing)
M, N, K = 16, 160, 256

# Exported names that are functions or classes; the modules have a test of their own.
PUBLIC = {
    name: value
    for name, value in vars(fp8).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
MODULE_FUNCTIONS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if inspect.isfunction(value)
    and value.__name__ == name  # no alias
    and not name.startswith("_")
    and inspect.getmodule(inspect.unwrap(value)) is module
}
EVERYTHING = {**PUBLIC, **MODULE_FUNCTIONS}
MARKDOWN = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("csrc/*.md")})


def _sections(value) -> dict[str, str]:
    """Splits a docstring at its sections; the text before the first is under ""."""
    parts = re.split(r"^(\w+):\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def _documented_arguments(value) -> list[str]:
    return re.findall(r"^ {4}\*{0,2}(\w+): ", _sections(value).get("Args", ""), re.MULTILINE)


def _parameters(value) -> list[str]:
    return [name for name in inspect.signature(value).parameters if name != "self"]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_every_section(name):
    value = PUBLIC[name]
    wanted = CLASS_SECTIONS if inspect.isclass(value) else FUNCTION_SECTIONS
    if not _parameters(value):
        wanted = [section for section in wanted if section != "Args"]
    sections = _sections(value)
    assert [s for s in wanted if not sections.get(s, "").strip()] == []
    assert sections[""].strip()


@pytest.mark.parametrize("name", EVERYTHING)
def test_arguments_in_docstring_are_those_of_the_signature(name):
    value = EVERYTHING[name]
    documented = _documented_arguments(value)
    assert inspect.getdoc(value), "no docstring"
    if name in PUBLIC or documented:
        assert documented == _parameters(value)


@pytest.mark.parametrize("name", EVERYTHING)
def test_signature_is_annotated(name):
    value = EVERYTHING[name]
    signature = inspect.signature(value)
    missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert missing == []
    if not inspect.isclass(value):
        assert signature.return_annotation is not signature.empty


def _inputs() -> dict:
    """What the examples take for granted."""
    rng = np.random.default_rng(0)
    activations = jnp.asarray(rng.standard_normal((M, K)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((N, K)), jnp.float32)
    x, w = fp8.quantize(activations), fp8.quantize(weight, block=(128, 128))
    out = np.asarray(fp8.gemm(x, w, implementation="xla"))
    functions = {name.rpartition(".")[2]: value for name, value in EVERYTHING.items()}
    return {
        **functions,
        **_grouped_inputs(rng),
        "jax": jax,
        "jnp": jnp,
        "activations": activations,
        "weight": weight,
        "x": x,
        "w": w,
        "out": out,
        "ref": out,
        "values": w.values,
        "scales": w.scales,
    }


def _grouped_inputs(rng) -> dict:
    """The same for products of groups: experts, and tokens in every layout."""

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    rows = fp8.contiguous_alignment()
    return {
        "experts": normal(2, N, K),
        "group_sizes": jnp.asarray([5, M - 5], jnp.int32),
        "group_ids": jnp.asarray([0] * 5 + [-1] * (rows - 5) + [1] * rows, jnp.int32),
        "masked_m": jnp.asarray([3, M], jnp.int32),
        "tokens": normal(M, K),
        "aligned_tokens": normal(2 * rows, K),
        "slots": normal(2, M, K),
        "dy": normal(M, N),
    }


def _quantized(names: dict) -> dict:
    """The experts as the products take them."""
    return {"experts": fp8.quantize(names["experts"], block=(128, 128))}


def _deep_gemm_grouped(names: dict) -> dict:
    experts = fp8.quantize(names["experts"], block=(128, 128))
    x, slots = fp8.quantize(names["aligned_tokens"]), fp8.quantize(names["slots"])
    return {
        "x": x.values,
        "x_scales": x.scales,
        "slots": slots.values,
        "slot_scales": slots.scales,
        "experts": experts.values,
        "expert_scales": experts.scales,
        "m_indices": names["group_ids"],
    }


def _checkpoint_folders(inputs: dict) -> dict:
    """Two folders, one with the checkpoint that the examples read."""
    folder = pathlib.Path(tempfile.mkdtemp())
    name = "model.layers.0.mlp.down_proj.weight"
    fp8.checkpoint.save(folder / "old", {name: inputs["w"]})
    return {"folder": folder / "old", "new_folder": folder / "new"}


# Examples whose names mean something else than in `_inputs`.
SPECIAL_INPUTS = {
    "load": _checkpoint_folders,
    "save": _checkpoint_folders,
    "quantize": lambda d: {"x": d["activations"], "w": d["weight"]},
    "export_checks": lambda d: {"f": lambda x: x + 1, "x": d["activations"]},
    "assert_gemm_close": lambda d: {"gemm": lambda *a: fp8.gemm(*a, implementation="xla")},
    "assert_grouped_gemm_close": _quantized,
    "check_groups": _quantized,
    "m_grouped_fp8_gemm_nt_contiguous": _deep_gemm_grouped,
    "m_grouped_fp8_gemm_nt_masked": _deep_gemm_grouped,
    "k_grouped_fp8_gemm_tn_contiguous": lambda d: {
        "dy": d["w"].values[:128],
        "dy_scales": d["w"].dequantize()[:1],
        "x": d["w"].values[:128],
        "x_scales": d["w"].dequantize()[:1],
        "ks": jnp.asarray([0, 128]),
    },
    "k_grouped_fp8_gemm_nt_contiguous": lambda d: {
        "dy": d["w"].values[:, :128].ravel(),
        "dy_scales": d["w"].dequantize()[:, :1],
        "x": d["w"].values[:, :128].ravel(),
        "x_scales": d["w"].dequantize()[:, :1],
        "ks": jnp.asarray([0, 128]),
    },
    "fp8_gemm_nt": lambda d: {
        "x": d["x"].values,
        "x_scales": d["x"].scales,
        "w": d["w"].values,
        "w_scales": d["w"].scales,
    },
}


@pytest.mark.parametrize("name", [n for n, v in EVERYTHING.items() if "Example" in _sections(v)])
def test_docstring_example_runs(name):
    """Runs the lines in order; a line followed by output must give it."""
    needs_extension = name in ("plan", "precompile", "export_checks")
    if needs_extension and not importlib.util.find_spec("jax_fp8gemm._core"):
        pytest.skip("needs the compiled extension jax_fp8gemm._core")
    if re.search("qwix|qarray", name) and not importlib.util.find_spec("qwix"):
        pytest.skip("needs qwix: make frameworks")
    if name == "precompile" and not find_all():
        pytest.skip("needs NVRTC")
    names = _inputs()
    names |= SPECIAL_INPUTS.get(name.rpartition(".")[2], lambda _: {})(names)
    examples = doctest.DocTestParser().get_examples(_sections(EVERYTHING[name])["Example"])
    assert examples
    for example in examples:
        is_expression = isinstance(ast.parse(example.source).body[0], ast.Expr)
        run = eval if is_expression else exec
        value = run(
            compile(example.source.strip(), name, "eval" if is_expression else "exec"), names
        )
        if example.want:
            assert repr(value) == example.want.strip()


def test_readme_runs():
    """Runs the Python blocks of the README one after the other, as a reader would."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def _broken_links(path: pathlib.Path) -> list[str]:
    """Returns the links of a page of Markdown that lead to no file."""
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", path.read_text())
    return [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert _broken_links(path) == []


def test_links_to_nowhere_are_found(tmp_path):
    (page := tmp_path / "page.md").write_text(
        "[this](page.md), [site](https://a.b/c), [here](#x)\n[gone](no.md#x), [up](../no/)"
    )
    assert _broken_links(page) == ["no.md", "../no/"]


def test_environment_variables_are_documented_and_exist():
    text = "\n".join(path.read_text() for path in MARKDOWN)
    assert set(re.findall(r"\bJAX_FP8GEMM_[A-Z_]+\b", text)) == set(environment_lib.VARIABLES)


def test_stub_names_what_the_extension_has():
    if not importlib.util.find_spec("jax_fp8gemm._core"):
        pytest.skip("needs the compiled extension jax_fp8gemm._core")
    from jax_fp8gemm import _core

    tree = ast.parse((ROOT / "jax_fp8gemm/_core.pyi").read_text())
    stub = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    stub |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign)}
    assert stub == {name for name in vars(_core) if not name.startswith("_")}
