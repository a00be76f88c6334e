"""Windows of text: as the tokenizer begins texts, without a byte-order mark, half of them as conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_checkpoint import write_recipe

from llmconv import Recipe, RecipeError, Registry
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.text import calibration_samples, held_out

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
PARAGRAPH = "A list of the values that the option takes, one after the other, in the order of the file."
TEXT = "\n\n".join([PARAGRAPH] * 60)


def checked(folder: Path, text: bytes, config: dict[str, Any] | None = None, **calibration: Any) -> Checked:
    file = write_recipe(folder)
    (folder / "text.txt").write_bytes(text)
    (folder / "tiny_llama" / "tokenizer_config.json").write_text(json.dumps(config or {}))
    recipe = Recipe.load(file)
    section = {"text": str(folder / "text.txt"), "samples": 6, "tokens": 32, **calibration}
    return check(Recipe.from_dict({**recipe.to_dict(), "calibration": section}), Registry.load())


def test_each_window_begins_as_the_tokenizer_begins_texts(tmp_path: Path) -> None:
    for i, (flag, first) in enumerate(((True, 1), (False, None))):
        made = checked(tmp_path / str(i), TEXT.encode(), {"add_bos_token": flag})
        samples = calibration_samples(made)
        assert [len(s) for s in samples] == [32] * 6
        assert all((s[0] == 1) is flag for s in samples)
        stream = made.tokenizer.encode(TEXT)
        begun = [first, *stream] if first is not None else stream
        assert samples[0] == begun[:32]


def test_a_byte_order_mark_is_no_token(tmp_path: Path) -> None:
    plain = calibration_samples(checked(tmp_path / "a", TEXT.encode()))
    marked = calibration_samples(checked(tmp_path / "b", b"\xef\xbb\xbf" + TEXT.encode()))
    assert plain == marked


def test_fewer_windows_than_asked_for_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = checked(tmp_path, TEXT.encode(), samples=1_000_000_000)
    found = calibration_samples(made)
    assert 10 < len(found) < 200
    assert (
        f"text.txt: holds {len(found)} windows of 32 tokens, fewer than calibration.samples = 1000000000" in caplog.text
    )


@pytest.mark.parametrize(("option", "count"), [(True, 40), (False, 0)])
def test_control_tokens_in_the_text_are_what_the_recipe_says(tmp_path: Path, option: bool, count: int) -> None:
    made = checked(tmp_path, b"</s> the values " * 40, samples=1000, tokens=8, control_tokens=option)
    ids = [i for sample in calibration_samples(made) for i in sample]
    assert (ids.count(2) > 30) is (count > 0)


def test_half_of_a_chat_models_samples_are_conversations(tmp_path: Path) -> None:
    made = checked(tmp_path / "a", TEXT.encode(), {"chat_template": TEMPLATE})
    samples = calibration_samples(made)
    talks = [s for s in samples if 2 in s]  # which the template alone writes
    assert (len(samples), len(talks)) == (6, 3)
    assert all(made.tokenizer.decode(s).startswith("user: A list") for s in talks)
    assert made.config.eos == (2,)
    silent = checked(tmp_path / "b", TEXT.encode(), {"chat_template": TEMPLATE}, chat=False)
    assert not any(2 in s for s in calibration_samples(silent))


def test_conversations_of_the_text_are_taken_as_they_are(tmp_path: Path) -> None:
    said = "\f\n".join(f"User: What is {i}?\n\nAssistant: {PARAGRAPH}\n\nAnd more.\n\n" for i in range(40))
    made = checked(tmp_path, f"{TEXT}\n\f\n{said}".encode(), {"chat_template": TEMPLATE}, samples=1000)
    texts = [made.tokenizer.decode(s) for s in calibration_samples(made) if 2 in s]
    assert len(texts) > 5
    assert all(text.startswith("user: What is ") and "assistant: A list of the values" in text for text in texts)


def test_a_template_that_refuses_them_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = checked(tmp_path, TEXT.encode(), {"chat_template": "{{ raise_exception('users alone') }}"})
    assert len(calibration_samples(made)) == 6
    assert "no sample is a conversation, since chat_template of tokenizer_config.json: users alone" in caplog.text


@pytest.mark.parametrize(("ar", "context", "tokens"), [(32, 128, 128), (16, 120, 112), (128, 200, 128), (2, 51, 50)])
def test_held_out_windows_are_what_the_prompt_graph_reads_in_whole_runs(
    tmp_path: Path, ar: int, context: int, tokens: int
) -> None:
    made = checked(tmp_path, TEXT.encode())
    (tmp_path / "held_out.txt").write_text(TEXT)
    graphs = {"prompt": {"ar": ar, "context": context}, "token": {"ar": 1, "context": context}}
    recipe = made.recipe.to_dict() | {"graphs": graphs, "verify": {"text": str(tmp_path / "held_out.txt")}}
    windows = held_out(replace(made, recipe=Recipe.from_dict(recipe)))
    assert {len(window) for window in windows} == {tokens}


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    made = checked(tmp_path, b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"text\.txt: not UTF-8 at byte 0; save it as UTF-8"):
        calibration_samples(made)


def test_text_that_is_too_short(tmp_path: Path) -> None:
    made = checked(tmp_path, b"short")
    with pytest.raises(RecipeError, match=r"holds \d+ tokens, fewer than one window of 32; give a longer text"):
        calibration_samples(made)
