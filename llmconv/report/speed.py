"""What a token takes: measured on a device where it was, and the bound that memory sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmconv.bundle.bundle import Bundle
from llmconv.report.figures import Table, amount

COLUMNS = (
    "Target Model",
    "Graph",
    "Device",
    "Chipset",
    "Target Runtime",
    "Inference Time",
    "Peak Memory Range",
    "Precision",
    "Primary Compute Unit",
    "Job",
)  # those of published model cards, the graph and the job


def speed(bundle: Bundle) -> Iterator[Table]:
    """Measured latency and outputs, where a device was asked, and the estimate."""
    if profile := bundle.report.get("profile"):
        yield _latency(profile)
    if rows := bundle.report.get("inference"):
        cells = tuple((row["Graph"], row["Device"], _kinds(row["SQNR"]), row["KV off"], row["Job"]) for row in rows)
        columns = ("Graph", "Device", "SQNR", "Keys and values over 1 step off", "Job")
        note = "One run of each graph of each part on the device, beside ONNX Runtime on the same inputs."
        yield Table("Outputs on a device", columns, cells, "measured", len(columns), note)
    yield _estimate(bundle)


def _latency(profile: dict[str, Any]) -> Table:
    rows: list[dict[str, Any]] = profile["rows"]
    shown = tuple(column for column in COLUMNS if any(row.get(column) for row in rows))
    cells = tuple(tuple(str(row.get(column, "")) for column in shown) for row in rows)
    note = f"{profile['source'].capitalize()}. One run of each graph of each part."
    for what, key in (("to the first token", "time_to_first_token_ms"), ("a token", "time_per_token_ms")):
        if profile.get(key) is not None:
            note += f" Time {what}, the sum over the parts: {profile[key]:.3f} ms."
    return Table("Latency on a device", shown, cells, "measured", len(shown), note)


def _kinds(found: dict[str, str]) -> str:
    return ", ".join(f"{kind} {value}" for kind, value in found.items())


def _estimate(bundle: Bundle) -> Table:
    target, parts = bundle.manifest["target"], bundle.report.get("parts", [])
    bandwidth = target["bandwidth"]
    read = [(str(part["number"] + 1), part["bytes_a_token"]) for part in parts]
    read.append(("all", sum(count for _, count in read)))
    rows = tuple((name, amount(count), _seconds(count, bandwidth)) for name, count in read if parts)
    note = (
        "Time = bytes read for a token ÷ bandwidth of the memory. Bytes: every weight but embedding tables, and the "
        "keys and values that go in and out of the graph that reads least, of the longest context, once. "
    )
    if bandwidth is None:
        note += f"No bandwidth is at hand for {target['name']}, so no time is given."
    else:
        note += f"Bandwidth: {bandwidth / 1e9:g} GB/s of {target['name']}. No device was asked; it cannot be faster."
    return Table("The bound that memory sets to writing a token", ("part", "bytes", "time"), rows, "estimate", 1, note)


def _seconds(count: int, bandwidth: float | None) -> str:
    if bandwidth is None:
        return "unknown"
    milliseconds = count / bandwidth * 1e3
    return f"≥ {milliseconds:.3f} ms" if milliseconds < 1 else f"≥ {milliseconds:.1f} ms"
