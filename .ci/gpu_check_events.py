# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: appends what starts and how it ended to $GPU_CHECK_EVENTS, one JSON a line.

Unlike pytest's own reports the file is whole up to the test that hangs or ends the process.
"""

import json
import os


def _write(**event: str) -> None:
    with open(os.environ["GPU_CHECK_EVENTS"], "a") as file:
        file.write(json.dumps(event) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """A test begins."""
    _write(test=nodeid, outcome="running")


def pytest_runtest_logreport(report) -> None:
    """A part of a test is over; the whole of it has failed if a part has."""
    if report.when == "call" or report.outcome != "passed":
        reason = str(report.longrepr[2]) if report.skipped else ""
        _write(test=report.nodeid, outcome=report.outcome, reason=reason)


def pytest_collectreport(report) -> None:
    """A file that cannot be imported counts as a failed test."""
    if report.failed:
        _write(test=report.nodeid, outcome="failed")
