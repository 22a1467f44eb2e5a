# SPDX-License-Identifier: Apache-2.0
"""Kinds of products and limits of the kernels, from csrc: written by tests/update_tables.py."""

from typing import NamedTuple


class Kind(NamedTuple):
    """What sets one kind of product apart.

    Attributes:
        scalings: What `Problem.scaling` may be, the usual one first.
        accumulates: Whether the kernels can add an accumulator.
        group_data: What the array that divides the work has an int32 for: "groups", "rows", or
            "none" where there is no such array.
        has_group_rows: Whether each group has as many rows of lhs, `Problem.m`.
        has_group_weights: Whether each group has a matrix rhs of its own.
        has_group_results: Whether each group has a result of its own.
    """

    scalings: tuple[str, ...]
    accumulates: bool
    group_data: str
    has_group_rows: bool
    has_group_weights: bool
    has_group_results: bool


KINDS = {
    "dense": Kind(
        scalings=("1d2d", "1d1d"),
        accumulates=True,
        group_data="none",
        has_group_rows=False,
        has_group_weights=False,
        has_group_results=False,
    ),
    "ragged": Kind(
        scalings=("1d2d",),
        accumulates=False,
        group_data="groups",
        has_group_rows=False,
        has_group_weights=True,
        has_group_results=False,
    ),
    "contiguous": Kind(
        scalings=("1d2d",),
        accumulates=False,
        group_data="rows",
        has_group_rows=False,
        has_group_weights=True,
        has_group_results=False,
    ),
    "masked": Kind(
        scalings=("1d2d",),
        accumulates=False,
        group_data="groups",
        has_group_rows=True,
        has_group_weights=True,
        has_group_results=True,
    ),
    "k_grouped": Kind(
        scalings=("1d1d",),
        accumulates=True,
        group_data="groups",
        has_group_rows=False,
        has_group_weights=False,
        has_group_results=True,
    ),
}
MAX_GROUPS = 512
MAX_EXTENT = 2147483135
MAX_NUM_SMS = 1024
BLOCK = 128
CONTIGUOUS_ALIGNMENT = 128
TMA_ALIGNMENT_BYTES = 16
