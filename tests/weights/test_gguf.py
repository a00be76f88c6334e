"""GGUF files: every type that the library dequantizes, rows without the rest, and files that are not what they say."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import write

from llmconv import CheckpointError
from llmconv.weights import GGUFStore, set_of

QUANTIZES = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
DEQUANTIZES = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS, Kind.IQ2_XXS]
NAME = "blk.0.ffn_down.weight"


@pytest.mark.parametrize("kind", QUANTIZES, ids=lambda k: k.name)
def test_rows_are_those_of_the_whole(tmp_path: Path, kind: Kind) -> None:
    store = GGUFStore([write(tmp_path / "x.gguf", kind=kind)])
    whole = store.read(NAME)
    assert (whole.dtype, tuple(whole.shape)) == (torch.float32, store.shape(NAME))
    assert torch.equal(store.read(NAME, slice(5, 9)), whole[5:9])
    assert store.read("output_norm.weight", slice(3, 5)).tolist() == store.read("output_norm.weight")[3:5].tolist()


@pytest.mark.parametrize("kind", DEQUANTIZES, ids=lambda k: k.name)
def test_types_that_the_library_reads_alone(tmp_path: Path, kind: Kind) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, (6, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("w", data, raw_dtype=kind)
    for write_to in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_to()
    writer.close()
    store = GGUFStore([tmp_path / "x.gguf"])
    assert store.shape("w") == (6, 2 * block)
    expected = torch.from_numpy(gguf.dequantize(data, kind))
    assert torch.equal(store.read("w", slice(2, 5)), expected[2:5])


def test_a_type_that_the_library_does_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("counts", np.zeros(4, np.int32))
    for write_to in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_to()
    writer.close()
    store = GGUFStore([tmp_path / "x.gguf"])  # another tensor may be all that is asked for
    with pytest.raises(CheckpointError, match=r"x\.gguf: tensor 'counts' is of type I32, which gguf does not"):
        store.read("counts")
    with pytest.raises(CheckpointError, match="no tensor 'other'; is the download complete"):
        store.shape("other")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages of a file are mapped")
def test_what_was_read_of_the_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("w", np.ones((1024, 1024), np.float32))
    for write_to in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_to()
    writer.close()
    store = GGUFStore([tmp_path / "x.gguf"])

    def mapped() -> int:
        return sum(m.rss for m in psutil.Process().memory_maps() if m.path == str(tmp_path / "x.gguf"))

    assert float(store._entry("w").data.sum()) == 1 << 20
    assert mapped() > 1 << 22
    for rows in (None, slice(0, 512)):
        assert bool((store.read("w", rows) == 1).all())
        assert mapped() < 1 << 18


def test_hashes_are_of_what_was_read_whole(tmp_path: Path) -> None:
    store = GGUFStore([write(tmp_path / "x.gguf")])
    store.read(NAME, slice(0, 3))
    assert store.sha256(NAME) is None
    store.read(NAME)
    assert len(store.sha256(NAME) or "") == 64


def test_a_split_set_is_one_store(tmp_path: Path) -> None:
    whole = GGUFStore([write(tmp_path / "x.gguf")])
    (tmp_path / "set").mkdir()
    first = write(tmp_path / "set" / "y.gguf", split=7)
    files = set_of(first)
    assert len(files) > 2
    store = GGUFStore(files)
    assert sorted(store.names) == sorted(whole.names)
    assert torch.equal(store.read(NAME), whole.read(NAME))
    with pytest.raises(CheckpointError, match=r"is number 2 of a split set; give y-00001-of-"):
        set_of(files[1])
    files[-1].unlink()
    with pytest.raises(CheckpointError, match="missing; is the download complete"):
        GGUFStore(files)
    with pytest.raises(CheckpointError, match=r"the set has .* tensors, of which 7 are here"):
        GGUFStore(files[:1])


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "magic":
        data[:4] = b"GGML"
    elif how == "version":
        data[4:8] = struct.pack("<I", 1)
    elif how == "big-endian":
        data[4:8] = struct.pack(">I", 3)
    elif how == "keys":
        data[16:24] = struct.pack("<Q", 2**60)
    elif how == "tensors":
        data[8:16] = struct.pack("<Q", 2**63)
    elif how == "array":
        at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
        data[at : at + 8] = struct.pack("<Q", 2**40)
    elif how == "short":
        del data[len(data) // 2 :]
    elif how == "header":
        del data[200:]
    elif how == "start":
        del data[10:]
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("magic", "not a GGUF file"),
        ("version", "is of GGUF version 1, not 2 or 3"),
        ("big-endian", "is for big-endian machines"),
        ("keys", "damaged: announces"),
        ("tensors", "damaged: announces"),
        ("array", "damaged or truncated"),
        ("short", "damaged or truncated"),
        ("header", "damaged: announces"),
        ("start", "not a GGUF file"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, how: str, message: str) -> None:
    file = write(tmp_path / "x.gguf")
    damage(file, how)
    with pytest.raises(CheckpointError, match=message) as caught:
        GGUFStore([file])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
