"""Graphs of two contexts in Genie on the simulator, and what GenieX reads of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmconv import Bundle, Recipe, Sampling, apply
from llmconv_plugins.genie import genie_files
from llmconv_plugins.genie.genie_config import CONFIG, SWITCHING
from llmconv_plugins.geniex.exporter import check
from llmconv_plugins.geniex.metadata import METADATA
from llmconv_plugins.qnn.read_back import prove_binaries
from llmconv_plugins.runtimes.genie import GenieRuntime
from llmconv_plugins.runtimes.simulator import QnnSimulator

BOS, EOS = 1, 2
LONG = [BOS, *(300 + 7 * i % 200 for i in range(700))]


def answers(bundle: Bundle, turns: Sequence[tuple[int, int]]) -> list[list[int]]:
    """What Genie writes in each turn, at most so many ids after it has read so many."""
    with GenieRuntime().dialog(bundle, Sampling(), (EOS,)) as dialog:
        return [list(dialog.query(LONG[:tokens], limit)) for tokens, limit in turns]


@pytest.mark.parametrize(
    "turns", [[(600, 8)], [(508, 8)], [(480, 4), (100, 8)]], ids=["a_prompt", "an_answer", "a_second_turn"]
)
def test_crossing_512_gives_the_text_of_the_1024_graphs_alone(
    tiny_contexts: Bundle, turns: list[tuple[int, int]]
) -> None:
    alone = Bundle(tiny_contexts.folder)
    alone.manifest["binaries"] = [
        binary for binary in alone.manifest["binaries"] if all("_cl1024_" in label for label in binary["graphs"])
    ]
    assert len(alone.manifest["binaries"]) == 4
    found = answers(tiny_contexts, turns)
    assert found == answers(alone, turns)
    assert all(found)
    assert sum(tokens for tokens, _ in turns) + sum(map(len, found)) > 512


def test_all_graphs_of_a_part_share_its_weights(tiny_contexts: Bundle) -> None:
    parts = tiny_contexts.report["parts"]
    assert [len(part["graphs"]) for part in parts] == [4, 4]
    for binary in tiny_contexts.manifest["binaries"]:
        if binary["simulator"]:
            continue
        size, weights = tiny_contexts.path(binary["file"]).stat().st_size, parts[binary["part"]]["weight_bytes"]
        assert len(binary["graphs"]) == 4
        assert weights < size < 2 * weights
    assert all(check.passed is not False for check in prove_binaries(tiny_contexts))


def test_the_files_tell_of_both_contexts(tiny_contexts: Bundle) -> None:
    check(tiny_contexts)
    metadata = json.loads(tiny_contexts.path(METADATA).read_text())
    assert metadata["genie"]["context_lengths"] == [512, 1024]
    assert {name.removesuffix("_1_of_2") for name in metadata["model_files"] if name.endswith("_1_of_2")} == {
        f"{what}_cl{context}" for what in ("prompt_ar128", "token_ar1") for context in (512, 1024)
    }
    config = json.loads(tiny_contexts.path(CONFIG).read_text())["dialog"]
    assert (config["context"]["size"], config["engine"]["backend"]["QnnHtp"][SWITCHING]) == (1024, True)


@pytest.mark.slow
@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="Genie of QAIRT 2.51; where it is right, _check_past of genie_files.py can go",
)
def test_a_past_as_long_as_what_is_new(small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_qnn")
    monkeypatch.setattr(genie_files, "_check_past", lambda _graph: None)
    changes = ("graphs={ar = [1, 32], context = [64]}", f"output.folder='{tmp_path / 'bundle'}'")
    bundle = apply(Recipe.load(small_recipe, changes), verify=False)
    with QnnSimulator().dialog(bundle, Sampling(), (EOS,)) as qnn:
        expected = list(qnn.query(LONG[:3], 8))
    assert answers(bundle, [(3, 8)]) == [expected]


def test_texts_are_rewound_while_the_shorter_graphs_run(tiny_contexts: Bundle) -> None:
    text = [*LONG[:300], 900, 901, 902]
    found = []
    for runtime in (GenieRuntime(), QnnSimulator()):
        with runtime.dialog(tiny_contexts, Sampling(), (EOS,)) as dialog:
            list(dialog.query(LONG[:380], 2))
            assert dialog.rewind(text) == 300
            found.append(list(dialog.query(text[300:], 6)))
    assert found[0] == found[1] != []
    with GenieRuntime().dialog(tiny_contexts, Sampling(), (EOS,)) as genie:
        list(genie.query(LONG[:600], 2))
        assert genie.rewind(text) == 0
        assert len(list(genie.query(text, 6))) == 6
