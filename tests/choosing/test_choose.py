"""The recipe that is chosen: as the model's sizes, the target and the budget ask for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmconv import PassError, Recipe, RecipeError, Registry, ResourceError, Wish, choose, hookimpl
from llmconv.choosing import Chooser, Draft, Facts
from llmconv.choosing.choose import drafts
from llmconv_plugins import chipsets
from llmconv_plugins.choosers.htp import HTP

PHONE = "Galaxy S23 Ultra"
CONFIG = {
    "model_type": "llama",
    **{
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    **{"vocab_size": 128, "max_position_embeddings": 8192},
}


def checkpoint(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder)


def values(draft: Draft) -> dict[str, Any]:
    return {setting: value for setting, value, _ in draft.choices()}


def first(wish: Wish) -> Draft:
    return next(drafts(wish, Registry.load()))


def test_a_tiny_model_has_8_bits_in_one_part(tmp_path: Path) -> None:
    chosen = choose(Wish(checkpoint(tmp_path / "Tiny-1"), PHONE, context=64))
    found = values(chosen.draft)
    assert found["passes.w4a16.weight_bits"] == 8
    assert found["passes.split_model.parts"] == 1
    assert (found["graphs.prompt.ar"], found["graphs.prompt.context"]) == (16, 64)
    assert (chosen.recipe.name, found["backend.name"]) == ("tiny_1", "qnn")
    assert chosen.recipe == Recipe.loads(chosen.text, "again", Path("/"))


def test_every_setting_has_its_reason(tmp_path: Path) -> None:
    choices = choose(Wish(checkpoint(tmp_path / "m"), PHONE, context=64)).draft.choices()
    without = {setting for setting, _, why in choices if not why}
    assert {setting for setting in without if setting.rpartition(".")[2] != "name"} <= {"model.checkpoint"}


def test_the_same_sizes_give_the_same_recipe(tmp_path: Path) -> None:
    wish = Wish(checkpoint(tmp_path / "m"), PHONE, context=64)
    assert choose(wish).text == choose(wish).text


@pytest.mark.parametrize(
    ("changes", "context", "why"),
    [
        ({}, 4096, "of 8192 that the model knows"),
        ({"max_position_embeddings": 512}, 512, "all that the model knows"),
        ({"model_type": "mistral", "sliding_window": 256}, 256, "as far as the narrowest layer sees"),
    ],
)
def test_the_context_is_the_least_bound(tmp_path: Path, changes: dict[str, Any], context: int, why: str) -> None:
    draft = first(Wish(checkpoint(tmp_path / "m", **changes), PHONE))
    assert ("graphs.token.context", context) in values(draft).items()
    assert any(said.startswith(why) for _, _, said in draft.choices())
    assert bool(draft.notes) == (context < 4096)


LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 8}
LARGE["num_key_value_heads"] = 8


def test_a_larger_model_has_4_bits_in_blocks(tmp_path: Path) -> None:
    found = values(first(Wish(checkpoint(tmp_path / "m", **LARGE), PHONE, backend="onnx")))
    assert (found["passes.w4a16.quantizer"], found["passes.w4a16.block"]) == ("gptq", 32)
    assert found["backend.name"] == "onnx"


def test_rows_that_blocks_do_not_divide_have_none(tmp_path: Path) -> None:
    draft = first(Wish(checkpoint(tmp_path / "m", **LARGE | {"intermediate_size": 4100}), PHONE))
    assert values(draft)["passes.w4a16.weights"] == {"*.down_proj.weight": {"block": 0}}


def integers(bits: int, **changes: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", **changes}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True}


@pytest.mark.parametrize(
    ("quantized", "kept"),
    [
        (integers(8), {"passes.w4a16.weight_bits": 8}),
        (integers(4), {"passes.w4a16.quantizer": "gptq", "passes.w4a16.block": 32}),
        (GPTQ, {"passes.w4a16.quantizer": "gptq", "passes.w4a16.block": 32}),
        (integers(4, strategy="group", group_size=32), None),
        (integers(8, symmetric=False), None),
        (GPTQ | {"group_size": 128}, None),
        (GPTQ | {"sym": False}, None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, None),
    ],
)
def test_integers_that_a_grid_holds_are_left_on_it(
    tmp_path: Path, quantized: dict[str, Any], kept: dict[str, Any] | None
) -> None:
    draft = first(Wish(checkpoint(tmp_path / "m", **LARGE, quantization_config=quantized), PHONE))
    names = {section.path for section in draft.sections}
    assert ("passes.rotate" in names) == (kept is None)
    assert (kept or {}).items() <= values(draft).items()
    assert ("its own integers" in draft.label) == (kept is not None)


def test_adapters_to_merge_stand_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a = b").mkdir()
    model = checkpoint(tmp_path / "m", quantization_config=integers(8))
    chosen = choose(Wish(model, PHONE, context=64, adapters={tmp_path / "a = b": 0.5}))
    assert chosen.recipe.model.adapters == {tmp_path / "a = b": 0.5}
    assert "passes.rotate" in {section.path for section in chosen.draft.sections}  # integers are off their grid anyway
    with pytest.raises(RecipeError, match=r"none: no such folder; give an adapter's"):
        choose(Wish(model, PHONE, adapters={tmp_path / "none": 1.0}))


@pytest.mark.slow
def test_a_budget_decides_the_bits(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", **LARGE | {"num_hidden_layers": 1, "vocab_size": 32})
    parameters = 4 * 1024**2 + 3 * 1024 * 4096
    bits = {}
    for budget in (2 * parameters, round(0.56 * parameters), round(0.52 * parameters)):
        chosen = choose(Wish(model, PHONE, context=64, budget=budget))
        assert chosen.plan.weight_bytes <= budget
        found = values(chosen.draft)
        bits[budget] = (found.get("passes.w4a16.weight_bits", 4), found.get("passes.w4a16.block", 0))
    assert list(bits.values()) == [(8, 0), (4, 32), (4, 0)]
    with pytest.raises(ResourceError, match=r"the weights take 8\.\d+ MB at least, more than the budget of 1\.00 MB"):
        choose(Wish(model, PHONE, context=64, budget=1_000_000))


@pytest.mark.slow
def test_parts_are_as_few_as_the_target_holds(tmp_path: Path) -> None:
    """Of a target whose parts may take half of what one part would."""
    model = checkpoint(tmp_path / "m", **LARGE)
    whole = choose(Wish(model, PHONE, context=64))
    assert len(whole.plan.parts) == 1
    need = next(limit.need for limit in whole.plan.limits if limit.what == "process domain")

    class Half:
        @hookimpl
        def register_chipsets(self) -> list[Any]:
            return [replace(chipsets.CHIPSETS[0], name="Half", devices=(), domain_bytes=round(0.6 * need))]

    registry = Registry.load()
    registry.add("test", Half())
    chosen = choose(Wish(model, "Half", context=64), registry=registry)
    assert len(chosen.plan.parts) == 2
    assert "parts = 2 # as few as Half holds, by the plan" in chosen.text
    assert not any(limit.verdict == "error" for limit in chosen.plan.limits)


def test_a_draft_that_a_pass_refuses_is_passed_over_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv_plugins.passes.rotate import Rotate  # noqa: PLC0415  to be replaced

    def refuse(*_: object) -> bool:
        raise PassError("cannot turn this model")

    monkeypatch.setattr(Rotate, "run", refuse)
    chosen = choose(Wish(checkpoint(tmp_path / "m"), PHONE, context=64))
    assert "rotate" not in [entry.name for entry in chosen.recipe.passes]
    assert any("cannot turn this model" in note for note in chosen.draft.notes)


def test_a_chipset_that_nothing_chooses_for(tmp_path: Path) -> None:
    class Bare:
        @hookimpl
        def register_chipsets(self) -> list[Any]:
            return [replace(chipsets.CHIPSETS[0], name="Bare", devices=(), chooser="")]

    registry = Registry.load()
    registry.add("test", Bare())
    with pytest.raises(RecipeError, match="Bare: nothing chooses recipes for it"):
        choose(Wish(checkpoint(tmp_path / "m"), "Bare"), registry=registry)


def test_the_built_in_chooser_is_a_plugin() -> None:
    assert issubclass(HTP, Chooser)
    assert Registry.load().of_kind("chooser")["htp"].plugin is HTP
    assert Facts.__doc__
