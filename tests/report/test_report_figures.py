"""Figures by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmconv import Bundle
from llmconv.encodings import Noise
from llmconv.report.contents import sections
from llmconv.report.figures import Table, amount
from llmconv.report.picture import plot_of
from llmconv.report.sqnr import Series, series


@pytest.fixture
def tables(small_bundle: Bundle) -> dict[str, Table]:
    return {table.caption: table for section in sections(small_bundle) for table in section.tables}


def test_attention_of_one_head_and_of_all(tables: dict[str, Table]) -> None:
    found = tables["The largest intermediate of attention"]
    assert found.basis == "computed"
    assert found.rows[0] == ("prompt", "16", amount(2 * 32 * 128 * 2), amount(32 * 128 * 2), "1/2")
    assert found.rows[1] == ("token", "16", amount(2 * 128 * 2), amount(128 * 2), "1/2")


def test_weights_by_bits_are_all_weights(small_bundle: Bundle, tables: dict[str, Table]) -> None:
    rows = tables["Weights by bit width"].rows
    assert [row[:3] for row in rows] == [("int4", "a row", "21"), ("int8", "a row", "1"), ("uint16", "a tensor", "8")]
    weights = small_bundle.report["weights"].values()
    assert sum(w["bytes"] for w in weights) == sum(p["weight_bytes"] for p in small_bundle.report["parts"])


def test_weights_in_blocks_are_a_row_of_their_own(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "a": {"bits": 4, "block": 0, "bytes": 10, "sqnr": 20.0},
        "b": {"bits": 4, "block": 32, "bytes": 30, "sqnr": 22.0},
        "c": {"bits": 4, "block": 32, "bytes": 20, "sqnr": 25.0},
        "d": {"bits": 32, "block": 0, "bytes": 40, "sqnr": None},
    }
    monkeypatch.setattr(Bundle, "report", {**small_bundle.report, "weights": given})
    tables = [table for section in sections(small_bundle) for table in section.tables]
    (found,) = (table.rows for table in tables if table.caption == "Weights by bit width")
    assert found == (
        ("int4", "a row", "1", "10 B", "10.0%", "20.0"),
        ("int4", "a row, times 1 to 16 for 32 columns", "2", "50 B", "50.0%", "23.5"),
        ("float32", "none", "1", "40 B", "40.0%", ""),
    )


def test_bound_of_a_token_follows_its_formula(small_bundle: Bundle, tables: dict[str, Table]) -> None:
    found = tables["The bound that memory sets to writing a token"]
    assert found.basis == "estimate"
    parts = small_bundle.report["parts"]
    count = sum(p["weight_bytes"] - p["table_bytes"] + min(g["cache_bytes"] for g in p["graphs"]) for p in parts)
    assert found.rows[-1] == ("all", amount(count), f"≥ {count / 67.2e9 * 1e3:.3f} ms")


def test_target_without_a_bandwidth_gets_no_time(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {**small_bundle.manifest["target"], "bandwidth": None, "name": "Other"}
    monkeypatch.setitem(small_bundle.manifest, "target", target)
    (speed,) = next(s for s in sections(small_bundle) if s.key == "speed").tables
    assert {row[2] for row in speed.rows} == {"unknown"}
    assert "No bandwidth is at hand for Other" in speed.note


def test_precision_is_what_the_proof_and_the_conversion_measured(small_bundle: Bundle) -> None:
    found = {s.title: s for s in series(small_bundle)}
    assert set(found) == {"weights", "activations", "qnn against onnxruntime, prompt", "qnn against onnxruntime, token"}
    weights = found["weights"].finite
    assert all(10 < db < 30 for name, db in weights.items() if "_proj." in name)  # 4 bits
    assert weights["lm_head.weight"] > 35  # 8 bits
    pair = found["qnn against onnxruntime, prompt"]
    assert pair.layers["hidden_state_1"] == 0  # of 2 parts of 1 and 2 layers
    assert pair.kinds["past_key_2_out"] == "new keys"
    (checked,) = (c for c in small_bundle.report["proof"] if c["name"] == "prompt on qnn against onnxruntime, logits")
    assert f"{pair.finite['logits']:.1f} dB" == checked["measured"]


def test_heads_are_one_tensor(small_bundle: Bundle) -> None:
    names = small_bundle.report["precision"]["activations"]
    assert "layers.2.self_attn.q_proj" in names
    assert not [name for name in names if ".h0" in name]


def test_plot_keeps_every_dot_inside_and_draws_the_worst_last() -> None:
    values: dict[str, float | None] = {f"layers.{i}.x": 20.0 + i for i in range(32)}
    values |= {"embed": 80.0, "moved": None, "norm": 33.0}
    layers = {f"layers.{i}.x": i for i in range(32)}
    made = Series("t", values, layers, dict.fromkeys(values, "x"), "")
    plot = plot_of(made, 32)
    assert len(plot.dots) == 34
    assert all(34 < dot.x < 332 and 10 <= dot.y <= 144 for dot in plot.dots)
    assert [dot.name for dot in plot.dots if dot.worst] == [plot.dots[-1].name] == ["layers.0.x"]
    assert plot.worst == "layers.0.x, 20.0 dB"
    assert len(plot.columns) == 8
    alone = plot_of(replace(made, values={"norm": 30.0}), 1)
    assert len(alone.dots) == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (2048, "2.0 kB"), (123_456, "0.12 MB"), (3.64e9, "3.64 GB")]
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count) == text


def test_decibels() -> None:
    assert Noise(100.0, 1.0).decibels == pytest.approx(20.0)
    assert Noise(1.0, 0.0).decibels is None
    assert Noise(0.0, 1.0).decibels is None


def test_every_row_is_as_wide_as_its_table(tables: dict[str, Any]) -> None:
    assert len(tables) > 10
    for table in tables.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}
