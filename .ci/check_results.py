# SPDX-License-Identifier: Apache-2.0
"""Fails unless tests ran and passed: python .ci/check_results.py JUNIT_XML.

pytest is content when every test was skipped; a check must not be.
"""

import sys
import xml.etree.ElementTree as ElementTree


def main(path: str) -> int:
    """Returns the exit status."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
    passed = len(cases) - len(skipped) - len(failed)
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
