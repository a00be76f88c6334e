"""Which layer a terminal names first when a conversion has lost too much."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmconv.report.sqnr import first_fall


def bundle(activations: dict[str, float | None]) -> Any:
    return SimpleNamespace(report={"precision": {"activations": activations}}, graphs={})


def layers(**low: float) -> dict[str, float | None]:
    found: dict[str, float | None] = {f"layers.{i}.mlp": 70.0 for i in range(9)}
    return {**found, "norm": 5.0, **{f"layers.{name[1:]}.add": value for name, value in low.items()}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (layers(), None),
        (layers(_8=18.8, _5=45.0), "in layer 5: 'layers.5.add' 45.0 dB, the median 70.0"),
        (layers(_8=18.8), "in layer 8: 'layers.8.add' 18.8 dB, the median 70.0"),
        (layers(_2=60.0), None),
        ({}, None),
    ],
)
def test_first_layer_that_falls(found: dict[str, float | None], said: str | None) -> None:
    line = first_fall(bundle(found))
    assert (line is None) if said is None else line == f"the SQNR of activations falls first {said}"
