"""The device beside ONNX Runtime: what the report says of it, and that datasets too are sent once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError
from hub_job import LABELS, build, computed, fake_link, prepare, specs
from stand_in import StandIn, running, write_configuration

from llmconv import BackendError
from llmconv_plugins.ai_hub import stores
from llmconv_plugins.ai_hub.comparison import compare
from llmconv_plugins.ai_hub.service import Service, UnavailableError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in whose binaries are no binaries, and whose device agrees with what stands for ONNX Runtime."""
    with running(StandIn(tmp_path / "hub", fake_link, computed)) as served:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_configuration(tmp_path / "client.ini", served.url)))
        monkeypatch.setattr("qai_hub.util.session.MAX_RETRIES", 0)
        prepare(monkeypatch)
        yield served


def rows(tmp_path: Path, said: list[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    lines: list[str] = [] if said is None else said
    found = build(tmp_path / "work", lines.append, inference=True, **{"twins": "never", **options})
    return list(found.report["inference"])


def once(hub: StandIn) -> bool:
    counted = (hub.created, hub.uploaded, hub.submitted, hub.datasets.created, hub.datasets.uploaded)
    return all(set(counts.values()) == {1} for counts in counted)


def test_a_row_for_each_graph(hub: StandIn, tmp_path: Path) -> None:
    found = rows(tmp_path)
    assert [row["Graph"] for row in found] == list(LABELS)
    assert all(row["SQNR"] == {"logits": "equal", "keys and values": "equal"} for row in found)
    assert all(row["KV off"] == "0.000%" and "measured on the device" in row["Source"] for row in found)
    assert len(hub.datasets.uploaded) == len(LABELS)
    assert once(hub)
    assert not [f for f in (tmp_path / "work").rglob("*") if f.suffix in (".h5", ".safetensors")]


def test_finished_rows_are_kept(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(tmp_path)
    monkeypatch.setattr("llmconv_plugins.ai_hub.inference.run_reference", None)
    assert rows(tmp_path) == found
    build(tmp_path / "work", lambda _line: None, twins="never")  # a run that does not ask for them keeps them too
    assert rows(tmp_path) == found
    assert once(hub)


def test_device_that_computes_noise_is_reported_and_fails_nothing(hub: StandIn, tmp_path: Path) -> None:
    def noise(_package: Path, _label: str, inputs: dict[str, Any]) -> dict[str, Any]:
        draw = np.random.default_rng(0)
        right = computed(_package, _label, inputs)
        return {name: draw.integers(0, np.iinfo(v.dtype).max, v.shape).astype(v.dtype) for name, v in right.items()}

    hub.device = noise
    for row in rows(tmp_path):
        assert all(float(sqnr.removesuffix(" dB")) < 10 for sqnr in row["SQNR"].values())
        assert float(row["KV off"].removesuffix("%")) > 50


def test_outputs_as_floats_and_outputs_that_are_missing() -> None:
    part, values = specs("p"), computed(Path(), "p", {"ids": np.arange(32)[None]})
    floats = (values["logits"].astype(np.float32) - 32768) * np.float32(0.001)
    row = compare(part, values, {"logits": floats + 1e-4, "output_1": values["key"]})
    assert row["SQNR"].keys() == {"logits"}
    assert 50 < float(row["SQNR"]["logits"].removesuffix(" dB")) < 100
    assert row["Not compared"] == ["key"]
    assert row["Device's outputs"] == ["logits", "output_1"]


@pytest.mark.parametrize(("steps", "share"), [(1, "0.000%"), (2, "100.000%")])
def test_one_step_of_8_bits_is_no_difference(steps: int, share: str) -> None:
    values = computed(Path(), "p", {"ids": np.arange(32)[None]})
    found = compare(specs("p"), values, values | {"key": values["key"] + np.uint8(steps)})
    assert found["KV off"] == share


CALLS = (
    ("POST", "/datasets/$"),
    ("GET", "/datasets/[^/]*/$"),
    ("GET", "/upload_url/$"),
    ("POST", "/form/"),
    ("PATCH", "/datasets/"),
    ("GET", "/download_data/$"),
)


TROUBLES = (503, 429, "html", "lost", "drop")
UNREAD = "/form/"  # an answer whose body the client does not read
TRIPLES = [(*call, what) for call in CALLS for what in TROUBLES if (call[1], what) != (UNREAD, "html")]


@pytest.mark.parametrize(("method", "path", "what"), TRIPLES)
def test_call_without_an_answer_is_repeated_and_nothing_sent_twice(
    hub: StandIn, tmp_path: Path, method: str, path: str, what: int | str
) -> None:
    hub.misbehave(method, path, what, times=2)
    assert all(row["KV off"] == "0.000%" for row in rows(tmp_path))
    assert once(hub)


@pytest.mark.parametrize("what", ["short", "cut"])
def test_outputs_cut_short_are_not_taken(hub: StandIn, tmp_path: Path, what: str) -> None:
    hub.misbehave("GET", "/files/d", what, times=2)
    assert all(row["KV off"] == "0.000%" for row in rows(tmp_path))
    assert once(hub)


def test_dataset_that_has_expired_is_uploaded_again(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.failing.add(f"infer {LABELS[0]}")
    with pytest.raises(BackendError, match=r"infer prompt.* failed: QNN cannot make it"):
        rows(tmp_path)
    hub.failing.clear()
    for dataset in hub.datasets.found.values():
        dataset.expiration_time.FromSeconds(int(time.time()) - 1)
    said: list[str] = []
    assert len(rows(tmp_path, said)) == len(LABELS)
    assert any("no longer has dataset" in line for line in said)
    assert max(hub.datasets.created.values()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("point", [1, 2, 4])
def test_killed_while_datasets_are_sent_nothing_is_sent_twice(hub: StandIn, tmp_path: Path, point: int) -> None:
    hub.delay = 0.01
    command = [sys.executable, str(Path(__file__).with_name("hub_job.py")), str(tmp_path / "work"), "inference"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(point):
            while "inputs" not in process.stdout.readline():
                pass
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert once(hub)
    assert len(hub.datasets.uploaded) == len(LABELS)
    assert not [f for f in (tmp_path / "work").rglob("*") if f.suffix in (".h5", ".safetensors")]


def test_broken_transfer_to_the_store_behind_the_service_may_be_tried_again(hub: StandIn) -> None:
    with pytest.raises(UnavailableError, match="EndpointConnectionError"), Service().answered():
        raise EndpointConnectionError(endpoint_url="https://secret")


def test_arrays_keep_their_types_in_a_dataset(tmp_path: Path) -> None:
    values = {name: np.arange(6).reshape(1, 6).astype(name) for name in ("uint8", "uint16", "int32", "float32")}
    stores.write_h5(values, tmp_path / "inputs.h5")
    found = stores.read_h5(tmp_path / "inputs.h5")
    assert {name: value.dtype.name for name, value in found.items()} == {name: name for name in values}
    assert all((found[name] == values[name]).all() for name in values)
