# SPDX-License-Identifier: Apache-2.0
"""Planted kernel bugs that the simulator must find: `python -m tests.mutation` from the repository.

A mutant is one edit of one device source (catalogue.py). build.py compiles it into a simulator of
its own, worker.py runs that in a process of its own, harness.py does both and judges.
"""
