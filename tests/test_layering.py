# SPDX-License-Identifier: Apache-2.0
"""Structure of the sources: who may include whom, who owns an effect, how big pieces are.

The rules are those of CONTRIBUTING.md; the tables here are their exact form. Who may import whom is
in pyproject.toml, and `make lint` checks it.
"""

import re
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
    python_functions,
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
    r"\bprint\s*\(": ("jax_fp8gemm/_src/tools/", "jax_fp8gemm/__main__.py"),
    r"^\s*assert\b": (),
    r"\bexcept\s*:": (),
    r"\bexcept ImportError:\s*pass\b": (),
    # JAX's binding of CUPTI, without which kernels are timed by the wall clock.
    r"\bjax\._src\b": ("jax_fp8gemm/_src/tools/tuning/timers.py",),
}

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


def test_cpp_layers_are_one_way():
    wrong = []
    for path in CSRC_FILES:
        folder = _folder(path.relative_to("csrc"))
        for name in includes(read(path)):
            included = _included_folder(name)
            allowed = included in {None, folder, *CSRC_LAYERS[folder]}
            if not allowed and (folder, name) not in CSRC_EXCEPTIONS:
                wrong.append(f"{path} includes {name}")
    assert wrong == []


def test_every_folder_of_csrc_has_a_row():
    """A folder without one would be taken for a part of the folder around it."""
    folders = {path.relative_to("csrc").parent.as_posix() for path in CSRC_FILES}
    assert folders - {"sim/device/mma", "sim/device/ptx"} == set(CSRC_LAYERS)


def test_libraries_are_used_by_one_layer():
    wrong = []
    for path in CSRC_FILES:
        for name in includes(read(path)):
            owner = LIBRARY_LAYERS.get(PurePath(name).parts[0])
            if owner is not None and owner != path.parts[1]:
                wrong.append(f"{path} includes {name}, which only csrc/{owner} may")
    assert wrong == []


def test_parts_of_the_kernels_are_one_way():
    wrong = []
    for path in CSRC_FILES:
        part = _kernel_part(path.as_posix().removeprefix("csrc/kernels/"))
        if part is None:
            continue
        for name in includes(read(path)):
            included = _kernel_part(name)
            if included and PurePath(included).name not in KERNEL_PARTS[part]:
                wrong.append(f"{path} includes {name}")
    assert wrong == []


def test_device_code_needs_no_include_path():
    """NVRTC gets shared/ and kernels/ in memory and nothing else."""
    wrong = []
    for path in CSRC_FILES:
        if path.parts[1] not in ("shared", "kernels"):
            continue
        for name in includes(read(path)):
            known = (path.as_posix(), name) in DEVICE_SYSTEM_INCLUDES
            if _included_folder(name) is None and not known:
                wrong.append(f"{path} includes {name}")
    assert wrong == []


@pytest.mark.parametrize("pattern", CPP_OWNERS)
def test_cpp_effect_has_its_owner(pattern):
    owners = CPP_OWNERS[pattern]
    wrong = [
        f"{path}: {match[0]}"
        for path in CSRC_FILES
        if not path.as_posix().startswith(owners)
        for match in re.finditer(pattern, cpp_code(read(path)))
    ]
    assert wrong == []


@pytest.mark.parametrize("pattern", PYTHON_OWNERS)
def test_python_effect_has_its_owner(pattern):
    owners = PYTHON_OWNERS[pattern]
    wrong = [
        f"{path}: {match[0]}"
        for path in PACKAGE_FILES
        if not path.as_posix().startswith(owners)
        for match in re.finditer(pattern, python_code(read(path)), re.MULTILINE)
    ]
    assert wrong == []


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


@pytest.mark.parametrize("path", CPP_FILES + PYTHON_FILES, ids=str)
def test_functions_are_small(path):
    text = read(path)
    if is_generated(text):
        return
    functions = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
    wrong = []
    for function in functions:
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

    source = (
        "def f(x):\n    '''Doc.'''\n    if x:\n        while x:\n            pass\n    return x\n"
    )
    (f,) = python_functions(source)
    assert (f.name, f.line, f.lines, f.nesting) == ("f", 1, 5, 2)


def test_patterns_see_code_and_not_text():
    code = cpp_code('auto s = R"(getenv)"; // getenv\n/* getenv */ f("getenv", \'"\'); getenv(x);')
    assert code.count("getenv") == 1
    assert "print(" not in python_code('"""print(1)"""  # print(1)\n')
