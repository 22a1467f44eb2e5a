# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.static_report: what can be said of kernels' speed without running them.

Bytes that a K block moves against the least, stages against the latency they hide, bank conflicts
that the simulator counts, and the main loop's machine code. These are counts, not times.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.published import rows
from jax_fp8gemm._src.native import extension, ranking, sim_library
from jax_fp8gemm._src.native.gemm_problem import Problem
from jax_fp8gemm._src.tools import explain
from jax_fp8gemm._src.tools.tuning import operands as tuning_operands

_WARP_BYTES = 128  # of shared memory in one cycle
_MMA_ROWS = 64
_STAGES = re.compile(r"\.s\d+\.")  # in the key of a configuration


class Traffic(NamedTuple):
    """Bytes of one CTA and K block.

    Attributes:
        fetched: From L2; of what a cluster shares, its part.
        written: To shared memory by TMA.
        read: From shared memory by wgmma, each row slice its rows and all columns.
        least_read: As if one instruction had all rows of the tile.
    """

    fetched: int
    written: int
    read: int
    least_read: int


class Conflicts(NamedTuple):
    """Extra wavefronts of one CTA's accesses to shared memory: per tile, and per K block."""

    per_tile: float
    per_k_block: float


def traffic(key: str) -> Traffic:
    """Returns what a configuration moves."""
    c = extension.core().describe_config(key)
    mma_rows = _MMA_ROWS * c["num_consumers"] * c["row_slices"]
    operands = (c["block_m"] + c["block_n"]) * c["block_k"]
    row_slices = c["num_consumers"] * c["row_slices"]
    return Traffic(
        fetched=explain.l2_bytes_per_k_block(c),
        written=operands,
        read=(mma_rows + row_slices * c["block_n"]) * c["block_k"],
        least_read=(mma_rows + c["block_n"]) * c["block_k"],
    )


def _one_tile(key: str, k_blocks: int) -> tuple[Problem, int]:
    """Returns a problem of one full tile per CTA of one cluster, and how many CTAs that is."""
    c = extension.core().describe_config(key)
    m, n = c["block_m"] * c["cluster_m"], c["block_n"] * c["cluster_n"]
    ctas = c["cluster_m"] * c["cluster_n"] * c["split_k"]
    problem = Problem(
        m=m,
        n=n,
        k=k_blocks * c["split_k"] * c["block_k"],
        kind=c["kind"],
        scaling=c["scaling"],
        a_dtype=c["a_type"],
        b_dtype=c["b_type"],
        d_dtype=c["d_type"],
        accumulate=c["accumulate"],
        num_sms=ctas,
    )
    return problem, ctas


def _count(key: str, k_blocks: int, statistic: str) -> float:
    """Returns what the simulator counts of one CTA that computes one tile of so many K blocks."""
    problem, ctas = _one_tile(key, k_blocks)
    given = tuning_operands.operands(problem)
    present = [x for x in given if x is not None]
    sim_library.reset_stats()
    tuning_operands.matmul(problem, key, "sim")(*present).block_until_ready()
    return sim_library.stats()[statistic] / ctas


def conflicts(key: str) -> Conflicts:
    """Returns the bank conflicts of a configuration, counted by the simulator."""
    few, many = 2, 6
    counts = {k_blocks: _count(key, k_blocks, "bank_conflicts") for k_blocks in (few, many)}
    per_k_block = (counts[many] - counts[few]) / (many - few)
    return Conflicts(counts[few] - few * per_k_block, per_k_block)


def stores(key: str) -> float:
    """Returns the TMA stores of 64 rows of a tile, counted by the simulator."""
    c = extension.core().describe_config(key)
    return _count(key, 1, "stores") / (c["num_consumers"] * c["row_slices"])


def default_keys() -> list[str]:
    """Returns the heuristics' choices for everything that DeepGEMM published."""
    return sorted({ranking.rank(r.problem, backend="cuda", gpu="")[0]["config"] for r in rows()})


def stages(key: str) -> tuple[int, int]:
    """Returns how many stages a configuration has, and how many hide the latency of a load."""

    def tile(key: str) -> str:
        # How many stages fit depends on K too, and how many are needed does not.
        return _STAGES.sub(".", key.removesuffix(".pdl"))

    problem, _ = _one_tile(key, 8)
    ranked = ranking.rank(problem, backend="cuda", gpu="")
    candidate = next(each for each in ranked if tile(each["config"]) == tile(key))
    return extension.core().describe_config(key)["num_stages"], explain.stages_needed(candidate)


def _cells(key: str) -> list[str]:
    moved, extra = traffic(key), conflicts(key)
    c = extension.core().describe_config(key)
    tensor = 2 * c["block_n"] * c["row_slices"] * c["num_consumers"]
    port = (moved.written + moved.read) / _WARP_BYTES
    return [
        f"`{key}`",
        str(moved.fetched),
        f"{moved.written} + {moved.read}",
        f"{moved.read / moved.least_read:.2f}",
        f"{port:.0f} / {tensor}",
        "{} ({})".format(*stages(key)),
        f"{extra.per_k_block:.4g}",
        f"{extra.per_tile:.4g}",
    ]


def _code_cells(key: str) -> list[str]:
    try:
        loop = explain.code_facts(key).loop
    except RuntimeError as error:
        return [str(error).splitlines()[0], "", ""]
    return [str(loop.length), str(loop.stall_cycles), f"{loop.ffma_under_mma} of {loop.ffma}"]


HEADER = (
    "configuration",
    "L2 bytes",
    "shared memory: written + read",
    "read / least",
    "its cycles / the tensor cores'",
    "stages (that hide a load)",
    "conflicts per K block",
    "per tile",
)
CODE_HEADER = ("instructions", "issue cycles", "FFMA under wgmma")


def report(keys: Sequence[str], with_code: bool) -> str:
    """Returns a Markdown table, a row per configuration."""
    header = [*HEADER, *(CODE_HEADER if with_code else ())]
    lines = [header, ["---"] * len(header)]
    lines += [_cells(key) + (_code_cells(key) if with_code else []) for key in keys]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.static_report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("keys", nargs="*", help="configurations (default: for published problems)")
    parser.add_argument("--code", action="store_true", help="compile and disassemble them too")
    options = parser.parse_args(arguments)
    if not sim_library.available():
        print("this build has no simulator, which counts bank conflicts", file=sys.stderr)
        return 1
    print(report(options.keys or default_keys(), options.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
