# SPDX-License-Identifier: Apache-2.0
"""Structure of the sources: who may include whom, who owns an effect, how big pieces are.

The rules are those of CONTRIBUTING.md; the tables here are their exact form. Who may import whom is
in pyproject.toml, and `make lint` checks it.
"""

import re
import tomllib
from pathlib import PurePath

import pytest
from _cpp_layers import (
    CPP_OWNERS,
    CSRC_EXCEPTIONS,
    CSRC_LAYERS,
    DEVICE_SYSTEM_INCLUDES,
    KERNEL_PARTS,
    LIBRARY_LAYERS,
)
from _source import (
    CPP_SUFFIXES,
    ROOT,
    cpp_code,
    cpp_functions,
    includes,
    is_generated,
    python_code,
    read,
    source_files,
)

MAX_FILE_LINES = 400
MAX_HOST_FUNCTION_LINES = 60
MAX_DEVICE_FUNCTION_LINES = 120
MAX_NESTING = 4
MAX_COLUMNS = 100

# An effect, as a pattern in code: the only files that may have it (prefixes).
PYTHON_OWNERS = {
    r"\bos\.(environ|getenv)\b": ("jax_fp8gemm/_src/native/environment.py",),
    r"\bjax\.ffi\b": (
        "jax_fp8gemm/_src/native/calls.py",
        "jax_fp8gemm/_src/native/extension.py",
    ),
    r"\b_core\b": ("jax_fp8gemm/_src/native/extension.py",),
    r"\bprint\s*\(": ("jax_fp8gemm/_src/tools/",),
    r"^\s*assert\b": (),
    r"\bexcept\s*:": (),
    r"\bexcept ImportError:\s*pass\b": (),
    # JAX's binding of CUPTI, without which kernels are timed by the wall clock.
    r"\bjax\._src\b": ("jax_fp8gemm/_src/tools/tuning/timers.py",),
}

# A line of each effect, in Python or C++.
EFFECTS = """
os.environ["X"]; jax.ffi.pycapsule(x); import jax_fp8gemm._core; print(x); from jax._src import x
assert x
except:
except ImportError: pass
getenv("X"); asm(""); try {} catch (...) {} dlopen("x"); nvrtcVersion(); abort();
cuTensorMapEncodeTiled(); cuLaunchKernelEx(); { assert(x); }
"""

UNNUMBERED_TODO = re.compile(r"(?://|#) *TODO(?!\(#\d+\): )")

CPP_FILES = source_files(*CPP_SUFFIXES)
CSRC_FILES = [path for path in CPP_FILES if path.parts[0] == "csrc"]
PYTHON_FILES = source_files(".py")
PACKAGE_FILES = [path for path in PYTHON_FILES if path.parts[0] == "jax_fp8gemm"]


def _folder(path: PurePath) -> str:
    """Row of CSRC_LAYERS for a file, given relative to csrc/: the innermost folder that has one."""
    return next(row for row in map(str, path.parents) if row in CSRC_LAYERS)


def _included_folder(name: str) -> str | None:
    """Row of CSRC_LAYERS an include name belongs to; None for system and library headers."""
    for root in ("", "kernels"):
        if (ROOT / "csrc" / root / name).exists():
            return _folder(PurePath(root, name))
    return None


def _kernel_part(name: str) -> str | None:
    return next((part for part in KERNEL_PARTS if name.startswith(part)), None)


def _goes_up(path: PurePath, name: str) -> bool:
    folder, included = _folder(path.relative_to("csrc")), _included_folder(name)
    allowed = included in {None, folder, *CSRC_LAYERS[folder]}
    return not allowed and (folder, name) not in CSRC_EXCEPTIONS


def _is_library_of_another_layer(path: PurePath, name: str) -> bool:
    return LIBRARY_LAYERS.get(PurePath(name).parts[0]) not in (None, path.parts[1])


def _goes_up_within_kernels(path: PurePath, name: str) -> bool:
    part, included = _kernel_part(path.as_posix().removeprefix("csrc/kernels/")), _kernel_part(name)
    return bool(part and included and PurePath(included).name not in KERNEL_PARTS[part])


def _is_not_in_memory(path: PurePath, name: str) -> bool:
    """NVRTC gets shared/ and kernels/ in memory, and nothing else for device code."""
    is_device = path.parts[1] in ("shared", "kernels")
    is_known = (path.as_posix(), name) in DEVICE_SYSTEM_INCLUDES
    return is_device and _included_folder(name) is None and not is_known


@pytest.mark.parametrize(
    ("is_wrong", "path", "name"),
    [
        (_goes_up, "csrc/driver/driver.cc", "gemm/problem.h"),
        (_is_library_of_another_layer, "csrc/gemm/problem.cc", "nanobind/nanobind.h"),
        (_goes_up_within_kernels, "csrc/kernels/fp8_gemm/pipeline.cuh", "fp8_gemm/consumer.cuh"),
        (_is_not_in_memory, "csrc/kernels/ptx/tma.cuh", "cuda.h"),
    ],
)
def test_no_file_of_csrc_includes_what_it_may_not(is_wrong, path, name):
    assert is_wrong(PurePath(path), name)
    included = [(path, name) for path in CSRC_FILES for name in includes(read(path))]
    assert len(included) > len(CSRC_FILES)
    assert [f"{path} includes {name}" for path, name in included if is_wrong(path, name)] == []


def test_every_folder_of_csrc_has_a_row():
    """A folder without one would be taken for a part of the folder around it."""
    folders = {path.relative_to("csrc").parent.as_posix() for path in CSRC_FILES}
    assert folders - {"sim/device/mma", "sim/device/ptx"} == set(CSRC_LAYERS)
    families = [p.as_posix() for p in CSRC_FILES if p.match("csrc/kernels/fp8_*/*")]
    parts = {_kernel_part(path.removeprefix("csrc/kernels/")) for path in families}
    assert parts == set(KERNEL_PARTS)


def test_every_folder_of_the_package_has_a_layer():
    """One without would be in no contract of import-linter."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = {name for row in contracts["contracts"][0]["layers"] for name in row.split(" | ")}
    here = ROOT / "jax_fp8gemm"
    public = {p.stem for p in here.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    inner = {f"_src.{p.stem}" for p in (here / "_src").iterdir() if p.suffix == ".py" or p.is_dir()}
    found = public | inner - {"_src.__init__", "_src.__pycache__"}
    named = {name.removeprefix("jax_fp8gemm.") for name in layers}
    assert found - {"__init__", "_src"} == named - {"benchmarks"}


@pytest.mark.parametrize("pattern", CPP_OWNERS)
def test_cpp_effect_has_its_owner(pattern):
    code = {path.as_posix(): cpp_code(read(path)) for path in CSRC_FILES}
    _assert_owners(code, pattern, CPP_OWNERS[pattern])


@pytest.mark.parametrize("pattern", PYTHON_OWNERS)
def test_python_effect_has_its_owner(pattern):
    code = {path.as_posix(): python_code(read(path)) for path in PACKAGE_FILES}
    _assert_owners(code, pattern, PYTHON_OWNERS[pattern])


def _assert_owners(code: dict[str, str], pattern: str, owners: tuple[str, ...]) -> None:
    """Asserts that each owner has an effect, and nobody else."""
    assert re.search(pattern, EFFECTS, re.MULTILINE), "the pattern finds no such code"
    matches = [
        (path, m[0]) for path, text in code.items() for m in re.finditer(pattern, text, re.M)
    ]
    assert [match for match in matches if not match[0].startswith(owners)] == []
    assert [o for o in owners if not any(path.startswith(o) for path, _ in matches)] == []


@pytest.mark.parametrize("path", CPP_FILES + PYTHON_FILES, ids=str)
def test_file_is_small_and_says_what_it_is(path):
    text = read(path)
    lines = text.splitlines()
    comment = "#" if path.suffix == ".py" else "//"
    assert lines[0] == f"{comment} SPDX-License-Identifier: Apache-2.0"
    opening = '"""' if path.suffix == ".py" else "// "
    assert lines[1].startswith(opening), "the second line must say what the file is for"
    if is_generated(text):
        return
    assert len(lines) <= MAX_FILE_LINES
    assert [i for i, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS] == []
    assert not UNNUMBERED_TODO.search(text), "write TODO(#issue): text"


@pytest.mark.parametrize("path", CPP_FILES, ids=str)
def test_functions_are_small(path):
    """Those of Python are ruff's: pyproject.toml has the limits."""
    text = read(path)
    if is_generated(text):
        return
    wrong = []
    for function in cpp_functions(text):
        limit = MAX_DEVICE_FUNCTION_LINES if function.is_device else MAX_HOST_FUNCTION_LINES
        if function.lines > limit or function.nesting > MAX_NESTING:
            wrong.append(function)
    assert wrong == []


def test_functions_are_found():
    """A reader of braces that finds nothing would pass everything."""
    text = (
        "#if X\nnamespace a {\nFP8GEMM_DEVICE int f(int x) {\n  if (x) {\n"
        '    for (;;) { g("{"); }\n  }\n  return 1\'000;\n}\n#endif\n'
        "struct S {\n  S() = default;\n  int h() const { return 1; }\n  int v{0};\n};\n}\n"
    )
    f, h = cpp_functions(text)
    assert (f.name, f.line, f.lines, f.nesting, f.is_device) == ("f", 3, 6, 2, True)
    assert (h.name, h.line, h.lines, h.nesting, h.is_device) == ("h", 12, 1, 0, False)


def test_patterns_see_code_and_not_text():
    code = cpp_code('auto s = R"(getenv)"; // getenv\n/* getenv */ f("getenv", \'"\'); getenv(x);')
    assert code.count("getenv") == 1
    assert "print(" not in python_code('"""print(1)"""  # print(1)\n')
