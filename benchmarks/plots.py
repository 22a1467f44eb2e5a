# SPDX-License-Identifier: Apache-2.0
"""PNG plots of a record: roofline, ratio per shape, growth with rows and with groups."""

from pathlib import Path

from benchmarks import tables


def _pyplot():
    """Returns matplotlib's pyplot, drawing to files only; None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _times(record: dict, case: dict) -> dict[str, float]:
    return {
        name: result["summary"]["median"]
        for name, result in case["results"].items()
        if result["status"] == "measured"
    }


def _finish(plt, figure, axes, title: str, path: Path) -> Path:
    axes.set_title(title, fontsize=9)
    axes.grid(True, which="both", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path


def _title(record: dict, what: str) -> str:
    env = record["environment"]
    place = env["device"] if env["platform"] == "gpu" else f"NOT A GPU: {env['device']}"
    return f"{what}\n{place}, commit {env['commit']}"


def _label(case: dict) -> str:
    groups = f"{case.get('num_groups', 1)} groups "
    shape = "x".join(str(case[axis]) for axis in "mnk")
    kind = "" if case["kind"] == "forward" else f"{case['kind']} "
    return f"{kind}{groups if case.get('num_groups', 1) > 1 else ''}{shape}"


def _roofline(plt, record: dict, folder: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, peer in record["peers"].items():
        points = [
            (case["flops"] / case["bytes"], case["flops"] / seconds / 1e12)
            for case in record["cases"]
            if (seconds := _times(record, case).get(name))
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=12, label=peer["label"])
    limits = record["limits"]
    if {"copy_bytes", "fp8_flops"} <= limits.keys():
        bandwidth, peak = limits["copy_bytes"]["per_s"], limits["fp8_flops"]["per_s"]
        knee = peak / bandwidth
        line = [knee / 64, knee, knee * 16]
        axes.plot(
            line, [min(x * bandwidth, peak) / 1e12 for x in line], "k-", label="measured limits"
        )
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOPS")
    return _finish(plt, figure, axes, _title(record, "Roofline"), folder / "roofline.png")


def _ratios(plt, record: dict, folder: Path) -> Path:
    cases = record["cases"]
    peers = [
        name
        for name in record["peers"]
        if name != "ours" and any(tables.ratio(case, name) for case in cases)
    ]
    figure, axes = plt.subplots(figsize=(max(7, 0.28 * len(cases)), 4.5))
    width = 0.8 / max(1, len(peers))
    for index, name in enumerate(peers):
        bars = [(i, r) for i, case in enumerate(cases) if (r := tables.ratio(case, name))]
        axes.bar(
            [i + (index - (len(peers) - 1) / 2) * width for i, _ in bars],
            [r - 1 for _, r in bars],
            width,
            bottom=1,  # up where ours is faster, down where the peer is
            label=record["peers"][name]["label"],
        )
    axes.axhline(1, color="k", linewidth=0.8)
    labels = [_label(case) for case in cases]
    axes.set_xticks(range(len(cases)), labels, rotation=90, fontsize=6)
    axes.set(ylabel="time over ours", yscale="log")
    return _finish(plt, figure, axes, _title(record, "Ratio per shape"), folder / "ratios.png")


def _growth(plt, record: dict, path: Path, axis: str, fixed: str) -> Path | None:
    """Draws the times of the suite that a path is named after: one line per peer and `fixed`.

    Where that suite was not run, its small one for a CPU.
    """
    suites = {case["suite"] for case in record["cases"]}
    suite = path.stem if path.stem in suites else f"small_{path.stem}"
    cases = [case for case in record["cases"] if case["suite"] == suite]
    if not cases:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for family in dict.fromkeys((case[fixed], case["n"], case["k"]) for case in cases):
        chosen = [case for case in cases if (case[fixed], case["n"], case["k"]) == family]
        for name, peer in record["peers"].items():
            points = [
                (case[axis], seconds * 1e6)
                for case in chosen
                if (seconds := _times(record, case).get(name))
            ]
            if points:
                label = f"{peer['label']}, {'x'.join(map(str, family[fixed == 'kind' :]))}"
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
    words = {"m": "rows", "num_groups": "groups"}[axis]
    axes.set(xscale="log", yscale="log", xlabel=words, ylabel="us")
    return _finish(plt, figure, axes, _title(record, f"Growth with {words}"), path)


def _scaling(plt, record: dict, folder: Path) -> Path | None:
    return _growth(plt, record, folder / "scaling.png", "m", "kind")


def _groups(plt, record: dict, folder: Path) -> Path | None:
    return _growth(plt, record, folder / "groups.png", "num_groups", "m")


def draw(record: dict, folder: Path) -> list[Path]:
    """Draws what the record has data for.

    Returns:
        The files; none where matplotlib is not installed, which the caller says.
    """
    plt = _pyplot()
    if plt is None or not record["cases"]:
        return []
    drawn = [part(plt, record, folder) for part in (_roofline, _ratios, _scaling, _groups)]
    return [path for path in drawn if path is not None]
