# SPDX-License-Identifier: Apache-2.0
"""docs/simulator_rules.md is whole: it has every message of the simulator, and no test is gone."""

import re

import pytest
from _source import ROOT

PAGE = (ROOT / "docs" / "simulator_rules.md").read_text()
SIM = ROOT / "csrc" / "sim"
CPP = ROOT / "tests" / "cpp"
STATUSES = ("documented", "reported", "believed", "ours")
COLUMNS = ["rule", "report", "test", "source", "status"]

_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
_REPORT = re.compile(r"\b(?:Fatal|Hazard|Fail|Require)\(")
# Lines that only pass on what another one says.
_PASSED_ON = {"", "kernel "}


def _arguments(text: str, start: int) -> str:
    """The text up to the parenthesis that closes the one before `start`."""
    depth, end = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


def _messages() -> list[str]:
    """Every report, as its literals in the source put together, up to the first that is not one."""
    found = []
    for path in [*(SIM / "engine").glob("*.cc"), *SIM.glob("driver_*.cc")]:
        text = re.sub(r"//[^\n]*", "", path.read_text())
        for match in _REPORT.finditer(text):
            before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
            arguments = _arguments(text, match.end())
            if before.strip() == "void":  # a definition
                continue
            first = re.search(r'"(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*', arguments)
            message = "".join(_LITERAL.findall(first.group())) if first else ""
            if message not in _PASSED_ON:
                found.append(message)
    return found


def _rows(columns: list[str]) -> list[dict[str, str]]:
    """The rows of every table with these columns."""
    rows, current = [], None
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            current = None
        elif current is None:
            current = cells
        elif current == columns and not set(line) <= set("|-"):
            assert len(cells) == len(columns), line
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


RULES = _rows(COLUMNS)
MESSAGES = _messages()


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _tests() -> set[str]:
    """Names of faults, rule kernels and driver tests that run."""
    faults = re.findall(r'^\s*\{"(k\w+?)(?:\.cluster)?", "[^"]', _cpp("sim_engine_test.cc"), re.M)
    rules = re.findall(r"SIM_TEST_RULE\((\w+), \d", _cpp("sim_rules_test.cc"))
    driver = re.findall(r"^  sim_test::(Test\w+)\(\);", _cpp("sim_driver_test.cc"), re.M)
    return {*faults, *rules, *driver}


def _cpp(name: str) -> str:
    return (CPP / name).read_text()


def test_every_message_is_on_the_page():
    prose = re.sub(r"^\|.*$", "", PAGE, flags=re.M)
    known = [text for row in RULES for text in _quoted(row["report"])] + _quoted(prose)
    missing = [m for m in MESSAGES if not any(len(t) > 5 and t in m for t in known)]
    assert len(MESSAGES) > 100
    assert missing == []


@pytest.mark.parametrize("row", RULES, ids=lambda row: row["rule"][:60])
def test_row_is_true(row):
    reports, tests = _quoted(row["report"]), _quoted(row["test"])
    assert reports
    described = MESSAGES + [_deadlock_report()]
    assert [text for text in reports if not any(text in message for message in described)] == []
    assert tests or row["test"].startswith("none: ")
    assert set(tests) - _tests() == set()
    assert row["status"] in STATUSES
    assert row["source"]
    if row["status"] == "reported":
        assert "https://" in row["source"]
    if row["status"] == "documented":
        assert re.match(r"PTX, |cuda\.h, |CPG, ", row["source"])


def _deadlock_report() -> str:
    """What a rule says whose breach is a wait without end."""
    return (SIM / "engine" / "deadlock.cc").read_text()


def test_every_rule_test_is_on_the_page():
    named = {name for row in RULES for name in _quoted(row["test"])}
    assert set(re.findall(r"SIM_TEST_RULE\((\w+), \d", _cpp("sim_rules_test.cc"))) - named == set()


OTHERS = _rows(["what the simulator does", "source", "status"])
OTHERS += _rows(["rule", "why not", "source", "status"])


def test_every_other_row_has_a_status():
    assert len(OTHERS) > 10
    assert [row for row in OTHERS if row["status"] not in STATUSES or not row["source"]] == []


def test_counts():
    statuses = [row["status"] for row in RULES + OTHERS]
    counts = ", ".join(f"{statuses.count(each)} {each}" for each in STATUSES)
    untested = sum(row["test"].startswith("none: ") for row in RULES)
    shown = PAGE.split("<!-- counts:begin -->\n")[1].split("<!-- counts:end -->")[0]
    assert shown == (
        f"Rows: {counts}. Of the {len(RULES)} rules that are enforced, {untested} have no test of"
        " their own, and say why.\n"
    )


# Functions of the compiler: the instruction that each stands for.
_INTRINSICS = {
    "__ballot_sync": "vote.sync",
    "__cvta_generic_to_shared": "cvta",
    "__shfl_sync": "shfl.sync",
    "__shfl_up_sync": "shfl.sync",
}


def _instructions() -> set[str]:
    """Every instruction that the wrappers of kernels/ptx and mma execute, with its qualifiers."""
    table = (ROOT / "csrc/kernels/mma/wgmma_fp8_table.inc").read_text()
    found = set(re.findall(r"(?:\\n|\b)((?:wgmma|setp)\.[\w.]*\w)", table))
    for path in (ROOT / "csrc/kernels/ptx").glob("*.cuh"):
        text = path.read_text()
        called = re.findall(r"\b(__[a-z_]+_(?:sync|shared))\(", text)
        found |= {_INTRINSICS[name] for name in called}
        for match in re.finditer(r"asm(?: volatile)?\(", text):
            literals = "".join(_LITERAL.findall(_arguments(text, match.end())))
            for statement in literals.replace("\\n", " ").split(";")[:-1]:  # then constraints
                words = re.sub(r"@\w+|\b\w+: ", "", statement).strip("{ ").split()
                if words[0][0].isalpha():  # and not a declaration
                    found.add(words[0])
    return found


def test_every_instruction_and_call_is_on_the_page():
    paragraphs = re.findall(r"^(?:Instruction|Call)s?\b.*?\n\n", PAGE, re.M | re.S)
    listed = {name for paragraph in paragraphs for name in _quoted(paragraph)}
    heads = {}
    for instruction in _instructions():
        parts = instruction.split(".")
        heads[instruction] = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    assert len(heads) > 40
    assert [instruction for instruction, each in heads.items() if not each & listed] == []
    names = {name for name in listed if not re.match(r"cu[A-Z]|tests/|\w+\.cc", name)}
    assert names - set().union(*heads.values()) == set()  # nor is any that no kernel has
    calls = re.findall(r"\(\*(cu\w+)\)", (ROOT / "csrc/driver/driver.h").read_text())
    assert len(calls) > 10
    assert [call for call in calls if call not in listed] == []
