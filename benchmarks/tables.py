# SPDX-License-Identifier: Apache-2.0
"""Markdown of a record: ratios per case and peer, geometric means, what is missing and why."""

from collections.abc import Sequence

from jax_fp8gemm import _samples as samples

CPU_NOTE = "**These are times on a CPU, of XLA and of a simulator. They say nothing about a GPU.**"


def _measured(case: dict, peer: str) -> dict | None:
    result = case["results"].get(peer)
    return result if result is not None and result["status"] == "measured" else None


def ratio(case: dict, peer: str) -> float | None:
    """Returns how many times longer a peer took than ours; None where either has no time."""
    ours, theirs = _measured(case, "ours"), _measured(case, peer)
    if ours is None or theirs is None:
        return None
    return samples.paired_ratio(ours["samples_s"], theirs["samples_s"])["median"]


def roofline_share(case: dict, limits: dict) -> float | None:
    """Returns the share of the measured limits that ours reaches; None where one is unknown."""
    ours = _measured(case, "ours")
    if ours is None or not {"fp8_flops", "copy_bytes"} <= limits.keys():
        return None
    least = samples.roofline_seconds(
        case["flops"],
        case["bytes"],
        limits["fp8_flops"]["per_s"],
        limits["copy_bytes"]["per_s"],
    )
    return least / ours["summary"]["median"]


def _cell(case: dict, peer: str) -> str:
    value = ratio(case, peer)
    if value is not None:
        return f"{value:.2f}"
    status = case["results"].get(peer, {}).get("status", "missing")
    return "-" if status == "measured" else status


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def suite_table(record: dict, suite: str) -> str:
    """Returns the table of one suite; a cell is a peer's time over ours."""
    cases = [case for case in record["cases"] if case["suite"] == suite]
    peers = [name for name in record["peers"] if name != "ours"]
    labels = [record["peers"][name]["label"] for name in peers]
    is_gpu = record["environment"]["platform"] == "gpu"
    head = ["case", "M", "N", "K", "ours us", "spread", "TFLOPS"]
    head += (["of limit"] if is_gpu else []) + labels
    lines = [_row(head), _row(["---"] + ["--:"] * (len(head) - 1))]
    for case in cases:
        ours = _measured(case, "ours")
        cells = [case["name"], *(str(case[axis]) for axis in "mnk")]
        if ours is None:
            cells += [case["results"].get("ours", {}).get("status", "missing"), "", ""]
        else:
            median = ours["summary"]["median"]
            cells += [f"{median * 1e6:.1f}", f"{ours['summary']['spread']:.1%}"]
            cells.append(f"{case['flops'] / median / 1e12:.3g}")
        if is_gpu:
            share = roofline_share(case, record["limits"])
            cells.append("" if share is None else f"{share:.0%}")
        lines.append(_row(cells + [_cell(case, name) for name in peers]))
    means = [
        samples.geometric_mean(r for c in cases if (r := ratio(c, name)) is not None)
        for name in peers
    ]
    blank = [""] * (len(head) - len(peers) - 1)
    lines.append(
        _row(["geometric mean", *blank, *("" if m is None else f"**{m:.2f}**" for m in means)])
    )
    return "\n".join(lines)


def _published_table(record: dict) -> str:
    """Returns ours beside what others published for the same shapes on other machines."""
    cases = [c for c in record["cases"] if c["published"] and _measured(c, "ours")]
    if not cases or record["environment"]["platform"] != "gpu":
        return ""
    sources = list(dict.fromkeys(source for c in cases for source in c["published"]))
    lines = [_row(["M", "N", "K", "ours TFLOPS", *sources])]
    lines.append(_row(["--:"] * (4 + len(sources))))
    for case in cases:
        tflops = case["flops"] / _measured(case, "ours")["summary"]["median"] / 1e12
        published = (case["published"].get(source) for source in sources)
        lines.append(
            _row(
                [
                    *(str(case[axis]) for axis in "mnk"),
                    f"{tflops:.0f}",
                    *("" if value is None else f"{value:g}" for value in published),
                ]
            )
        )
    text = (
        "## Beside published numbers of DeepGEMM\n\nTaken by others on other machines under other"
        " conditions (benchmarks/cases.py says which), so no ratio is formed.\n\n"
    )
    return text + "\n".join(lines) + "\n"


def _limits_text(limits: dict) -> str:
    units = {"copy_bytes": ("copy", 1e12, "TB/s"), "fp8_flops": ("fp8", 1e12, "TFLOPS")}
    units["bf16_flops"] = ("bfloat16", 1e12, "TFLOPS")
    parts = []
    for name, (label, scale, unit) in units.items():
        if name in limits:
            by = f" ({limits[name]['by']})" if "by" in limits[name] else ""
            parts.append(f"{label} {limits[name]['per_s'] / scale:.3g} {unit}{by}")
    return ", ".join(parts)


def _quantiser_text(entry: dict, limits: dict) -> str:
    """Returns a line about one layout: bandwidths, beside that of a copy."""
    rates = ", ".join(f"{name} {r / 1e9:.4g} GB/s" for name, r in entry["bytes_per_s"].items())
    copy = limits.get("copy_bytes", {}).get("per_s")
    share = ""
    if copy:
        share = f"; {max(entry['bytes_per_s'].values()) / copy:.0%} of what a copy reaches"
    return f"* Quantiser, {entry['layout']} of {tuple(entry['shape'])}: {rates}{share}."


def _step_text(layer: str, entry: dict) -> str:
    medians = {name: s["median"] * 1e6 for name, s in entry["summary"].items()}
    times = ", ".join(f"{name} {us:.1f} us" for name, us in medians.items())
    experts = f"{entry['experts']} experts, " if "experts" in entry else ""
    shape = f"{entry['width']} x {entry['hidden']}"
    return f"* {layer}, {experts}{entry['tokens']} tokens, {shape}: {times}."


def _extras_text(extras: dict, limits: dict) -> str:
    lines = []
    cost = extras.get("host_cost", {})
    if "added_us" in cost:
        lines.append(
            f"* Host cost of one jitted call: {cost['dispatch_us']:.1f} us,"
            f" {cost['added_us']:.1f} us above a program of one trivial kernel,"
            f" {cost['above_empty_call_us']:.1f} us above one with an empty custom call;"
            f" {cost['in_program_us']:.1f} us per call inside a program."
        )
    compiled = extras.get("compile", [])
    if isinstance(compiled, list) and compiled:
        seconds = sorted(entry["seconds"] for entry in compiled)
        lines.append(
            f"* Compilation of {len(seconds)} kernels: median {seconds[len(seconds) // 2]:.2f} s,"
            f" slowest {seconds[-1]:.2f} s."
        )
    quantised = extras.get("quantiser", [])
    for entry in quantised if isinstance(quantised, list) else []:
        lines.append(_quantiser_text(entry, limits))
    for name, layer in (("mlp", "Gated MLP"), ("moe", "Mixture of experts")):
        steps = extras.get(name, [])
        lines += [_step_text(layer, e) for e in (steps if isinstance(steps, list) else [])]
    for name, part in extras.items():
        if isinstance(part, dict) and (reason := part.get("failed") or part.get("not reached")):
            lines.append(f"* {name}: no numbers: {reason}.")
    return "\n".join(lines)


def report(record: dict) -> str:
    """Returns the Markdown report of a record."""
    env = record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    parts = [
        f"# Benchmark of {record['created'][:10]}",
        f"{env['device']}, driver {env['driver']}, commit {env['commit']}; {packages}.",
    ]
    if env["platform"] == "cpu":
        parts.append(CPU_NOTE)
    parts += [f"> Warning: {warning}" for warning in env["warnings"]]
    parts.append(
        "Cells are a peer's time over ours, the median of ratios taken round by round: above 1 ours"
        " is faster."
    )
    if record["limits"]:
        parts.append(f"Measured limits: {_limits_text(record['limits'])}.")
    for suite in dict.fromkeys(case["suite"] for case in record["cases"]):
        parts.append(f"## {suite}\n\n{suite_table(record, suite)}")
    parts.append(_published_table(record))
    missing = {n: p["missing"] for n, p in record["peers"].items() if p.get("missing")}
    failures = _failures(record)
    if missing or failures:
        lines = [f"* {record['peers'][n]['label']}: missing: {why}" for n, why in missing.items()]
        parts.append("## Missing and failed\n\n" + "\n".join(lines + failures))
    if text := _extras_text(record["extras"], record["limits"]):
        parts.append(f"## Around the products\n\n{text}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _failures(record: dict) -> list[str]:
    lines = []
    for case in record["cases"]:
        for name, result in case["results"].items():
            if result["status"] == "failed":
                label = record["peers"][name]["label"]
                reason = result["reason"].splitlines()[0][:200]
                shape = "x".join(str(case[axis]) for axis in "mnk")
                lines.append(f"* {label} on {case['name']} {shape}: failed: {reason}")
    return lines
