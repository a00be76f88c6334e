"""The card that goes with a bundle."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from llmconv import Bundle
from llmconv.bundle.bundle import CARD
from llmconv.report import card
from llmconv.sources.licence import Licence
from llmconv_plugins.genie.on_a_phone import run_on_a_phone


def text_of(folder: Path, manifest: dict[str, Any], licence: Licence = Licence()) -> str:  # noqa: B008  frozen
    card.write(folder, manifest, licence)
    return (folder / CARD).read_text()


@pytest.fixture
def shipped(small_bundle: Bundle) -> str:
    return (small_bundle.folder / CARD).read_text()


def test_card_is_a_file_of_the_bundle(small_bundle: Bundle) -> None:
    assert CARD in small_bundle.manifest["files"]


def test_card_tells_nothing_of_the_machine_or_the_run(small_bundle: Bundle, shipped: str, tmp_path: Path) -> None:
    manifest = {key: value for key, value in small_bundle.manifest.items() if key != "files"}
    assert str(Path(manifest["source"]["checkpoint"]).parent) not in shipped
    assert str(small_bundle.folder) not in shipped
    assert not re.search(r"\d seconds|20\d\d-\d\d", shipped)
    elsewhere = copy.deepcopy(manifest)
    elsewhere["source"]["checkpoint"] = "/elsewhere/tiny_llama"
    assert text_of(tmp_path, manifest) == text_of(tmp_path, elsewhere)


def test_a_chip_of_which_no_device_is_known(small_bundle: Bundle, tmp_path: Path) -> None:
    manifest = {**small_bundle.manifest, "target": {**small_bundle.manifest["target"], "devices": []}}
    assert "(SM8550, HTP v73)." in text_of(tmp_path, manifest)


def test_table_has_every_tensor_of_a_part(small_bundle: Bundle, shipped: str) -> None:
    block = shipped.partition("### `token_ar1_cl128_2_of_2`")[2]
    rows = [line for line in block.splitlines() if line.startswith(("| in", "| out"))]
    spec = {t.name: t for t in small_bundle.graphs["token"].parts[1].inputs}
    mask = spec["attention_mask"].encoding
    assert mask is not None
    assert f"| in | `attention_mask` | 1 × 1 × 1 × 128 | uint16 | {mask.scale:.9g} | 65535 |" in rows
    keys = [row for row in rows if row.startswith("| in | `past_key_<l>_in`, layers 1 to 2 |")]
    assert len(keys) == 1
    assert "2 × 1 × 8 × 127 | uint8 |" in keys[0]
    assert keys[0].endswith("| 128 |")
    assert len(rows) == 6 + 3  # ids are of the first part; keys and values one row each


def test_single_layer_keeps_its_name(shipped: str) -> None:
    assert "| in | `past_key_0_in` | 2 × 1 × 8 × 96 | uint8 |" in shipped


def test_card_says_how_to_run_it(shipped: str) -> None:
    for text in (
        "adb push qnn/part_2_of_2.bin",
        "genie-t2t-run -c genie_config.json",
        "docs/phones.md",
        "llmconv chat .",
    ):
        assert text in shipped
    assert "simulator" not in shipped.partition("## Run it on a phone")[2].partition("##")[0]


def test_bundle_without_binaries_is_not_for_a_phone(small_bundle: Bundle, tmp_path: Path) -> None:
    assert run_on_a_phone(tmp_path, []) == ""
    assert "phone" not in text_of(tmp_path, small_bundle.manifest)


def test_unknown_licence(small_bundle: Bundle, tmp_path: Path) -> None:
    assert "said nothing about a licence" in text_of(tmp_path, small_bundle.manifest)


def test_known_licence(small_bundle: Bundle, tmp_path: Path) -> None:
    licence = Licence("llama2", "LICENSE.txt", (Path("/x/LICENSE.txt"), Path("/x/USE_POLICY.md")))
    text = text_of(tmp_path, small_bundle.manifest, licence)
    assert "names its licence: llama2 (LICENSE.txt)" in text
    assert "`source/USE_POLICY.md` is the checkpoint's own file" in text
    assert "said nothing" not in text


def test_names_do_not_become_markup(small_bundle: Bundle, tmp_path: Path) -> None:
    recipe = {**small_bundle.manifest["recipe"], "name": "<script>a|b`\n# c"}
    first = text_of(tmp_path, {**small_bundle.manifest, "recipe": recipe}).splitlines()[0]
    assert first == "# scriptab# c"
