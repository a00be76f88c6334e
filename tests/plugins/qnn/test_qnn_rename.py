"""Renaming graphs in place, on bytes laid out as QNN lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv import BackendError
from llmconv_plugins.qnn.rename import rename_graphs

OLD = ("QNNExecutionProvider_QNNExecutionProvider_7859391879475240894_1_0", "QNNExecutionProvider_long_1_0")


def string(text: str) -> bytes:
    return len(text).to_bytes(4, "little") + text.encode() + b"\0"


def stored(names: tuple[str, ...]) -> bytes:
    blob = b"head"
    for i, name in enumerate(names):
        blob += string(name) + b"\x01\x02" + string(f"PICKLE/{256 + i}/{name}") + b"\x03" + string(name) + b"tail"
    return blob


def renamed(names: dict[str, str], stored_bytes: bytes) -> bytes:
    for old, new in names.items():
        for prefix in ("", "PICKLE/256/", "PICKLE/257/"):
            padding = b"\0" * (len(old) - len(new))
            stored_bytes = stored_bytes.replace(string(prefix + old), string(prefix + new) + padding)
    return stored_bytes


def test_name_and_length_change_in_all_three_places(tmp_path: Path) -> None:
    file = tmp_path / "part.bin"
    file.write_bytes(stored(OLD))
    names = {OLD[0]: "prompt_ar32_1_of_10", OLD[1]: "prompt_ar32_1_of_1"}
    rename_graphs(file, names)
    assert file.read_bytes() == renamed(names, stored(OLD))
    assert len(file.read_bytes()) == len(stored(OLD))


@pytest.mark.parametrize(
    ("content", "new", "said"),
    [
        (stored(OLD[:1]) + string(OLD[0]), "token", r"stands 3 \+ 1 times in the binary instead of 2 \+ 1"),
        (stored(OLD[1:]), "token", r"stands 0 \+ 0 times"),
        (stored(OLD[:1]).replace(b"\x41\0\0\0", b"\x42\0\0\0"), "token", "not stored as this version of QNN"),
        (stored(OLD[:1]), "t" * 100, "must be 1 to 65 ASCII characters"),
        (stored(OLD[:1]), "", "must be 1 to 65 ASCII characters"),
        (stored(OLD[:1]), "größe", "must be 1 to 65 ASCII characters"),
    ],
)
def test_what_is_not_as_expected_is_refused_and_left_alone(tmp_path: Path, content: bytes, new: str, said: str) -> None:
    file = tmp_path / "part.bin"
    file.write_bytes(content)
    with pytest.raises(BackendError, match=said):
        rename_graphs(file, {OLD[0]: new})
    assert file.read_bytes() == content


def test_two_graphs_of_one_name(tmp_path: Path) -> None:
    file = tmp_path / "part.bin"
    file.write_bytes(stored(OLD))
    with pytest.raises(BackendError, match="two graphs of one part want the same name"):
        rename_graphs(file, dict.fromkeys(OLD, "token"))
