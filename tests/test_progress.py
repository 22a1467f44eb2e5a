# SPDX-License-Identifier: Apache-2.0
"""How far a command is: on a terminal, at the right moments, and nowhere else."""

import io
import re
import sys

import pytest

from jax_fp8gemm._src.tools import doctor
from jax_fp8gemm._src.tools.progress import progress


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self):
        return True

    @property
    def line(self):
        """What is shown, without the seconds."""
        line = self.getvalue().rpartition("\033[K")[2].removesuffix("\r")
        return re.sub(r", \d+ s$", "", line)


@pytest.fixture
def look(monkeypatch):
    """Returns a function that puts a terminal in the place of stderr."""

    def look():
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        return terminal

    return look


def test_is_shown_while_a_generator_works(look):
    terminal = look()

    def work():
        for i in range(3):
            assert terminal.line == f"check: {i}"
            yield i

    assert list(progress(work(), "check")) == [0, 1, 2]
    assert terminal.line == ""


def test_is_shown_while_a_loop_works(look):
    terminal = look()
    for i in progress("abc", "bench", 3):
        assert terminal.line == f"bench: {'abc'.index(i)} of 3"
    assert terminal.line == ""


def test_line_goes_when_something_fails(look):
    terminal = look()
    with pytest.raises(ZeroDivisionError):
        list(progress((1 // 0 for _ in "a"), "bench"))
    assert terminal.line == ""


@pytest.mark.parametrize("fails", [False, True])
def test_line_comes_back_after_one_inside_it(look, fails):
    terminal, shown = look(), []

    def work():
        for problem in range(2):
            try:
                for _ in progress((1 // (1 - fails) for _ in "ab"), "compile", 2):
                    shown.append(terminal.line)
            except ZeroDivisionError:
                pass
            shown.append(terminal.line)
            yield problem

    assert list(progress(work(), "tune", 2)) == [0, 1]
    inside = [] if fails else ["compile: 0 of 2", "compile: 1 of 2"]
    assert shown == [*inside, "tune: 0 of 2", *inside, "tune: 1 of 2"]
    assert terminal.line == ""


def test_cache_verify_says_how_many_kernels_it_has_read(look):
    terminal, shown = look(), []

    class Core:
        def list_disk_cache(self):
            return [("a.bin", "a", 1), ("b.bin", "b", 1)]

        def disk_entry_fault(self, name):
            shown.append(terminal.line)
            return "" if name == "a.bin" else "it is too short"

    assert list(doctor.kernel_faults(Core())) == [("b.bin", "it is too short")]
    assert shown == ["verify: 0 of 2", "verify: 1 of 2"] and terminal.line == ""


def test_what_is_printed_takes_its_place(look):
    terminal = look()
    for _ in progress("ab", "bench", 2):
        assert terminal.getvalue().endswith("\r")


def test_nothing_is_said_where_nobody_looks(capsys):
    assert list(progress("ab", "bench", 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""
