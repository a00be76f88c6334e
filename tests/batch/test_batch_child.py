"""A process of a batch: what it says is kept, and how it ends is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmconv.batch import child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are not ended by signals there")
LINES = "import sys; print('begun'); print('error: no disk', file=sys.stderr); print('x' * 9); sys.exit({code})"


def python(code: str, log: Path, heard: list[str] | None = None) -> child.Ended:
    return child.run([sys.executable, "-c", code], log, ([] if heard is None else heard).append)


@pytest.mark.parametrize(("code", "error"), [(0, None), (2, "no disk")])
def test_what_it_says_is_kept_and_the_error_is_its_own(tmp_path: Path, code: int, error: str | None) -> None:
    heard: list[str] = []
    ended = python(LINES.format(code=code), tmp_path / "log", heard)
    assert (ended.code, ended.error) == (code, error)
    assert sorted(heard) == ["begun", "error: no disk", "xxxxxxxxx"]
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(heard)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL; is memory short?"),
        ("import os; os._exit(7)", "it ended with exit code 7"),
        ("import sys; sys.exit('no such module')", "no such module"),
    ],
)
def test_an_end_without_a_word_is_told(tmp_path: Path, code: str, error: str) -> None:
    assert python(code, tmp_path / "log").error == error


def test_an_interrupt_is_handed_on_and_waited_for(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\ntry:\n    print('begun', flush=True); time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    Path({str(tmp_path / 'ended')!r}).write_text('by itself')"
    )

    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run([sys.executable, "-c", code], tmp_path / "log", interrupted)
    assert (tmp_path / "ended").read_text() == "by itself"
