# SPDX-License-Identifier: Apache-2.0
"""Markdown of a record: ratios per case and peer, geometric means, what is missing and why."""

import collections
from collections.abc import Sequence

from jax_fp8gemm._src.tools.tuning import gpu_state, sampling

# A ratio is marked where half of its rounds lie further apart than this share of it.
_WIDE_SPREAD = 0.1
CPU_NOTE = "**These are times on a CPU, of XLA and of a simulator. They say nothing about a GPU.**"


def _measured(case: dict, peer: str) -> dict | None:
    result = case["results"].get(peer)
    return result if result is not None and result["status"] == "measured" else None


def ratio(case: dict, peer: str) -> float | None:
    """Returns how many times longer a peer took than ours; None where either has no time."""
    ours, theirs = _measured(case, "ours"), _measured(case, peer)
    if ours is None or theirs is None:
        return None
    return sampling.paired_ratio(ours["samples_s"], theirs["samples_s"])["median"]


def roofline_share(case: dict, limits: dict) -> float | None:
    """Returns the share of the measured limits that ours reaches; None where one is unknown."""
    ours = _measured(case, "ours")
    if ours is None or not {"fp8_flops", "copy_bytes"} <= limits.keys():
        return None
    least = sampling.roofline_seconds(
        case["flops"],
        case["bytes"],
        limits["fp8_flops"]["per_s"],
        limits["copy_bytes"]["per_s"],
    )
    return least / ours["summary"]["median"]


def _cell(case: dict, peer: str) -> str:
    ours, theirs = _measured(case, "ours"), _measured(case, peer)
    if ours is not None and theirs is not None:
        paired = sampling.paired_ratio(ours["samples_s"], theirs["samples_s"])
        width = (paired["high_quartile"] - paired["low_quartile"]) / paired["median"]
        return f"{paired['median']:.2f}{'~' if width > _WIDE_SPREAD else ''}"
    status = case["results"].get(peer, {}).get("status", "missing")
    return {"measured": "-", "not applicable": "n/a"}.get(status, status)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shape(case: dict) -> str:
    return "x".join(str(case[axis]) for axis in "mnk")


def _was_reached(case: dict) -> bool:
    return any(result["status"] != "not reached" for result in case["results"].values())


def _has_groups(cases: Sequence[dict]) -> bool:
    return any(case.get("num_groups", 1) > 1 for case in cases)


def _case_row(case: dict, record: dict, has_groups: bool, peers: Sequence[str]) -> str:
    ours = _measured(case, "ours")
    cells = [case["name"], *([str(case.get("num_groups", 1))] if has_groups else [])]
    cells += [str(case[axis]) for axis in "mnk"]
    if ours is None:
        cells += [case["results"].get("ours", {}).get("status", "missing"), "", ""]
    else:
        median = ours["summary"]["median"]
        cells += [f"{median * 1e6:.1f}", f"{ours['summary']['spread']:.1%}"]
        cells.append(f"{case['flops'] / median / 1e12:.3g}")
    if record["environment"]["platform"] == "gpu":
        share = roofline_share(case, record["limits"])
        cells.append("" if share is None else f"{share:.0%}")
    return _row(cells + [_cell(case, name) for name in peers])


def suite_table(record: dict, suite: str) -> str:
    """Returns the table of one suite; a cell is a peer's time over ours."""
    all_cases = [case for case in record["cases"] if case["suite"] == suite]
    cases = [case for case in all_cases if _was_reached(case)]
    left = [f"{case['name']} {_shape(case)}" for case in all_cases if not _was_reached(case)]
    left_out = f"Not reached, {len(left)} of {len(all_cases)}: {', '.join(left)}."
    if not cases:
        return left_out
    others = [name for name in record["peers"] if name != "ours"]
    # A peer that has no such product at all is named below the table instead.
    peers = [n for n in others if {_cell(case, n) for case in cases} != {"n/a"}]
    has_groups = _has_groups(cases)
    head = ["case", *(["groups"] if has_groups else []), "M", "N", "K"]
    head += [f"{record['peers']['ours']['label']} us", "spread", "TFLOPS"]
    head += ["of limit"] if record["environment"]["platform"] == "gpu" else []
    num_own = len(head)
    head += [record["peers"][name]["label"] for name in peers]
    lines = [_row(head), _row(["---"] + ["--:"] * (len(head) - 1))]
    lines += [_case_row(case, record, has_groups, peers) for case in cases]
    means = [
        sampling.geometric_mean(r for c in cases if (r := ratio(c, name)) is not None)
        for name in peers
    ]
    blank = [""] * (num_own - 1)
    lines.append(
        _row(["geometric mean", *blank, *("" if m is None else f"**{m:.2f}**" for m in means)])
    )
    absent = [
        f"{record['peers'][name]['label']} ({cases[0]['results'][name]['reason']})"
        for name in others
        if name not in peers
    ]
    if absent:
        lines += ["", f"Not applicable: {', '.join(absent)}."]
    if left:
        lines += ["", left_out]
    return "\n".join(lines)


def _published_table(record: dict) -> str:
    """Returns ours beside what others published for the same shapes on other machines."""
    cases = [c for c in record["cases"] if c["published"] and _measured(c, "ours")]
    if not cases or record["environment"]["platform"] != "gpu":
        return ""
    sources = list(dict.fromkeys(source for c in cases for source in c["published"]))
    lines = [_row(["kind", "groups", "M", "N", "K", "ours TFLOPS", *sources])]
    lines.append(_row(["---"] + ["--:"] * (5 + len(sources))))
    for case in cases:
        tflops = case["flops"] / _measured(case, "ours")["summary"]["median"] / 1e12
        published = (case["published"].get(source) for source in sources)
        lines.append(
            _row(
                [
                    case["kind"],
                    str(case.get("num_groups", 1)),
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


def _rate(per_s: float, unit: str) -> str:
    scale, prefix = (1e12, "T") if per_s >= 1e12 else (1e9, "G")
    return f"{per_s / scale:.3g} {prefix}{unit}"


def _limits_text(limits: dict) -> str:
    kinds = (("copy_bytes", "copy", "B/s"), ("fp8_flops", "fp8", "FLOPS"))
    parts = []
    for name, label, unit in (*kinds, ("bf16_flops", "bfloat16", "FLOPS")):
        if name in limits:
            by = f" ({limits[name]['by']})" if "by" in limits[name] else ""
            parts.append(f"{label} {_rate(limits[name]['per_s'], unit)}{by}")
    return ", ".join(parts)


def _quantizer_text(entry: dict, limits: dict) -> str:
    """Returns a line about one layout: bandwidths, beside that of a copy."""
    rates = ", ".join(f"{name} {r / 1e9:.4g} GB/s" for name, r in entry["bytes_per_s"].items())
    copy = limits.get("copy_bytes", {}).get("per_s")
    share = ""
    if copy:
        share = f"; {max(entry['bytes_per_s'].values()) / copy:.0%} of what a copy reaches"
    return f"* Quantizer, {entry['layout']} of {tuple(entry['shape'])}: {rates}{share}."


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
            f" {cost['added_us']:.1f} us above a program of one trivial kernel;"
            f" {cost['in_program_us']:.1f} us per call inside a program."
        )
    compiled = extras.get("compile", [])
    if isinstance(compiled, list) and compiled:
        seconds = sorted(entry["seconds"] for entry in compiled)
        lines.append(
            f"* Compilation of {len(seconds)} kernels: median {seconds[len(seconds) // 2]:.2f} s,"
            f" slowest {seconds[-1]:.2f} s."
        )
    quantized = extras.get("quantizer", [])
    for entry in quantized if isinstance(quantized, list) else []:
        lines.append(_quantizer_text(entry, limits))
    for name, layer in (("mlp", "Gated MLP"), ("moe", "Mixture of experts")):
        steps = extras.get(name, [])
        lines += [_step_text(layer, e) for e in (steps if isinstance(steps, list) else [])]
    for name, part in extras.items():
        if isinstance(part, dict) and (reason := part.get("failed") or part.get("not reached")):
            lines.append(f"* {name}: no numbers: {reason}.")
    return "\n".join(lines)


def _clocks_text(record: dict) -> str:
    """Returns what the GPU's clock was while ours ran, and how often the power cap held it."""
    states = [state for case in record["cases"] if (state := case.get("gpu_under_load"))]
    clocks = [int(c) for state in states if (c := state.get("sm_clock_mhz", "")).isdigit()]
    if not clocks:
        return ""
    most = record["environment"]["clocks"].get("max_sm_clock_mhz", "unknown")
    capped = sum(map(gpu_state.is_power_capped, states))
    return (
        f"SM clock while ours ran: {min(clocks)} to {max(clocks)} MHz of {most}; held by the power"
        f" cap on {capped} of {len(states)} cases."
    )


def _peers_table(record: dict) -> str:
    """Returns what every peer computes, and what became of it."""
    lines = [_row(["peer", "computes", "here", "largest error"]), _row(["---"] * 3 + ["--:"])]
    for name, peer in record["peers"].items():
        results = [case["results"][name] for case in record["cases"] if name in case["results"]]
        counts = collections.Counter(result["status"] for result in results)
        here = ", ".join(f"{status} {count}" for status, count in counts.items())
        if peer.get("missing"):
            here = f"missing: {peer['missing']}"
        notes = [result.get("notes", {}) for result in results]
        # A peer that asks for XLA's own fp8 product, where XLA chose another.
        if wide := sum(note.get("rewritten_to_cublaslt_fp8") is False for note in notes):
            here += f"; {wide} of them multiplied in a wider type, not in fp8"
        errors = [result["relative_error"] for result in results if "relative_error" in result]
        error = f"{max(errors):.1e}" if errors else ""
        lines.append(_row([peer["label"], peer["semantics"], here, error]))
    return "\n".join(lines)


def _failures(record: dict) -> list[str]:
    """Returns what failed; cases of a peer with the same reason are one line."""
    places: dict[tuple[str, str], list[str]] = {}
    for case in record["cases"]:
        for name, result in case["results"].items():
            if result["status"] == "failed":
                reason = result["reason"].splitlines()[0][:200]
                places.setdefault((name, reason), []).append(f"{case['name']} {_shape(case)}")
    return [
        f"* {record['peers'][name]['label']} on {found[0]}"
        f"{f' and {len(found) - 1} more' if found[1:] else ''}: {reason}"
        for (name, reason), found in places.items()
    ]


def report(record: dict) -> str:
    """Returns the Markdown report of a record."""
    env = record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    results = [result for case in record["cases"] for result in case["results"].values()]
    methods = dict.fromkeys(result["method"] for result in results if "method" in result)
    parts = [
        f"# Benchmark of {record['created'][:10]}",
        f"{env['device']}, driver {env['driver']}, commit {env['commit']}; {packages}.",
        CPU_NOTE if env["platform"] == "cpu" else _clocks_text(record),
        *(f"> Warning: {warning}" for warning in env["warnings"]),
        f"Cells are a peer's time over that of {record['peers']['ours']['label']}, the median of"
        " ratios taken round by round: above 1 ours is faster. `~`: half of a cell's ratios lie"
        f" over {_WIDE_SPREAD:.0%} apart.",
        f"Timed by: {', '.join(methods)}." if methods else "",
        f"Measured limits: {_limits_text(record['limits'])}." if record["limits"] else "",
    ]
    for suite in dict.fromkeys(case["suite"] for case in record["cases"]):
        parts.append(f"## {suite}\n\n{suite_table(record, suite)}")
    parts.append(_published_table(record))
    parts.append(f"## Peers\n\n{_peers_table(record)}")
    if failures := _failures(record):
        parts.append("## Failed\n\n" + "\n".join(failures))
    if text := _extras_text(record["extras"], record["limits"]):
        parts.append(f"## Around the products\n\n{text}")
    return "\n\n".join(part for part in parts if part) + "\n"
