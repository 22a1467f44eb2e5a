# SPDX-License-Identifier: Apache-2.0
"""Published times beside the model, regret, static counts; and docs/performance.md says them."""

import math
import re
import sys

import pytest
from _source import ROOT

from jax_fp8gemm._src.native import gemm_problem, ranking

sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

PAGE = (ROOT / "docs/performance.md").read_text()
_CELL = r" `?([^|`]+)`? \|"


def _rows(header: str) -> list[tuple[str, ...]]:
    """Returns the cells of the page's table with this header."""
    lines = PAGE.splitlines()
    start = lines.index(header) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append(tuple(re.findall(_CELL, line)))
    return found


COUNTED = _rows(
    "| configuration | L2 | shared memory: written + read | read / least | cycles | conflicts |"
)
STORES = _rows("| columns | 16-bit | float32 |")
PREDICTED = _rows("| problem | configuration | predicted us | TFLOPS |")
FEW_ROWS = _rows("| weights, N x K | configuration | of memory |")
COMPARED = _rows("| rows | number | DeepGEMM's tile: mean | from, to |")


@pytest.fixture
def calibration(extension):
    """The module, which needs the extension."""
    from benchmarks import calibration

    return calibration


@pytest.fixture
def static_report(extension):
    """The module, which needs the extension."""
    from benchmarks import static_report

    return static_report


# ---- Published rows ------------------------------------------------------------------------------


def test_published_rows():
    from benchmarks.published import rows

    found = rows()
    assert len(found) == len({row.problem for row in found}) == 50
    assert {row.problem.kind for row in found} == {"dense", "contiguous", "masked", "k_grouped"}
    headline = next(row for row in found if row.problem[:3] == (4096, 7168, 16384))
    assert (headline.tflops, headline.source) == (1550, "news")
    assert headline.microseconds == pytest.approx(620.7, abs=0.1)
    cold = next(row for row in found if row.problem[:3] == (64, 2112, 7168))
    assert (cold.tflops, cold.source) == (154, "pr94")
    # Nothing was published that the physics of an H100 forbid.
    for row in found:
        assert row.problem.flops / 1979e6 < row.microseconds
        if "warm" not in row.source:
            assert row.problem.least_bytes / 3.35e6 < row.microseconds, row.problem


def test_every_row_has_a_candidate_with_the_tile_of_deepgemm(calibration):
    assert [p.row.problem for p in calibration.predictions() if p.theirs is None] == []


def test_model_is_not_far_from_published_times(calibration):
    """A constant that is off by half would show here."""
    found = calibration.predictions()
    assert all(0.6 < p.their_ratio < 1.15 for p in found)
    assert all(p.ours <= p.theirs for p in found)
    report = calibration.report_predictions(found)
    assert report.count("\n| ") >= 50 and "64x16 1x1" in report


def test_problems_can_be_tuned(calibration, capsys):
    assert calibration.main(["--problems"]) == 0
    words = capsys.readouterr().out.split()
    assert len(words) == 50
    assert {gemm_problem.parse(word) for word in words} == {
        p.row.problem for p in calibration.predictions()
    }


# ---- Regret --------------------------------------------------------------------------------------


@pytest.fixture
def measurements(calibration, extension):
    """Made-up measurements of four problems: a good choice, a bad one, a failed one, nothing."""
    tune = calibration.tune
    machine = tune.Machine("NVIDIA H100", "580", "13.0", "by hand", ())
    samples_of = {
        64: [(10.0,), (10.2, 10.4)],
        128: [(12.0,), (10.0,)],
        256: [(), (5.0,)],
        512: [(), ()],
    }
    cases = []
    for m, samples in samples_of.items():
        problem = gemm_problem.parse(f"{m}x7168x2048")
        ranked = ranking.rank(problem, backend="cuda", gpu="")
        pairs = zip(ranked, samples, strict=False)
        results = [tune.Result(c["config"], 1.0, taken) for c, taken in pairs]
        cases.append(tune.Measured(problem, tuple(results)))
    return tune.measurements(machine, False, cases)


def test_regret(calibration, measurements):
    good, bad, failed = calibration.regrets(measurements)
    assert good.regret == 0 and good.chosen == good.best
    assert bad.regret == pytest.approx(0.2) and bad.best_us == 10.0
    assert failed.regret is None and failed.best_us == 5.0
    report = calibration.report_regrets(measurements, [good, bad, failed])
    assert report.startswith("NVIDIA H100, driver 580")
    lines = report.splitlines()
    assert lines[4].startswith("| 128x7168x2048") and "| 20.0% |" in lines[4]
    assert "not measured" in lines[6]
    assert "worst 20.0%; 1 of 2 choices within 5% of the best; 1 not measured" in report


def test_command_reads_what_tune_wrote(calibration, measurements, tmp_path, capsys):
    path = tmp_path / "x.measurements.json"
    calibration.tune.save(path, measurements._replace(simulated=True))
    assert calibration.main([str(path)]) == 0
    assert capsys.readouterr().out.startswith("**Simulated on a CPU")
    path.write_text("{}")
    assert calibration.main([str(path)]) == 1
    assert str(path) in capsys.readouterr().err


# ---- docs/performance.md -------------------------------------------------------------------------


@pytest.mark.sampled(8)
@pytest.mark.parametrize("row", COUNTED, ids=lambda row: row[0])
def test_counts_are_as_the_page_says(static_report, simulator_library, row):
    key, fetched, moved, share, cycles, per_tile = row
    traffic, conflicts = static_report.traffic(key), static_report.conflicts(key)
    port = (traffic.written + traffic.read) // 128
    config = static_report.extension.core().describe_config(key)
    tensor = 2 * config["block_n"] * config["row_slices"] * config["num_consumers"]
    got = (
        str(traffic.fetched),
        f"{traffic.written} + {traffic.read}",
        f"{traffic.read / traffic.least_read:.2f}",
        f"{port} / {tensor}",
        f"{conflicts.per_tile:.4g}",
    )
    assert got == (fetched, moved, share, cycles, per_tile), "update docs/performance.md"
    assert conflicts.per_k_block == 0


def test_report_of_counts(static_report, simulator_library, capsys):
    key = COUNTED[0][0]
    assert static_report.main([key]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == row.count("|") and row.startswith(f"| `{key}` | 16384 |")
    # A K block of this tile takes about 270 cycles, a load 1000.
    assert "| 13 (4) | 0 | 0 |" in row
    assert static_report.stages("1d2d.m128n128.w2.s4.c1x1.e4m3.e4m3.bf16") == (4, 2)


def smallest_tiles(core, group_of) -> dict:
    """Returns the key of the smallest tile of each group, which a configuration's fields say."""
    smallest = {}
    for key in core.candidate_configs():
        config = core.describe_config(key)
        group = group_of(config)
        area = config["block_m"] * config["block_n"]
        smallest[group] = min(smallest.get(group, (area, key)), (area, key))
    return {group: key for group, (_, key) in smallest.items()}


@pytest.mark.slow
def test_no_layout_of_results_has_bank_conflicts(static_report, simulator_library):
    """One tile for each size of elements and swizzle, with and without an accumulator."""

    def layout(config):
        element_bytes = 4 if config["d_type"] == "float32" else 2
        row_bytes = config["block_n"] // config["split_k"] * element_bytes
        return element_bytes, math.gcd(row_bytes, 128), config["accumulate"]

    smallest = smallest_tiles(static_report.extension.core(), layout)
    found = {each: static_report.conflicts(key).per_tile for each, key in smallest.items()}
    assert {(4, 128, True), (4, 64, True), (2, 32, False)} <= found.keys()
    assert set(found.values()) == {0}, found


@pytest.mark.slow
def test_stores_of_a_tile_are_as_the_page_says(static_report, simulator_library):
    """One tile of each number of columns and size of elements."""

    def row(config):
        return str(config["block_n"] // config["split_k"]), config["d_type"] == "float32"

    smallest = smallest_tiles(static_report.extension.core(), row)
    said = {
        (columns, is_float32): int(number)
        for columns, *numbers in STORES
        for is_float32, number in enumerate(numbers)
        if number != "-"
    }
    found = {each: static_report.stores(key) for each, key in smallest.items()}
    assert found == said, "update docs/performance.md"


@pytest.mark.parametrize("row", PREDICTED, ids=lambda row: row[0])
def test_predictions_are_as_the_page_says(extension, row):
    fields = {"scaling": "1d1d", "d_dtype": "float32"} if "k_grouped" in row[0] else {}
    problem = gemm_problem.parse(row[0], **fields)
    best = ranking.rank(problem, backend="cuda", gpu="")[0]
    us = best["microseconds"]
    got = (best["config"], f"{us:.1f}", f"{problem.flops / us / 1e6:.0f}")
    assert got == row[1:], "update docs/performance.md"


@pytest.mark.parametrize("weights, config, ratio", FEW_ROWS)
def test_few_rows_are_as_the_page_says(extension, weights, config, ratio):
    best = ranking.rank(gemm_problem.parse(f"16x{weights}"), backend="cuda", gpu="")[0]
    got = (best["config"], f"{best['compute_cycles'] / best['hbm_floor_cycles']:.2f}")
    assert got == (config, ratio), "update docs/performance.md"


def test_comparison_is_as_the_page_says(calibration):
    found = calibration.predictions()
    for family, number, mean, spread in COMPARED:
        ratios = [p.their_ratio for p in found if p.row.family == family]
        got = (
            str(len(ratios)),
            f"{calibration.geometric_mean(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
        assert got == (number, mean, spread), "update docs/performance.md"


def test_there_are_tables_to_check():
    assert len(COUNTED) >= 8 and len(PREDICTED) >= 8 and len(COMPARED) == 5
    assert len(STORES) >= 8 and len(FEW_ROWS) >= 4
