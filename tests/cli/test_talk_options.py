"""Options of `generate` that say where a text ends and what it may hold."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmconv import Bundle
from llmconv.cli import main

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generate(small_onnx: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Generate:
    """Exit code, stdout and stderr of `llmconv generate` with further options."""

    def call(*options: str) -> tuple[int, str, str]:
        given = ("--temperature", "0", "--prompt", "Return the", "--tokens", "12")
        monkeypatch.setattr(sys, "argv", ["llmconv", "generate", str(small_onnx.folder), *given, *options])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


def test_a_text_ends_before_a_stop(generate: Generate) -> None:
    answer = generate()[1].removeprefix("Return the").rstrip("\n")
    stop = answer[-6:-3]
    code, text, said = generate("--stop", "no such text", "--stop", stop)
    assert (code, text) == (0, f"Return the{answer[: answer.index(stop)]}\n")
    assert "stopped: a stop sequence" in said


def test_a_penalty_changes_the_text(generate: Generate) -> None:
    assert generate()[1] != generate("--repetition-penalty", "3")[1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[]", "a JSON schema is an object"),
        ('{"type": "objekt"}', "type: 'objekt' is not valid"),
        ("{}", "runtime 'onnxruntime' holds no text to a JSON schema; take 'genie'"),
    ],
)
def test_a_schema_that_cannot_be_followed(
    generate: Generate, tmp_path: Path, content: str | None, expected: str
) -> None:
    file = tmp_path / "schema.json"
    if content is not None:
        file.write_text(content)
    code, text, said = generate("--json-schema", str(file))
    assert (code, text) == (2, "")
    assert expected in said.splitlines()[-1]


def test_a_stop_that_every_text_begins_with(generate: Generate) -> None:
    code, text, said = generate("--stop", "")
    assert (code, text) == (2, "")
    assert "--stop '': every text begins with it" in said.splitlines()[-1]
