"""Weights read when asked, one tensor or a range of its rows at a time."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmconv import CheckpointError
from llmconv.weights import DictStore, SafetensorsStore, safetensors

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def save(file: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, file)
    return file


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(file: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsStore([file])
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_float_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = numbers(5, 3).to(dtype)
    store = SafetensorsStore([save(tmp_path / "w.safetensors", other=numbers(4), weight=weight)])
    assert store.shape("weight") == (5, 3)
    found = store.read("weight")
    assert found.dtype == torch.float32
    assert torch.equal(found, weight.to(torch.float32))


@pytest.mark.parametrize("piece", [1, 4, 15, 16])
@pytest.mark.parametrize("rows", [None, slice(1, 4)], ids=str)
def test_pieces_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, rows: slice | None) -> None:
    monkeypatch.setattr(safetensors, "_PIECE", piece)
    weight = numbers(5, 3).to(torch.bfloat16)
    store = SafetensorsStore([save(tmp_path / "w.safetensors", weight=weight)])
    assert torch.equal(store.read("weight", rows), weight[rows or slice(None)].to(torch.float32))
    whole = hashlib.sha256(weight.view(torch.uint8).numpy().data).hexdigest()
    assert store.sha256("weight") == (None if rows else whole)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 4), slice(3, None), slice(-2, None), slice(2, 99)], ids=str)
def test_row_range(tmp_path: Path, rows: slice) -> None:
    weight = numbers(5, 3, 2).to(torch.bfloat16)
    store = SafetensorsStore([save(tmp_path / "w.safetensors", weight=weight)])
    assert torch.equal(store.read("weight", rows), weight.to(torch.float32)[rows])
    assert torch.equal(DictStore({"weight": weight}).read("weight", rows), weight.to(torch.float32)[rows])


def test_scalar(tmp_path: Path) -> None:
    store = SafetensorsStore([save(tmp_path / "w.safetensors", weight=torch.tensor(2.5))])
    assert store.shape("weight") == ()
    assert store.read("weight").item() == 2.5


def test_files_are_joined(tmp_path: Path) -> None:
    first, second = numbers(2, 2), numbers(3, seed=1)
    files = [save(tmp_path / "1.safetensors", **{"model.a": first}), save(tmp_path / "2.safetensors", b=second)]
    store = SafetensorsStore(files)
    assert torch.equal(store.read("model.a"), first)
    assert torch.equal(store.read("b"), second)
    assert "model.a" in store
    assert "c" not in store


def test_reading_touches_the_bytes_of_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "w.safetensors", a=numbers(100, 4), b=numbers(100, 4, seed=1))
    store = SafetensorsStore([file])
    begin, _ = header_of(file)[0]["b"]["data_offsets"]
    start = len(file.read_bytes()) - len(header_of(file)[1]) + begin
    counted: list[tuple[int, int]] = []
    opened = Path.open

    def watched(path: Path, *args: Any, **kwargs: Any) -> Any:
        stream = opened(path, *args, **kwargs)

        class Watch:
            def __enter__(self) -> Watch:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def seek(self, offset: int) -> int:
                return int(stream.seek(offset))

            def readinto(self, buffer: memoryview) -> int:
                counted.append((stream.tell(), buffer.nbytes))
                return int(stream.readinto(buffer))

        return Watch()

    monkeypatch.setattr(Path, "open", watched)
    store.read("b", slice(10, 13))
    assert counted == [(start + 10 * 16, 3 * 16)]


def test_nothing_is_held_between_reads(tmp_path: Path) -> None:
    file = save(tmp_path / "w.safetensors", a=torch.zeros(4))
    store = SafetensorsStore([file])
    assert store.read("a").sum() == 0
    save(file, a=torch.ones(4))
    assert store.read("a").sum() == 4


def test_missing_file(tmp_path: Path) -> None:
    assert "missing; is the download complete?" in refused(tmp_path / "none.safetensors")


def test_missing_tensor(tmp_path: Path) -> None:
    store = SafetensorsStore([save(tmp_path / "w.safetensors", a=numbers(4))])
    for call in (store.shape, store.read):
        with pytest.raises(CheckpointError, match=r"no tensor 'x'; is the download complete\?"):
            call("x")


@pytest.mark.parametrize("cut", [0, 4, 8, 20], ids=lambda n: f"{n} bytes")
def test_truncated_inside_the_header(tmp_path: Path, cut: int) -> None:
    file = save(tmp_path / "w.safetensors", a=numbers(4))
    file.write_bytes(file.read_bytes()[:cut])
    assert "download it again" in refused(file)


def test_truncated_inside_the_data(tmp_path: Path) -> None:
    file = save(tmp_path / "w.safetensors", a=numbers(4), b=numbers(4))
    file.write_bytes(file.read_bytes()[:-1])
    assert "truncated: tensor 'b' ends at byte" in refused(file)


def test_truncated_after_the_store_was_made(tmp_path: Path) -> None:
    file = save(tmp_path / "w.safetensors", a=numbers(4))
    store = SafetensorsStore([file])
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="ends inside tensor 'a'"):
        store.read("a")


@pytest.mark.parametrize(("dtype", "name"), [(torch.int64, "I64"), (torch.float8_e4m3fn, "F8_E4M3")], ids=str)
def test_other_types_are_refused_where_asked_for(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    file = save(tmp_path / "w.safetensors", a=numbers(4), unused=torch.zeros(4).to(dtype))
    store = SafetensorsStore([file])
    assert torch.equal(store.read("a"), numbers(4))
    for call in (store.shape, store.read):
        with pytest.raises(CheckpointError, match=f"'unused' has dtype {name}; use one of F64, F32, F16, BF16"):
            call("unused")


def test_the_whole_range_of_rows_is_hashed_as_well(tmp_path: Path) -> None:
    store = SafetensorsStore([save(tmp_path / "w.safetensors", a=numbers(4, 2))])
    store.read("a", slice(0, 3))
    assert store.sha256("a") is None
    store.read("a", slice(0, 4))
    assert store.sha256("a") == hashlib.sha256(numbers(4, 2).numpy().data).hexdigest()


def test_shape_that_does_not_fit_its_bytes(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}
    file = write_raw(tmp_path / "w.safetensors", header, b"\0" * 16)
    assert "tensor 'a' has 16 bytes" in refused(file)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
        {"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}},
    ],
    ids=str,
)
def test_header_of_another_form(tmp_path: Path, header: object) -> None:
    assert "not a safetensors file" in refused(write_raw(tmp_path / "w.safetensors", header, b"\0" * 4))


@pytest.mark.parametrize("data", [b"<html>not found</html>", b"\x04" + b"\0" * 7 + b"\xff\xff\xff\xff", b"\xff" * 16])
def test_not_safetensors(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(data)
    assert "download it again" in refused(file)


def test_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "w.safetensors"
    folder.mkdir()
    refused(folder)


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": numbers(2)}, file, metadata={"format": "pt"})
    assert "__metadata__" not in SafetensorsStore([file])


def test_dict_store_gives_float32() -> None:
    store = DictStore({"a": torch.nn.Parameter(numbers(2, 3).to(torch.float16))})
    assert store.shape("a") == (2, 3)
    assert store.read("a").dtype == torch.float32
    assert not store.read("a").requires_grad
