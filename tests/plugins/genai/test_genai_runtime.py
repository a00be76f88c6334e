"""ONNX Runtime GenAI writes what llmconv's own runtimes write, on the CPU and on the HTP simulator."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmconv import BackendError, Bundle, Registry, Sampling
from llmconv.cli import main
from llmconv.decoding import Decoder, Dialog
from llmconv.errors import ContextFullError
from llmconv.runtimes import source_of
from llmconv.runtimes.runtime import rope_table
from llmconv_plugins.genai.genai_dialog import GenAIDialog
from llmconv_plugins.runtimes import OnnxRuntime, QnnSimulator
from llmconv_plugins.runtimes.genai import GenAIRuntime

GREEDY, CONTEXT = Sampling(), 128


@pytest.fixture(scope="module")
def text(small_bundle: Bundle) -> list[int]:
    """Ids of held-out text."""
    registry = Registry.load()
    tokenizer = source_of(small_bundle, registry).tokenizer()
    return [1, *tokenizer.encode((small_bundle.folder / "evaluation.txt").read_text()[:2000])]


@contextmanager
def both(bundle: Bundle) -> Iterator[tuple[Dialog, Dialog]]:
    with (
        OnnxRuntime().dialog(bundle, GREEDY, ()) as own,
        GenAIRuntime().dialog(bundle, GREEDY, ()) as genai,
    ):
        yield own, genai


def same(bundle: Bundle, prompt: Sequence[int], own: Sequence[int], genai: Sequence[int]) -> bool:
    """Equal, or apart from a token on whose two logits are within one step of their encoding."""
    if list(own) == list(genai):
        return True
    at = next(i for i, (a, b) in enumerate(zip(own, genai, strict=True)) if a != b)
    with OnnxRuntime().open(bundle) as runners:
        row = Decoder(runners, rope_table(bundle)).read([*prompt, *own[:at]])[-1]
    logits = next(t for t in bundle.graphs["token"].parts[-1].outputs if t.kind == "logits")
    assert logits.encoding is not None
    return bool(abs(row[own[at]] - row[genai[at]]) <= logits.encoding.scale * 1.01)


@pytest.mark.parametrize("count", [1, 5, 32, 50, 100])  # one token, a window's part, a window, two, four
def test_text_is_that_of_onnxruntime(genai_bundle: Bundle, text: list[int], count: int) -> None:
    prompt = text[:count]
    with both(genai_bundle) as (own, genai):
        wanted, found = list(own.query(prompt, 20)), list(genai.query(prompt, 20))
    assert len(found) == 20
    assert same(genai_bundle, prompt, wanted, found)
    assert len(set(found)) > 1
    assert genai.reason == "20 tokens"


def test_text_ends_where_the_context_does(genai_bundle: Bundle, text: list[int]) -> None:
    with both(genai_bundle) as (own, genai):
        wanted, found = list(own.query(text[:110], 100)), list(genai.query(text[:110], 100))
        assert len(found) == CONTEXT - 110 + 1
        assert same(genai_bundle, text[:110], wanted, found)
        assert own.reason == genai.reason == "the context of 128 tokens is full"
        assert own.length == genai.length == CONTEXT + 1
        with pytest.raises(ContextFullError):
            genai.query([5], 1)


def test_a_prompt_graph_without_past(genai_published: Bundle, text: list[int]) -> None:
    for count in (1, 40, 120):
        with both(genai_published) as (own, genai):
            wanted, found = list(own.query(text[:count], 15)), list(genai.query(text[:count], 15))
        assert len(found) == min(15, CONTEXT - count + 1)
        assert same(genai_published, text[:count], wanted, found)


def test_a_second_turn_and_a_new_beginning(genai_bundle: Bundle, text: list[int]) -> None:
    with both(genai_bundle) as (own, genai):
        turns = (text[:10], text[10:50], text[50:55])
        wanted = [list(own.query(turn, 8)) for turn in turns]
        found = [list(genai.query(turn, 8)) for turn in turns]
        assert found == wanted
        assert genai.length == own.length
        genai.reset()
        assert list(genai.query(turns[0], 8)) == wanted[0]


def test_text_stops_at_the_ids_that_end_it(genai_bundle: Bundle, text: list[int]) -> None:
    with GenAIRuntime().dialog(genai_bundle, GREEDY, ()) as dialog:
        written = list(dialog.query(text[:5], 12))
    end = written[6]
    with GenAIRuntime().dialog(genai_bundle, GREEDY, (end,)) as dialog:
        assert list(dialog.query(text[:5], 12)) == written[: written.index(end)]
        assert dialog.reason == "end of text"


def test_sampling_is_seeded(genai_bundle: Bundle, text: list[int]) -> None:
    def write(seed: int) -> list[int]:
        with GenAIRuntime().dialog(genai_bundle, Sampling(2.0, 50, 0.95, seed), ()) as dialog:
            return list(dialog.query(text[:5], 12))

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_compiled_parts_write_what_the_simulator_writes(genai_bundle: Bundle, text: list[int]) -> None:
    folder = genai_bundle.folder / "genai" / "qnn"
    with (
        QnnSimulator().dialog(genai_bundle, GREEDY, ()) as own,
        GenAIDialog(folder, GREEDY, (), context=CONTEXT, length=160, provider="qnn") as genai,
    ):
        wanted, found = list(own.query(text[:40], 6)), list(genai.query(text[:40], 6))
    assert len(found) == 6
    assert same(genai_bundle, text[:40], wanted, found)


def test_bundle_without_the_form(small_bundle: Bundle) -> None:
    with (
        pytest.raises(BackendError, match=r"lacks genai/genai_config.json \(llmconv export .* --to genai\)"),
        GenAIRuntime().dialog(small_bundle, GREEDY, ()),
    ):
        pass


def test_package_that_is_not_installed(genai_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert GenAIRuntime().lacks(genai_bundle) == "ONNX Runtime GenAI (pip install onnxruntime-genai)"


def test_folder_that_genai_refuses(genai_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(genai_bundle.folder / "genai", tmp_path / "genai")
    file = tmp_path / "genai" / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["decoder"]["pipeline"].pop()
    config["model"]["decoder"]["head_size"] = "sixty-four"
    file.write_text(json.dumps(config))
    with pytest.raises(BackendError, match=r"loading .*genai: ONNX Runtime GenAI: ") as caught:
        GenAIDialog(file.parent, GREEDY, (), context=CONTEXT, length=160)
    assert "\n" not in str(caught.value)


def test_a_child_that_dies_is_one_line(genai_bundle: Bundle, text: list[int]) -> None:
    with GenAIRuntime().dialog(genai_bundle, GREEDY, ()) as dialog:
        assert isinstance(dialog, GenAIDialog)
        answer = dialog.query(text[:5], 5)
        next(answer)
        dialog._child.process.kill()
        dialog._child.process.wait()
        with pytest.raises(BackendError, match="writing: ONNX Runtime GenAI ") as caught:
            list(answer)
    assert "\n" not in str(caught.value)


def test_unknown_format_is_one_line(
    genai_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmconv", "export", str(genai_bundle.folder), "--to", "gena"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "error: no exporter named 'gena'; did you mean 'genai'?" in capsys.readouterr().err


def test_config_holds_the_whole_cache_and_an_id_that_no_text_has(genai_bundle: Bundle) -> None:
    config = json.loads((genai_bundle.folder / "genai" / "genai_config.json").read_text())["model"]
    window = config["decoder"]["sliding_window"]
    assert window["window_size"] + window["cache_slack"] == CONTEXT  # GenAI's buffer on the CPU
    assert config["pad_token_id"] == config["vocab_size"]  # no text has it
    assert config["context_length"] == CONTEXT + window["window_size"]
