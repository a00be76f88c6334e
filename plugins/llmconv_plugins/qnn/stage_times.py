"""How long each stage of the compiler took, from the profile that QNN writes beside a compilation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

PROFILE = "profile.csv"
_ROOT, _STAGE = "ROOT", "SUB-EVENT"

Stages = dict[str, float]


def read_stages(file: Path, labels: Sequence[str]) -> dict[str, Stages]:
    """Seconds by graph and stage; empty where the profile is not there or not as it was known.

    Args:
        labels: of the graphs, in the order in which they were compiled. Graphs that share weights share a profile, and
            what is in it already is written once more with each.
    """
    if not file.is_file():
        return {}
    graphs: list[Stages] = []
    with file.open(newline="") as rows:
        for row in csv.DictReader(rows):
            level, event = row.get("Event Level"), (row.get("Event Identifier") or "").strip(" ,")
            if level == _ROOT:
                graphs.append({})
            elif level == _STAGE and graphs and row.get("Unit of Measurement") == "US":
                graphs[-1][event] = int(row["Time"]) / 1e6
    distinct = [stages for i, stages in enumerate(graphs) if stages and stages not in graphs[:i]]
    return dict(zip(labels, distinct, strict=True)) if len(distinct) == len(labels) else {}
