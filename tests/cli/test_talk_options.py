"""Options of `generate` that say where a text ends and what it may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv import Bundle
from llmconv.cli import main

GREEDY = ("--temperature", "0", "--prompt", "Return the", "--tokens", "12")


def written(capsys: pytest.CaptureFixture[str], bundle: Bundle, *options: str) -> tuple[str, str]:
    assert main.run(["generate", str(bundle.folder), *GREEDY, *options]) == 0
    out, err = capsys.readouterr()
    return out.removesuffix("\n"), err


def test_a_text_ends_before_a_stop(small_onnx: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = written(capsys, small_onnx)
    stop = whole[-6:-3]
    text, said = written(capsys, small_onnx, "--stop", "no such text", "--stop", stop)
    answer = whole.removeprefix("Return the")
    assert text.removeprefix("Return the") == answer[: answer.index(stop)]
    assert "stopped: a stop sequence" in said


def test_a_penalty_changes_the_text(small_onnx: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, small_onnx)[0] != written(capsys, small_onnx, "--repetition-penalty", "3")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[]", "a JSON schema is an object"),
        ("{}", "'genie'"),
    ],
)
def test_a_schema_that_cannot_be_followed(
    small_onnx: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    file = tmp_path / "schema.json"
    if content is not None:
        file.write_text(content)
    assert main.run(["generate", str(small_onnx.folder), *GREEDY, "--json-schema", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]
