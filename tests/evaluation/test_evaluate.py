"""Figures of evaluators: against what comes out by hand, and who is run for them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from small_checkpoint import write_recipe

from llmconv import PluginError, Recipe, RecipeError, Registry
from llmconv.decoding import Arrays, Decoder, TorchRunner
from llmconv.decoding.decoder import Tensor
from llmconv.evaluation import FLOAT, Evaluator, Figure, Floats, Logits, evaluate, windows_of
from llmconv.evaluation.evaluator import figure
from llmconv.evaluation.perplexity import perplexity
from llmconv.graph import IO, trace
from llmconv.prepare.resolve import Checked, check
from llmconv.weights import HeldStore
from llmconv_plugins.evaluators.agreement import Agreement
from llmconv_plugins.evaluators.perplexity import Perplexity

VOCABULARY = 5
WINDOWS = [[0, 1, 2, 3], [0, 3, 3, 1], [0, 4, 2, 2]]
FLOAT32 = 1e-6  # relative; logits are float32
SLOPE = 1e-6  # relative; a difference quotient instead of a derivative


class Table:
    """Gives each token the logits of its row; reads up to four tokens, without past."""

    name, ar, context = "g", 4, 4

    def __init__(self, seed: int) -> None:
        self.rows = np.random.default_rng(seed).normal(0, 2, (VOCABULARY, VOCABULARY)).astype(np.float32)
        self.inputs: Mapping[str, Tensor] = {"ids": Tensor(IO("input_ids"), (1, 4))}
        self.outputs: Mapping[str, Tensor] = {"logits": Tensor(IO("logits"), (1, 4, VOCABULARY))}

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return {"logits": self.rows[inputs["ids"]]}


MODELS = {FLOAT: Table(0), "close": Table(0), "far": Table(1)}
MODELS["close"].rows = MODELS[FLOAT].rows + np.float32(0.1) * Table(2).rows


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run, in order, each on a table of its own."""
    found: list[str] = []

    @contextmanager
    def decoder(_model: object, on: str, tokens: int) -> Iterator[Decoder]:
        assert tokens == len(WINDOWS[0])
        found.append(on)
        yield Decoder([MODELS[on]], None)

    monkeypatch.setattr(importlib.import_module(evaluate.__module__), "_decoder", decoder)
    return found


def figures(evaluators: Sequence[Evaluator], *on: str, windows: Sequence[Sequence[int]] = WINDOWS) -> list[Figure]:
    return evaluate(object(), evaluators, on, windows)  # type: ignore[arg-type]  # nothing asks it for a decoder here


def named(found: Sequence[Figure]) -> dict[tuple[str, str], Figure]:
    return {(f.metric, f.on): f for f in found}


def test_perplexity_is_that_of_the_proof(ran: list[str]) -> None:
    found = named(figures([Perplexity()], FLOAT, "far"))
    for on in (FLOAT, "far"):
        assert found["perplexity", on].value == pytest.approx(perplexity(Decoder([MODELS[on]], None), WINDOWS))
        assert found["perplexity", on].count == 3 * 3  # no window's first token is told from one before it
    assert ran == [FLOAT, "far"]


def test_equal_logits_agree_wholly() -> None:
    logits = MODELS[FLOAT].rows
    scores = Agreement().scores([0, 1, 2, 3, 4], logits, logits.copy())
    assert scores["kl"].tolist() == [0.0] * VOCABULARY
    assert scores["top1"].tolist() == [1.0] * VOCABULARY


@pytest.mark.parametrize("level", [0.0, 1000.0])  # softmax does not see it, and exp(1000) must not overflow
def test_divergence_by_hand(level: float) -> None:
    """Float says 3/4 and 1/4, the other 1/2 each, then the reverse of float."""
    of_float = np.log(np.array([[3, 1], [3, 1]], np.float32)) + np.float32(level)
    other = np.log(np.array([[1, 1], [1, 3]], np.float32))
    scores = Agreement().scores([0, 1], other, of_float)
    expected = [3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2), 3 / 4 * math.log(3) + 1 / 4 * math.log(1 / 3)]
    assert scores["kl"].tolist() == pytest.approx(expected, rel=1e-4 if level else FLOAT32)
    assert scores["top1"].tolist() == [1.0, 0.0]  # of equals, the first


def test_a_runtime_is_held_against_float(ran: list[str]) -> None:
    found = named(figures([Agreement()], FLOAT, "close", "far"))
    assert found.keys() == {(metric, on) for metric in ("kl", "top1") for on in ("close", "far")}
    assert 0 < found["kl", "close"].value < found["kl", "far"].value
    assert found["top1", "far"].value < found["top1", "close"].value <= 1
    assert found["kl", "far"].count == 3 * 4  # the first token's prediction too
    assert ran == [FLOAT, "close", "far"]


def test_float_runs_for_a_comparison_even_where_it_is_not_shown(ran: list[str]) -> None:
    found = figures([Perplexity(), Agreement()], "far")
    assert [(f.task, f.metric, f.on) for f in found] == [
        ("perplexity", "perplexity", "far"),
        ("agreement", "kl", "far"),
        ("agreement", "top1", "far"),
    ]
    assert ran == [FLOAT, "far"]
    ran.clear()
    assert figures([Perplexity(), Agreement()], FLOAT, "far")[1:] == found
    ran.clear()
    figures([Perplexity()], "far")
    assert ran == ["far"]  # and for nothing else


def test_float_alone_is_compared_with_nothing(ran: list[str]) -> None:
    assert [(f.metric, f.on) for f in figures([Perplexity(), Agreement()], FLOAT)] == [("perplexity", FLOAT)]
    assert ran == [FLOAT]


def test_float_runs_first_wherever_it_stands(ran: list[str]) -> None:
    assert figures([Agreement()], "far", FLOAT) == figures([Agreement()], FLOAT, "far")
    assert ran == [FLOAT, "far"] * 2


def test_standard_error_by_hand() -> None:
    """Of windows whose means are 1, 2 and 6: the mean of 2 + 1 + 3 positions, the deviation of three windows."""
    rows = [np.array([0.0, 2.0]), np.array([2.0]), np.array([5.0, 6.0, 7.0])]
    spread = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2) / math.sqrt(3)
    found = figure(Agreement(), "kl", "torch", rows)
    assert (found.task, found.metric, found.on, found.count) == ("agreement", "kl", "torch", 6)
    assert found.value == pytest.approx(22 / 6)
    assert found.error == pytest.approx(spread, rel=SLOPE)
    of_exp = figure(Perplexity(), "perplexity", "torch", rows)
    assert of_exp.value == pytest.approx(math.exp(22 / 6))
    assert of_exp.error == pytest.approx(math.exp(22 / 6) * spread, rel=SLOPE)


def test_windows_that_are_alike_leave_no_error_and_one_alone_has_none() -> None:
    row = np.array([1.0, 3.0])
    assert figure(Agreement(), "kl", "torch", [row, row]).error == 0
    assert figure(Agreement(), "kl", "torch", [row]).error is None


def test_progress_counts_the_windows_of_each(ran: list[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(object(), [Agreement()], ["far"], WINDOWS, lambda *step: seen.append(step))  # type: ignore[arg-type]
    assert seen == [(on, done, 3) for on in (FLOAT, "far") for done in range(4)]
    assert ran == [FLOAT, "far"]


@dataclass(frozen=True)
class Broken(Evaluator):
    name: ClassVar[str] = "broken"

    def scores(self, window: Sequence[int], logits: Logits, of_float: Logits | None) -> Mapping[str, Floats]:
        raise ValueError("no idea")


def test_an_evaluator_that_fails_is_named(ran: list[str]) -> None:
    with pytest.raises(PluginError, match=r"^evaluator 'broken' failed: ValueError: no idea"):
        figures([Broken()], "far")
    assert ran == ["far"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """The small recipe over its checkpoint."""
    recipe = Recipe.load(write_recipe(tmp_path_factory.mktemp("small")))
    return check(recipe.model_copy(update={"calibration": None}), Registry.load(), calibrated=True)


def test_a_recipe_s_checkpoint_in_float(checked: Checked) -> None:
    text = checked.recipe.verify.text
    assert text is not None
    found = windows_of(checked, text, 2, 16)
    assert [len(window) for window in found] == [16, 16]
    (measured,) = evaluate(checked, [Perplexity(), Agreement()], [FLOAT], found)
    source = trace(checked.source.module(), 16, 16, "source")
    decoder = Decoder([TorchRunner(source, HeldStore(checked.source.weights()))], None)
    assert (measured.on, measured.count) == (FLOAT, 30)
    assert measured.value == pytest.approx(perplexity(decoder, found))
    assert measured.error is not None
    assert 0 < measured.error < measured.value


def test_a_recipe_alone_runs_on_no_runtime(checked: Checked) -> None:
    with pytest.raises(RecipeError, match=r"^--on torch: a recipe alone has no bundle; apply it, or give the bundle's"):
        evaluate(checked, [Perplexity()], [FLOAT, "torch"], WINDOWS)


def test_windows_are_spread_over_the_text(checked: Checked) -> None:
    text = checked.recipe.verify.text
    assert text is not None
    every, two = windows_of(checked, text, None, 16), windows_of(checked, text, 2, 16)
    assert len(every) > 4
    assert two == [every[0], every[len(every) // 2]]
    assert windows_of(checked, text, 1000, 16) == every


@pytest.mark.parametrize(
    ("text", "tokens", "said"),
    [
        ("", 1000, "--tokens 1000: the model knows only 256 positions"),
        ("none.txt", 16, "none.txt: no such file; give a text by --text"),
        ("short.txt", 16, "tokens, fewer than one window of 16; give a longer text"),
    ],
)
def test_texts_without_a_window(checked: Checked, tmp_path: Path, text: str, tokens: int, said: str) -> None:
    (tmp_path / "short.txt").write_text("Return")
    with pytest.raises(RecipeError, match=said) as caught:
        windows_of(checked, tmp_path / text, None, tokens)
    assert "\n" not in str(caught.value)
