"""`llmconv push` of a bundle for several chipsets: a phone gets what its own chip loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_phones import PLACE, plug_in

from llmconv import Bundle
from llmconv_plugins.genie.genie_config import CONFIG, EXTENSIONS
from llmconv_plugins.phones.adb import Adb, PhoneError
from llmconv_plugins.phones.push import push

HERE = PLACE.removeprefix("/data/local/tmp/")


def test_a_phone_gets_its_own_chips_files(
    small_several: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, number in (("SM8550", 43), ("SM8650", 57)):
        phone = plug_in(tmp_path / model, monkeypatch)
        phone.says(answers={"getprop ro.soc.model": [f"{model}-AC\n"]})
        push(small_several, Adb.connect(small_several.folder, None), None, lambda _line: None)
        binaries = [f"{HERE}/qnn/{model}/part_{i}_of_2.bin" for i in (1, 2)]
        assert set(phone.files) == {*binaries, *(f"{HERE}/{name}" for name in (CONFIG, EXTENSIONS, "tokenizer.json"))}
        for file in binaries:
            assert phone.files[file] == (small_several.folder / file.removeprefix(f"{HERE}/")).read_bytes()
        config = json.loads(phone.files[f"{HERE}/{CONFIG}"])
        named = config["dialog"]["engine"]["model"]["binary"]["ctx-bins"]
        assert [f"{HERE}/{name}" for name in named] == binaries
        assert json.loads(phone.files[f"{HERE}/{EXTENSIONS}"])["devices"][0]["soc_model"] == number


def test_a_phone_of_another_chip_is_told_all(
    small_several: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = plug_in(tmp_path / "phone", monkeypatch)
    phone.says(answers={"getprop ro.soc.model": ["SM8750\n"]})
    with pytest.raises(PhoneError) as caught:
        push(small_several, Adb.connect(small_several.folder, None), None, lambda _line: None)
    assert "has a Snapdragon 8 Elite (SM8750)" in str(caught.value)
    assert "made for Snapdragon 8 Gen 2 (SM8550) and Snapdragon 8 Gen 3 (SM8650) and" in str(caught.value)
    assert phone.files == {}
