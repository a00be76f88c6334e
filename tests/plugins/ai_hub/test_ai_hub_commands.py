"""`llmconv hub`, as a user types it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_job import LABELS, build, fake_link, prepare
from stand_in import StandIn, running, write_configuration

from llmconv.cli import main
from llmconv_plugins.ai_hub.build import THREADS


@pytest.fixture
def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A service where one job goes on after its run ended."""
    with running(StandIn(tmp_path / "hub", fake_link)) as hub:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_configuration(tmp_path / "client.ini", hub.url)))
        prepare(monkeypatch)
        hub.held.add(f"compile {LABELS[1]}")
        (tmp_path / ".out.work").mkdir()
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / ".out.work" / "bundle", interrupt_when(set(LABELS)))
        for thread in threading.enumerate():  # which end with the process, where one ends
            if thread.name == THREADS:
                thread.join()
        yield hub


def interrupt_when(unseen: set[str]) -> Callable[[str], None]:
    """Ends a run, as Ctrl-C does, when the compile jobs of these graphs are known."""

    def say(line: str) -> None:
        unseen.difference_update([label for label in unseen if line.startswith(f"compile {label}: job ")])
        if not unseen:
            raise KeyboardInterrupt

    return say


def run(*arguments: object, patch: pytest.MonkeyPatch) -> int:
    patch.setattr(sys, "argv", ["llmconv", "hub", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_jobs_and_where_to_see_them(
    broken_off: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("jobs", tmp_path / "out", patch=monkeypatch) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "OPTIMIZING_MODEL" in lines[f"compile {LABELS[1]}"]
    assert f"{broken_off.url}/jobs/j" in lines[f"compile {LABELS[1]}"]
    assert "DONE" in lines[f"upload {LABELS[0]}"]


def test_cancel_lets_go_of_jobs_that_run(
    broken_off: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cancel", tmp_path / "out", patch=monkeypatch) == 0
    assert f"compile {LABELS[1]}: {broken_off.url}/jobs/j" in capsys.readouterr().out
    broken_off.held.clear()
    build(tmp_path / ".out.work" / "bundle", lambda _line: None)
    assert {n for n, count in broken_off.submitted.items() if count == 2} >= {
        name for name in broken_off.submitted if f"compile {LABELS[1]}" in name
    }
    assert set(broken_off.uploaded.values()) == {1}


def test_folder_without_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("jobs", tmp_path / "none", patch=monkeypatch) == 2
    assert "nothing was sent to AI Hub" in capsys.readouterr().err


def test_command_is_listed_without_being_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "llmconv_plugins.ai_hub.commands", raising=False)
    monkeypatch.setattr(sys, "argv", ["llmconv", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "Commands that llmconv brings" in capsys.readouterr().out
    assert "llmconv_plugins.ai_hub.commands" not in sys.modules
