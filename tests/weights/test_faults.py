"""Faults of downloads and of trainings: each named with its tensor or file, in the read that finds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmconv import CheckpointError
from llmconv.weights import GGUFStore, PickleStore, SafetensorsStore
from llmconv.weights.store import Checkpoint

Tensors = dict[str, Tensor]


def safetensors(folder: Path, *files: Tensors) -> Checkpoint:
    paths = [folder / f"{i}.safetensors" for i in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    return SafetensorsStore(paths)


def pickled(folder: Path, *files: Tensors) -> Checkpoint:
    paths = [folder / f"{i}.bin" for i in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        torch.save(tensors, path)
    return PickleStore(paths)


def in_gguf(folder: Path, *files: Tensors) -> Checkpoint:
    paths = [folder / f"{i}.gguf" for i in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        writer = gguf.GGUFWriter(path, "llama")
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return GGUFStore(paths)


STORES = [safetensors, pickled, in_gguf]
Make = Callable[..., Checkpoint]


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named(tmp_path: Path, make: Make, number: float) -> None:
    damaged = torch.ones(4, 32).half()
    damaged[2, 7] = number
    store = make(tmp_path, {"good": torch.ones(4, 32).half(), "damaged": damaged})
    assert store.read("good").sum() == 128
    assert store.read("damaged", slice(0, 2)).sum() == 64
    with pytest.raises(CheckpointError, match="tensor 'damaged' holds NaN or infinity"):
        store.read("damaged")


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    large = torch.full((4, 32), 3e38)
    assert torch.equal(safetensors(tmp_path, {"x": large}).read("x"), large)


@pytest.mark.parametrize("make", STORES)
def test_a_tensor_in_two_files_is_refused(tmp_path: Path, make: Make) -> None:
    with pytest.raises(CheckpointError, match=r"1\.\w+: tensor 'x' lies in another file of the checkpoint as well"):
        make(tmp_path, {"x": torch.ones(2, 32)}, {"x": torch.zeros(2, 32), "y": torch.ones(2, 32)})


@pytest.mark.parametrize("store", [SafetensorsStore, PickleStore, GGUFStore])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, store: Callable[[list[Path]], Checkpoint]) -> None:
    (tmp_path / "m").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5000000000\n")
    with pytest.raises(CheckpointError, match="a pointer of Git LFS, not the file itself"):
        store([tmp_path / "m"])
