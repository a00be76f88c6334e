"""Workers that do not see the output folder: files go through a store, and nothing stays there.

The tests of a bucket run where there are s3fs and moto: pip install 's3fs[boto3]' 'moto[s3]' flask flask-cors. They are
in no extra, since s3fs holds botocore to a version that others would have to follow.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from dask_tasks import double

import llmconv
from llmconv.errors import BackendError
from llmconv.files import digest
from llmconv.work import Task
from llmconv_plugins.executors import dask_executor
from llmconv_plugins.executors.dask_executor import Dask
from llmconv_plugins.executors.places import SharedFolder, Store

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow
PATIENCE = 60  # seconds
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


def task(folder: Path, text: str) -> Task:
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "onnx" / "in.txt").write_text(text)
    return Task("double", 1, partial(double, folder), folder, ("onnx/in.txt",), ("qnn/out.bin",))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server on this machine."""
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket/work"
        assert s3fs.S3FileSystem().find("bucket") == []
        server.kill()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[str]:
    """A folder that stands for one that each machine sees under a path of its own."""
    yield f"file://{tmp_path}/store"
    assert not [f for f in (tmp_path / "store").rglob("*") if f.is_file()]


def run_in(store: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask_executor, "memory_at_hand", lambda: 100)
        with Dask(store=store).open(folder, 1) as workers:
            for text in ("abc", "other"):
                (outcome,) = workers.run([task(folder, text)])
                assert outcome.value == len(text)
                assert (folder / "qnn" / "out.bin").read_text() == 2 * text
    assert sorted(p.name for p in folder.rglob("*")) == ["in.txt", "onnx", "out.bin", "qnn"]


def test_files_go_through_a_folder(local: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    run_in(local, tmp_path / "bundle")


def test_files_go_through_a_bucket(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    run_in(bucket, tmp_path / "bundle")


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_two_tries_of_a_task_meet_nowhere(tmp_path: Path, kind: str) -> None:
    given = task(tmp_path / "bundle", "abc")
    (tmp_path / "beside").mkdir()
    places = SharedFolder(tmp_path / "beside") if kind == "folder" else Store(f"file://{tmp_path}/beside")
    sent, made = places.send(given), []
    for _ in range(2):
        with places.place(sent) as place:
            assert not (place / "qnn").exists()
            given.call(place, threading.Event())
            made.append(places.leave(place, given.makes))
    assert made[0]["qnn/out.bin"] != made[1]["qnn/out.bin"]
    assert not (given.folder / "qnn").exists()  # before the caller takes one
    places.take(given, made[1])
    written = (given.folder / "qnn" / "out.bin").stat()
    places.close()  # with what the other has left
    assert [p.name for p in (given.folder / "qnn").iterdir()] == ["out.bin"]
    assert (given.folder / "qnn" / "out.bin").stat() == written
    assert not [f for f in (tmp_path / "beside").rglob("*") if f.is_file()]


def test_what_was_sent_is_not_sent_again_and_what_differs_is_refused(tmp_path: Path) -> None:
    given, store = task(tmp_path / "bundle", "abc"), Store(f"file://{tmp_path}/store")
    sent = store.send(given)
    (file,) = (tmp_path / "store").iterdir()
    before = file.stat().st_mtime_ns
    assert Store(store.url).send(given) == sent  # of a caller that was killed
    assert file.stat().st_mtime_ns == before
    file.write_text("abd")
    with pytest.raises(BackendError, match="differs from what was sent"), store.place(sent):
        pass


@pytest.mark.parametrize(
    ("store", "why"),
    [("nowhere://x", "nowhere"), ("file:///sys/llmconv", "denied|permitted|Read-only|No such file")],
)
def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path, store: str, why: str) -> None:
    with (
        pytest.raises(BackendError, match=rf"executor.store = '{store}' cannot be used: .*({why})") as caught,
        Dask(store=store).open(tmp_path, 1),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_bundle_through_a_bucket_has_the_bytes_of_a_local_one(
    bucket: str, small_recipe: Path, small_bundle: llmconv.Bundle, tmp_path: Path
) -> None:
    changes = [f"output.folder='{tmp_path / 'b'}'", f"executor={{name='dask', store='{bucket}'}}"]
    found = llmconv.apply(llmconv.Recipe.load(small_recipe, changes), verify=False)
    files = [name for name in small_bundle.manifest["files"] if name.startswith(("onnx/", "qnn/"))]
    assert {n: digest(found.path(n)) for n in files} == {n: digest(small_bundle.path(n)) for n in files}
