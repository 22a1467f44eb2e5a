# SPDX-License-Identifier: Apache-2.0
"""Mutations of good inputs for everything that reads a stranger's: `python -m tests.fuzz`.

mutate.py changes bytes, text and JSON; targets.py has the readers, their seeds, and what each may
raise. Any other exception, a crash or a hang is a fault.
"""
