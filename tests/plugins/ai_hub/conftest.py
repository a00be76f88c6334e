"""The stand-in, a linker that compiles for real and one that does not, and the client's configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_compiler import to_qdq
from stand_in import Linker, StandIn, running, write_configuration

from llmconv_plugins.ai_hub import patience, sending
from llmconv_plugins.qnn.compiler import GraphJob, compile_part


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds, and no way out of this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sending, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr("qai_hub.util.session.BACKOFF_FACTOR", 0.01)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Linker:
    """Links by compiling the uploaded ONNX files here; the same files are compiled once a test run."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    folder = tmp_path_factory.mktemp("linked")

    lock = threading.Lock()

    def link(packages: list[Path], labels: list[str]) -> bytes:
        hashed = hashlib.sha256()
        for file in (f for p in packages for f in sorted(p.iterdir())):
            hashed.update(file.read_bytes())
        work = folder / hashed.hexdigest()
        with lock:
            if not (work / "linked.bin").is_file():
                for package, label in zip(packages, labels, strict=True):
                    work.mkdir(exist_ok=True)
                    if package.suffix == ".aimet":
                        to_qdq(package, work / f"{label}.onnx")
                    else:  # over one weight file, which came once with each graph
                        shutil.copytree(package, work, dirs_exist_ok=True)
                jobs = [GraphJob(work / f"{label}.onnx", label) for label in labels]
                compile_part(jobs, work / "linked.bin", soc_model="43", htp_arch="73")
        return (work / "linked.bin").read_bytes()

    return link


@pytest.fixture
def hub(tmp_path: Path, compiled: Linker, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in that compiles for real, and a client that is configured for it."""
    with running(StandIn(tmp_path / "hub", compiled)) as served:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_configuration(tmp_path / "client.ini", served.url)))
        yield served
