# SPDX-License-Identifier: Apache-2.0
"""Fails unless tests ran and passed: python .ci/check_results.py JUNIT_XML [--name-skipped].

pytest is content when every test was skipped; a check must not be. With --name-skipped each
skipped test is listed, so that a check on hardware says what it left out.
"""

import sys
import xml.etree.ElementTree as ElementTree


def main(path: str, *flags: str) -> int:
    """Returns the exit status."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
    passed = len(cases) - len(skipped) - len(failed)
    if "--name-skipped" in flags:
        for case in skipped:
            reason = case.find("skipped").get("message", "")
            print(f"NOT CHECKED  {case.get('classname')}::{case.get('name')}: {reason}")
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
