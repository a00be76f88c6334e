"""What goes wrong with the service: what the user is told, what is kept, and that nothing is sent twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_job import LABELS, build, fake_link, prepare
from stand_in import StandIn, running, write_configuration

from llmconv import BackendError
from llmconv_plugins.ai_hub import build as building

Work = Callable[..., list[str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in whose binaries are no binaries."""
    with running(StandIn(tmp_path / "hub", fake_link)) as served:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_configuration(tmp_path / "client.ini", served.url)))
        monkeypatch.setattr("qai_hub.util.session.MAX_RETRIES", 0)  # what remains is our own patience
        prepare(monkeypatch)
        yield served


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Builds in one folder, again and again; gives what was said."""

    def call(**options: object) -> list[str]:
        said: list[str] = []
        build(tmp_path / "work", said.append, **options)
        return said

    return call


def once(hub: StandIn) -> bool:
    return set(hub.created.values()) == set(hub.uploaded.values()) == set(hub.submitted.values()) == {1}


def test_everything_is_sent_once_and_kept(hub: StandIn, work: Work, tmp_path: Path) -> None:
    work()
    assert len(hub.uploaded) == len(LABELS)
    assert len(hub.submitted) == len(LABELS) + 3  # one link for the part, two alone
    work()
    assert once(hub)
    names = {f.name for f in (tmp_path / "work" / "qnn").rglob("*") if f.is_file()}
    assert names == {"part_1_of_1.bin", *(f"{label}.bin" for label in LABELS)}
    assert not list((tmp_path / "work").rglob("*.zip"))


CALLS = (
    ("POST", "/models/$"),
    ("GET", "/multipart_upload/$"),
    ("PUT", "/upload/"),
    ("POST", "/jobs/$"),
    ("GET", "/jobs/[^/]*/$"),
    ("GET", "/download/$"),
)
TROUBLES = (500, 429, 503, "html", "lost", "drop")
PAIRS = [
    (*call, what) for call in CALLS for what in TROUBLES if (call[0], what) != ("PUT", "html")
]  # its body is unread


@pytest.mark.parametrize(("method", "path", "what"), PAIRS)
def test_call_without_an_answer_is_repeated_and_nothing_sent_twice(
    hub: StandIn, work: Work, method: str, path: str, what: int | str
) -> None:
    hub.misbehave(method, path, what, times=2)
    said = work(twins="never")
    if method != "PUT":  # which the client repeats by itself
        assert any("next try in" in line for line in said)
    assert once(hub)


@pytest.mark.parametrize("what", ["short", "cut"])
def test_truncated_download_is_not_taken(hub: StandIn, work: Work, tmp_path: Path, what: str) -> None:
    hub.misbehave("GET", "/files/", what, times=2)
    work(twins="never")
    assert json.loads((tmp_path / "work" / "qnn" / "part_1_of_1.bin").read_text())["graphs"] == list(LABELS)
    assert once(hub)


def test_download_that_is_never_whole_is_refused(hub: StandIn, work: Work, tmp_path: Path) -> None:
    hub.misbehave("GET", "/files/", "cut", times=99)
    with pytest.raises(BackendError, match="not whole, 3 times over"):
        work(twins="never")
    assert not list((tmp_path / "work" / "qnn").iterdir())
    hub.rules.clear()
    work(twins="never")
    assert once(hub)


def test_failed_job_ends_the_run_with_its_reason_and_log_and_is_not_kept(
    hub: StandIn, work: Work, tmp_path: Path
) -> None:
    hub.failing.add(f"compile {LABELS[0]}")
    with pytest.raises(
        BackendError, match=r"compile prompt.* failed: QNN cannot make it \(error 1\); see http.*/jobs/j"
    ):
        work()
    (log,) = (tmp_path / "work" / "ai_hub_logs").rglob("*.log")
    assert log.read_text() == "what the service logged\n"
    hub.failing.clear()
    work()
    assert {name for name, count in hub.submitted.items() if count > 1} == {
        name for name in hub.submitted if f"compile {LABELS[0]}" in name
    }
    assert set(hub.uploaded.values()) == {1}


def test_patience_ends_and_the_next_run_goes_on(hub: StandIn, work: Work) -> None:
    hub.misbehave("GET", "/jobs/[^/]*/$", 500, times=10**6)
    with pytest.raises(BackendError, match=r"HTTP 429 or 5xx .* nothing is lost, the same command goes on"):
        work(patience=0)
    hub.rules.clear()
    work()
    assert once(hub)


def test_interrupt_leaves_jobs_running_and_says_how_to_go_on(
    hub: StandIn, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.held.add("compile")
    real = building._watch

    def interrupted(*arguments: object) -> None:
        while len(hub.submitted) < len(LABELS):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert "llmconv hub jobs" in caught.value.__notes__[0]
    monkeypatch.setattr(building, "_watch", real)
    threading.Timer(0.3, hub.held.clear).start()
    said = work()
    assert any("OPTIMIZING_MODEL" in line for line in said)
    assert once(hub)


def test_job_that_the_service_lost_is_submitted_again(hub: StandIn, work: Work, tmp_path: Path) -> None:
    hub.held.add("compile")
    hub.misbehave("GET", "/jobs/[^/]*/$", 404)
    threading.Timer(0.3, hub.held.clear).start()
    said = work()
    assert any("no longer has job" in line for line in said)


@pytest.mark.parametrize("limit", [1, 2])
def test_uploads_are_bounded(hub: StandIn, work: Work, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    running_now, most, lock = 0, 0, threading.Lock()
    real = building.Service.upload

    def counted(self: object, *arguments: object) -> None:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        time.sleep(0.1)
        real(self, *arguments)  # type: ignore[arg-type]
        with lock:
            running_now -= 1

    monkeypatch.setattr(building.Service, "upload", counted)
    work(uploads=limit)
    assert most == limit


@pytest.mark.slow
@pytest.mark.parametrize("point", range(6))
def test_killed_anywhere_nothing_is_sent_twice(
    hub: StandIn, tmp_path: Path, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.delay = 0.02
    command = [sys.executable, str(Path(__file__).with_name("hub_job.py")), str(tmp_path / "work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(1 + 4 * point):
            process.stdout.readline()
        time.sleep(0.013 * point)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert once(hub)
    found = {f.name: json.loads(f.read_text())["graphs"] for f in (tmp_path / "work" / "qnn").rglob("*.bin")}
    assert found == {"part_1_of_1.bin": list(LABELS), **{f"{label}.bin": [label] for label in LABELS}}
    assert not list((tmp_path / "work").rglob("*.zip"))
