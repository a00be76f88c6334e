"""Weights in PyTorch's zip files: read by ranges, mapped, and nothing in a file runs."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llmconv import CheckpointError
from llmconv.weights import PickleStore, pickled

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def save(file: Path, **tensors: torch.Tensor) -> Path:
    torch.save(tensors, file)
    return file


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        PickleStore([file])
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message


def rewrite(file: Path, *, pickled_bytes: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with another pickle inside, or compressed."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, pickled_bytes if pickled_bytes and name.endswith("data.pkl") else data)
    return file


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_float_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = numbers(5, 3).to(dtype)
    store = PickleStore([save(tmp_path / "w.bin", other=numbers(4), weight=weight)])
    assert store.shape("weight") == (5, 3)
    found = store.read("weight")
    assert found.dtype == torch.float32
    assert torch.equal(found, weight.to(torch.float32))


@pytest.mark.parametrize(
    "rows", [slice(0, 2), slice(1, 4), slice(3, None), slice(-2, None), slice(2, 99), slice(2, 2)], ids=str
)
def test_row_range(tmp_path: Path, rows: slice) -> None:
    weight = numbers(5, 3, 2).to(torch.bfloat16)
    store = PickleStore([save(tmp_path / "w.bin", weight=weight)])
    assert torch.equal(store.read("weight", rows), weight.to(torch.float32)[rows])


def test_views_and_parameters_are_read_as_they_look(tmp_path: Path) -> None:
    whole = numbers(6, 4)
    file = save(tmp_path / "w.bin", turned=whole.t(), part=whole[2:4], grad=torch.nn.Parameter(whole), one=whole[0, 0])
    store = PickleStore([file])
    assert torch.equal(store.read("turned", slice(1, 3)), whole.t()[1:3])
    assert store.read("turned").is_contiguous()
    assert torch.equal(store.read("part"), whole[2:4])
    assert not store.read("grad").requires_grad
    assert store.read("one", slice(0, 1)).item() == whole[0, 0]


def test_checksums_are_optional(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = save(tmp_path / "w.bin", a=numbers(4))
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(PickleStore([file]).read("a"), numbers(4))


def test_files_are_joined(tmp_path: Path) -> None:
    first, second = numbers(2, 2), numbers(3, seed=1)
    files = [save(tmp_path / "1.bin", **{"model.a": first}), save(tmp_path / "2.bin", b=second)]
    store = PickleStore(files)
    assert torch.equal(store.read("model.a"), first)
    assert torch.equal(store.read("b"), second)
    assert "model.a" in store
    assert "c" not in store
    with pytest.raises(CheckpointError, match=r"no tensor 'c'; is the download complete\?"):
        store.shape("c")


def test_what_was_read_stays_when_the_mapping_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numbers(8, 4)
    store = PickleStore([save(tmp_path / "w.bin", weight=weight)])
    monkeypatch.setattr(pickled, "MAPPED_BYTES", 40)  # two and a half rows
    opened: list[Path] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: opened.append(file) or load(file, **options))
    found = [store.read("weight", slice(i, i + 1)) for i in range(8)]
    assert torch.equal(torch.cat(found), weight)
    assert len(opened) == 3


def test_threads_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the thread that reads ahead does, beside the one that computes."""
    monkeypatch.setattr(pickled, "MAPPED_BYTES", 100)
    weights = {str(i): numbers(8, 4, seed=i) for i in range(4)}
    files = [save(tmp_path / f"{i}.bin", **{str(i): weights[str(i)]}) for i in range(4)]
    store = PickleStore(files)

    def read(i: int) -> bool:
        rows = slice(i % 8, i % 8 + 1)
        return torch.equal(store.read(str(i % 4), rows), weights[str(i % 4)][rows])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


MEMORY = """
import re, sys
from pathlib import Path
from llmconv.weights import PickleStore

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

PickleStore([])  # which imports what reading needs
before = peak()
store = PickleStore([Path(sys.argv[1])])
store.read("0", slice(8, 16))
rows = peak() - before
for name in "0123":
    store.read(name)
print(rows, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_memory_is_of_one_tensor_or_of_its_rows(tmp_path: Path) -> None:
    size = 64  # MB each, four of them
    file = save(tmp_path / "w.bin", **{str(i): torch.zeros(1024, size * 256) for i in range(4)})
    run = subprocess.run([sys.executable, "-c", MEMORY, str(file)], capture_output=True, text=True, check=True)
    rows, all_in_turn = map(float, run.stdout.split())
    assert rows < size / 4
    assert all_in_turn < 3 * size  # one as it lies in the file, and in float32; the file alone is 4 times the size


class Evil:
    """What runs `function(*args)` where a pickle of it is loaded by Python's own interpreter."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["system", "exec", "nested"])
def test_no_code_in_a_file_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    marker, file = tmp_path / "ran", tmp_path / "w.bin"
    shell = Evil(os.system, f"touch {marker}")
    evil = {
        "system": {"weight": numbers(2), "other": shell},
        "exec": {"weight": Evil(builtins.exec, f"open({str(marker)!r}, 'w').close()")},
        "nested": OrderedDict(weight=numbers(2), other=[{"deep": (1, shell)}]),
    }[kind]
    torch.save(evil, file, pickle_protocol=protocol)
    message = refused(file)
    assert "refused, its code was not run" in message
    assert "get the model as safetensors" in message
    if protocol == 2:
        assert "system'" in message or "exec'" in message
    assert not marker.exists()
    torch.load(file, weights_only=False)  # what the refusal kept from happening
    assert marker.exists()


def test_pickle_of_another_protocol(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    torch.save({"a": numbers(2)}, file, pickle_protocol=4)
    assert "its pickle is not of protocol 2, as torch.save writes it" in refused(file)


def test_no_code_of_an_old_file_runs(tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "w.bin"
    file.write_bytes(pickle.dumps(Evil(os.system, f"touch {marker}")))
    refused(file)
    assert not marker.exists()


def test_torch_is_asked_for_tensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, load = save(tmp_path / "w.bin", weight=numbers(2)), torch.load
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "load", lambda file, **options: asked.append(options) or load(file, **options))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    PickleStore([file]).read("weight")
    assert asked == [{"map_location": "cpu", "weights_only": True, "mmap": True}] * 2


def test_names_of_code_cannot_break_the_line(tmp_path: Path) -> None:
    file = rewrite(save(tmp_path / "w.bin", a=numbers(2)), pickled_bytes=b"\x80\x02cos\n\x1b[2Jsystem\n.")
    assert r"wants to run 'os.\x1b[2Jsystem'" in refused(file)


def test_format_before_1_6(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    torch.save({"a": numbers(4)}, file, _use_new_zipfile_serialization=False)
    message = refused(file)
    assert "before PyTorch 1.6, which cannot be mapped into memory; re-save it as safetensors" in message
    assert "torch.save(torch.load(FILE, weights_only=True), FILE)" in message
    torch.save(torch.load(file, weights_only=True), file)
    assert torch.equal(PickleStore([file]).read("a"), numbers(4))


@pytest.mark.parametrize("data", [b"", b"PK", b"<html>not found</html>"])
def test_not_pytorch(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(data)
    assert refused(file).endswith("not a PyTorch file; download it again")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    file = save(tmp_path / "w.bin", a=numbers(100, 4))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert refused(file).endswith("truncated or damaged; download it again")


def test_damaged_pickle(tmp_path: Path) -> None:
    """Whatever byte is wrong, the file is read or refused in one line."""
    file = save(tmp_path / "w.bin", a=numbers(2))
    with zipfile.ZipFile(file) as archive:
        good = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    messages = set()
    for i in range(0, len(good), 3):
        rewrite(file, pickled_bytes=good[:i] + bytes([good[i] ^ 0x55]) + good[i + 1 :])
        try:
            PickleStore([file])
        except CheckpointError as error:
            messages.add(str(error).removeprefix(f"{file}: "))
    assert "damaged; download it again" in messages
    assert not [m for m in messages if "\n" in m]


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.bin").endswith("missing; is the download complete?")
    (tmp_path / "w.bin").mkdir()
    assert "cannot be read" in refused(tmp_path / "w.bin")


def test_compressed_archive(tmp_path: Path) -> None:
    """Mapped bytes would be the compressed ones."""
    file = rewrite(save(tmp_path / "w.bin", a=torch.zeros(1000)), compression=zipfile.ZIP_DEFLATED)
    assert "compressed, which torch.save never does" in refused(file)


def test_program(tmp_path: Path) -> None:
    file = save(tmp_path / "w.bin", a=numbers(2))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("w/constants.pkl", b"")
    assert "it is a TorchScript program; save its state dict" in refused(file)


def test_not_a_table_of_tensors(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    torch.save([numbers(2)], file)
    assert refused(file).endswith("holds a list, not tensors by name; save the state dict alone")


def test_entries_that_are_no_tensors_with_data_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    sparse = torch.eye(2).to_sparse()
    torch.save(
        {"a": numbers(2), "step": 3, "b": {"c": numbers(2)}, "sparse": sparse, "m": torch.ones(1, device="meta")}, file
    )
    store = PickleStore([file])
    assert [name for name in ("a", "step", "b", "sparse", "m") if name in store] == ["a"]


def test_other_types_are_refused_where_asked_for(tmp_path: Path) -> None:
    store = PickleStore([save(tmp_path / "w.bin", a=numbers(2), mask=torch.ones(2, dtype=torch.int8))])
    assert store.shape("a") == (2,)
    for call in (store.shape, store.read):
        with pytest.raises(CheckpointError, match="'mask' has dtype int8; use one of float64, float32, "):
            call("mask")


def test_file_that_changes_after_the_store_was_made(tmp_path: Path) -> None:
    file = save(tmp_path / "w.bin", a=numbers(100, 100))
    store = PickleStore([file])
    store.read("a")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # touching what is cut off would kill the process
    with pytest.raises(CheckpointError, match="truncated or damaged; download it again"):
        store.read("a")
    save(file, a=numbers(3))
    with pytest.raises(CheckpointError, match="changed while it was read; run again"):
        store.read("a")
    file.unlink()
    with pytest.raises(CheckpointError, match="missing; is the download complete"):
        store.read("a")
