# SPDX-License-Identifier: Apache-2.0
"""Inputs that coverage guides, for everything that reads a stranger's: `python -m tests.fuzz`.

targets.py has the readers, their seeds, and what each may raise; any other exception, a crash or a
hang is a fault. guided.py gives one of them to atheris, mutate.py changes JSON, and corpus/ has for
each what earlier runs found to reach more of the code than its seeds, an input a line.
"""
