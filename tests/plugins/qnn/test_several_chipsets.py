"""One bundle for several chipsets: quantized and lowered once, binaries for each as a bundle of its own has them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from llmconv import BackendError, Bundle, BundleError, Recipe, RecipeError, Registry, apply, plan
from llmconv.cli import main
from llmconv.files import digest
from llmconv_plugins.genie.genie_config import CONFIG, EXTENSIONS
from llmconv_plugins.qnn.context_binary import read_info
from llmconv_plugins.runtimes import QnnSimulator

MODELS = {"SM8550": 43, "SM8650": 57, "SC8380XP": 60}
PARTS = ("part_1_of_2.bin", "part_2_of_2.bin")


def changed(recipe: Path, *changes: str) -> Recipe:
    return Recipe.load(recipe, changes)


def test_all_that_no_chip_changes_is_there_once(small_several: Bundle, small_bundle: Bundle) -> None:
    alone, found = small_bundle.manifest["files"], small_several.manifest["files"]
    same = {name for name in alone if name.startswith("onnx/")} | {
        "encodings.json",
        "tokenizer.json",
        "rope.safetensors",
    }
    assert {name: found[name]["sha256"] for name in same} == {name: alone[name]["sha256"] for name in same}
    assert {name for name in found if name.endswith(".data")} == {f"onnx/{Path(part).stem}.data" for part in PARTS}


def test_binaries_of_the_first_are_those_of_a_bundle_of_its_own(small_several: Bundle, small_bundle: Bundle) -> None:
    alone, found = small_bundle.manifest["files"], small_several.manifest["files"]
    for part in PARTS:
        assert found[f"qnn/SM8550/{part}"] == alone[f"qnn/{part}"]
    twins = {name for name in alone if name.startswith("qnn/simulator/")}
    assert {name: found[name] for name in twins} == {name: alone[name] for name in twins}
    several, one = (json.loads(bundle.path(CONFIG).read_text()) for bundle in (small_several, small_bundle))
    named = [config["dialog"]["engine"]["model"]["binary"].pop("ctx-bins") for config in (several, one)]
    assert named == [[f"qnn/SM8550/{part}" for part in PARTS], [f"qnn/{part}" for part in PARTS]]
    assert several == one


def test_each_chip_has_a_folder_and_each_generation_twins(small_several: Bundle) -> None:
    folder = small_several.folder / "qnn"
    for model, number in MODELS.items():
        assert {file.name for file in (folder / model).glob("*.bin")} == set(PARTS)
        assert {read_info(folder / model / part).soc_model for part in PARTS} == {number}
    labels = {f"{part.label}.bin" for graph in small_several.graphs.values() for part in graph.parts}
    for twins in (folder / "simulator", folder / "simulator" / "v75"):
        assert {file.name for file in twins.glob("*.bin")} == labels
    assert {file.name for file in (folder / "simulator").iterdir() if file.is_dir()} == {"v75"}


def test_a_bundle_of_one_chip_says_nothing_of_several(small_bundle: Bundle) -> None:
    assert "targets" not in small_bundle.manifest
    assert {frozenset(b) for b in small_bundle.manifest["binaries"]} == {
        frozenset({"file", "part", "graphs", "simulator"})
    }
    assert small_bundle.for_target("SM8550").binaries == small_bundle.binaries == small_bundle.manifest["binaries"]
    assert len(small_bundle.simulated()) == 1
    assert not list((small_bundle.folder / "qnn").glob("S*"))


def test_the_proof_runs_on_each_generation(small_several: Bundle, small_bundle: Bundle) -> None:
    proof = small_several.report["proof"]
    assert all(check["passed"] is not False for check in proof)
    for name in ("Snapdragon 8 Gen 2", "Snapdragon 8 Gen 3"):
        ran = [
            check
            for check in proof
            if check["step"] == 4 and f" on qnn for {name} against onnxruntime" in check["name"]
        ]
        assert len(ran) == sum(check["step"] == 4 for check in small_bundle.report["proof"])
    assert not any("Snapdragon X Elite" in check["name"] for check in proof if check["step"] == 4)
    for model, number in MODELS.items():
        for part in PARTS:
            (one,) = [c for c in proof if c["name"] == f"{model}/{part}: QNN's number of its chipset"]
            assert (one["measured"], one["passed"]) == (str(number), True)


def test_a_chips_view_has_its_own_files(small_several: Bundle) -> None:
    for model, number in MODELS.items():
        seen = small_several.for_target(model)
        device = [b["file"] for b in seen.binaries if not b["simulator"]]
        assert device == [f"qnn/{model}/{part}" for part in PARTS]
        assert len([b for b in seen.binaries if b["simulator"]]) == 4
        assert json.loads(seen.path(EXTENSIONS).read_text())["devices"][0]["soc_model"] == number
        config = json.loads(seen.path(CONFIG).read_text())
        assert config["dialog"]["engine"]["model"]["binary"]["ctx-bins"] == device
    assert small_several.binaries == small_several.for_target("SM8550").binaries
    with pytest.raises(BundleError, match=r"made for Snapdragon 8 Gen 2 \(SM8550\) and .*, not for SM8750") as caught:
        small_several.for_target("SM8750")
    assert "\n" not in str(caught.value)


def test_twins_of_both_generations_run(small_several: Bundle) -> None:
    """Loaded from folders of their own."""
    assert [seen.manifest["target"]["model"] for seen in small_several.simulated()] == ["SM8550", "SM8650"]
    for seen in small_several.simulated():
        with QnnSimulator().open(seen, ["token"]) as (runner,):
            assert runner.ar == 1


def test_export_takes_the_first_chip_or_the_named(
    small_several: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_several.folder, tmp_path / "b")
    for form, named, model in (
        ("genie", (), "SM8550"),
        ("genie", ("--target", "Xiaomi 14"), "SM8650"),
        ("epcontext", ("--target", "SC8380XP"), "SC8380XP"),
    ):
        monkeypatch.setattr(sys, "argv", ["llmconv", "export", str(tmp_path / "b"), "--to", form, *named])
        with pytest.raises(SystemExit, match="0"):
            main()
        for part in PARTS:
            assert (
                digest(tmp_path / "b" / form / part) == small_several.manifest["files"][f"qnn/{model}/{part}"]["sha256"]
            )
        if form == "genie":
            said = json.loads((tmp_path / "b" / form / EXTENSIONS).read_text())
            assert said["devices"][0]["soc_model"] == MODELS[model]


def test_the_same_again_has_nothing_to_do(small_recipe: Path, small_several: Bundle, tmp_path: Path) -> None:
    shutil.copytree(small_several.folder, tmp_path / "b")
    names = "target.name=['Galaxy S23 Ultra', 'Snapdragon 8 Gen 3', 'Snapdragon X Elite']"
    said: list[str] = []
    apply(
        changed(small_recipe, names, f"output.folder='{tmp_path / 'b'}'"),
        verify=False,
        progress=lambda stage, _item: said.append(stage),
    )
    assert said == []


def test_a_plan_counts_each_chips_binaries(small_recipe: Path) -> None:
    one, two = plan(changed(small_recipe)), plan(changed(small_recipe, "target.name=['SM8550', 'SM8650']"))
    further = {stage.name for stage in two.stages} - {stage.name for stage in one.stages}
    assert further == {
        f"{stage.name} for Snapdragon 8 Gen 3" for stage in one.stages if stage.name.startswith("compile ")
    }
    assert two.disk_need > one.disk_need
    assert two.chipset == one.chipset


def test_targets_of_the_command_line_take_the_recipes_place(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, plans in ((["SM8650"], (1, 0)), (["Xiaomi 14", "SM8550"], (1, 1)), (["SM8650", "Xiaomi 14"], (0, 0))):
        given = [word for name in names for word in ("--target", name)]
        monkeypatch.setattr(sys, "argv", ["llmconv", "plan", str(small_recipe), *given])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (said.out.count("Snapdragon 8 Gen 3 (estimates)"), "for Snapdragon 8" in said.out) == (
            plans[0],
            bool(plans[1]),
        )
        assert (ended.value.code, "are both Snapdragon 8 Gen 3" in said.err) == ((0, False) if plans[0] else (2, True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("['Galaxy S23 Ultra', 'SM8550']", "'Galaxy S23 Ultra' and 'SM8550' are both Snapdragon 8 Gen 2; remove one"),
        ("['SM8550', 'SM855']", "no chipset or device 'SM855'; did you mean"),
        ("[]", "target.name: write a name, or a list of names, not []"),
        ("3", "target.name: write a name, or a list of names, not 3"),
        ("['SM8550', 3]", 'target.name: write a name, or a list of names, not ["SM8550", 3]'),
    ],
)
def test_names_that_are_wrong(small_recipe: Path, change: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(small_recipe, f"target.name={change}").check(Registry.load())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backend_that_builds_for_one(small_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(
        small_recipe, ["target.name=['SM8550', 'SM8650']", f"output.folder='{tmp_path / 'b'}'"], backend="qnn_ai_hub"
    )
    with pytest.raises(BackendError, match="backend 'qnn_ai_hub' builds for one chipset, not 2; name one, or have"):
        apply(recipe)
    assert not (tmp_path / "b").exists()
