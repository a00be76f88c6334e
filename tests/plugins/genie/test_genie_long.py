"""Texts longer than the context, whose oldest ids are forgotten: Genie on the simulator, and our own host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_checkpoint import RECIPE, write_recipe

from llmconv import Bundle, Recipe, RecipeError, Sampling, apply
from llmconv.decoding import Dialog
from llmconv.errors import ContextFullError
from llmconv_plugins.genie.genie_config import CONFIG
from llmconv_plugins.runtimes.genie import GenieRuntime
from llmconv_plugins.runtimes.onnxruntime import OnnxRuntime
from llmconv_plugins.runtimes.simulator import QnnSimulator
from llmconv_plugins.runtimes.torch import TorchRuntime

BOS, EOS = 1, 2
LENGTH, SINKS = 320, 5
LONG = [BOS, *(300 + 7 * i % 200 for i in range(300))]


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small model, told to know 1024 positions: prompt 32 of 128, token 1 of 128, conversations of 320."""
    pytest.importorskip("onnxruntime_qnn")
    folder = tmp_path_factory.mktemp("long")
    write_recipe(folder)
    config = folder / "tiny_llama" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 1024}))
    chat = (f"chat.length={LENGTH}", f"chat.sinks={SINKS}", "chat.stop=['User:']")
    changes = (*chat, f"output.folder='{folder / 'bundle'}'")
    apply(Recipe.load(folder / RECIPE, changes), verify=False)
    return Bundle(folder / "bundle")


def answers(dialog: Dialog, turns: Sequence[tuple[int, int]], between: Sequence[int] = ()) -> list[list[int]]:
    """What is written in each turn, at most so many ids behind so many that are read."""
    return [
        list(dialog.query([*(between if i else ()), *LONG[:tokens]], limit)) for i, (tokens, limit) in enumerate(turns)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "turns",
    [[(100, 60)], [(200, 12)], [(60, 20), (40, 30)], [(90, 50), (5, 20)]],
    ids=["an_answer", "a_prompt", "a_second_turn", "a_second_turn_behind_what_is_forgotten"],
)
def test_genie_and_the_qnn_runtime_forget_alike(long_bundle: Bundle, turns: list[tuple[int, int]]) -> None:
    with (
        GenieRuntime().dialog(long_bundle, Sampling(), (EOS,)) as genie,
        QnnSimulator().dialog(long_bundle, Sampling(), (EOS,)) as qnn,
    ):
        found = answers(genie, turns)
        assert found == answers(qnn, turns, [EOS])
        assert all(found)
        assert genie.length == qnn.length + 1 > 128


@pytest.mark.slow
def test_torch_and_onnxruntime_forget_alike(long_bundle: Bundle) -> None:
    """Not compared with the simulator's ids: of random weights many logits nearly tie, which its integers turn."""
    turns = [(200, 12), (5, 12)]
    with (
        TorchRuntime().dialog(long_bundle, Sampling(), (EOS,)) as in_torch,
        OnnxRuntime().dialog(long_bundle, Sampling(), (EOS,)) as in_onnxruntime,
    ):
        found = answers(in_torch, turns)
        assert found == answers(in_onnxruntime, turns)
        assert all(found)


@pytest.mark.slow
def test_what_is_forgotten_changes_the_text_and_sinks_do_too(long_bundle: Bundle) -> None:
    def text(sinks: int) -> list[int]:
        bundle = Bundle(long_bundle.folder)
        bundle.manifest["recipe"]["chat"]["sinks"] = sinks
        with OnnxRuntime().dialog(bundle, Sampling(), (EOS,)) as dialog:
            return answers(dialog, [(200, 30)])[0]

    assert text(SINKS) == text(SINKS)
    assert text(SINKS) != text(60)


@pytest.mark.slow
def test_a_conversation_ends_at_its_length(long_bundle: Bundle) -> None:
    with OnnxRuntime().dialog(long_bundle, Sampling(), ()) as dialog:
        assert dialog.context == LENGTH
        assert len(list(dialog.query(LONG[:290], 100))) == LENGTH - 290 + 1
        assert dialog.reason == f"the context of {LENGTH} tokens is full"
    with GenieRuntime().dialog(long_bundle, Sampling(), ()) as genie:
        with pytest.raises(ContextFullError, match=f"has room for {LENGTH - 32}"):
            genie.query(LONG[:289], 1)
        written = len(list(genie.query(LONG[:280], 100)))
        assert genie.reason == "Genie: the context is full (status 4)"
        assert LENGTH - 280 - 1 <= written <= LENGTH - 280 + 1


@pytest.mark.slow
def test_genies_configuration_says_so(long_bundle: Bundle) -> None:
    dialog = json.loads(long_bundle.path(CONFIG).read_text())["dialog"]
    assert (dialog["context"]["size"], dialog["stop-sequence"]) == (LENGTH, ["User:"])
    assert (dialog["engine"]["longcontext"]["type"], dialog["engine"]["longcontext"]["reserved-tokens"]) == (
        "sliding-window",
        SINKS,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["chat.length=128"], "the context holds that"),
        (["chat.length=4096"], "chat.length = 4096, but the checkpoint knows only 256 positions"),
        (
            ["chat.length=200", "graphs.prompt.ar=64"],
            "behind a past of 64, which has no room for as many beside 4 sinks",
        ),
        (["chat.length=200", "graphs={ar = [1, 16], context = [64, 128]}"], "the graphs have contexts of 64 to 128"),
    ],
)
def test_what_cannot_be_so_long(small_recipe: Path, tmp_path: Path, changes: list[str], said: str) -> None:
    recipe = Recipe.load(small_recipe, [*changes, f"output.folder='{tmp_path / 'out'}'"], backend="onnx")
    with pytest.raises(RecipeError, match=said) as caught:
        apply(recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
