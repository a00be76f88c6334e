"""Which rule each weight gets: its role's, and what lines of a recipe say over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from llmconv import PassError, PluginError, RecipeError, Registry, hookimpl
from llmconv.quantization import Line, Rule, Scheme, SchemePreset
from llmconv_plugins import passes, quantizers

LINEAR, HEAD = Rule(4, 0, "gptq"), Rule(8, 0, "nearest")
ROLES = {"layers.0.q": "linear", "layers.0.down": "linear", "layers.1.q": "linear", "head": "head"}


def rules(lines: dict[str, Line], linear: Rule = LINEAR, columns: int = 64) -> dict[str, Rule]:
    return Scheme({"linear": linear, "head": HEAD}, lines).rules(ROLES, dict.fromkeys(ROLES, columns))


def refused(lines: dict[str, Line], linear: Rule = LINEAR, columns: int = 64) -> str:
    with pytest.raises(PassError) as caught:
        rules(lines, linear, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_lines_each_weight_is_as_its_role_has_it() -> None:
    assert rules({}) == {name: HEAD if name == "head" else LINEAR for name in ROLES}


def test_a_line_changes_what_it_says_and_nothing_else() -> None:
    found = rules({"layers.0.*": Line(bits=8), "head": Line(quantizer="clipped"), "layers.1.q": Line(block=16)})
    assert found["layers.0.q"] == found["layers.0.down"] == replace(LINEAR, bits=8)
    assert found["layers.1.q"] == replace(LINEAR, block=16)
    assert found["head"] == replace(HEAD, quantizer="clipped")


def test_the_last_pattern_counts_and_says_nothing_of_the_one_before() -> None:
    found = rules({"layers.*": Line(bits=8, quantizer="nearest"), "*.q": Line(bits=4), "layers.0.*": Line(bits=8)})
    assert found["layers.0.q"] == replace(LINEAR, bits=8)
    assert found["layers.1.q"] == LINEAR
    assert found["layers.0.down"] == replace(LINEAR, bits=8)


@pytest.mark.parametrize("first", [True, False])
def test_the_very_name_counts_before_any_pattern(first: bool) -> None:
    exact, pattern = {"layers.0.q": Line(bits=8)}, {"layers.0.*": Line(quantizer="nearest")}
    found = rules({**exact, **pattern} if first else {**pattern, **exact})
    assert found["layers.0.q"] == replace(LINEAR, bits=8)
    assert found["layers.0.down"] == replace(LINEAR, quantizer="nearest")


def test_case_is_told_apart() -> None:
    assert "'HEAD'" in refused({"HEAD": Line(bits=4)})


def test_a_line_that_matches_no_weight_is_an_error() -> None:
    assert refused({"head": Line(bits=4), "layers.7.*": Line(bits=8)}) == (
        "weights names 'layers.7.*', which no convolution's weight matches"
    )


def test_a_line_that_is_overridden_everywhere_still_matches() -> None:
    assert rules({"head": Line(bits=4), "h*": Line(bits=8)})["head"].bits == 4


@pytest.mark.parametrize("block", [16, 32, 64])
def test_blocks_that_divide_the_columns(block: int) -> None:
    assert rules({"layers.0.q": Line(block=block)})["layers.0.q"].block == block  # type: ignore[arg-type]


def test_blocks_that_do_not_divide_the_columns_are_an_error() -> None:
    assert refused({}, replace(LINEAR, block=32), columns=48) == (
        "weight 'layers.0.q' has 48 columns, which blocks of 32 do not divide; choose another block for it"
    )


@pytest.mark.parametrize("line", [Line(bits=8, block=16), Line(block=16)])
def test_8_bits_in_blocks_are_refused(line: Line) -> None:
    assert refused({"head": line}) == "weight 'head' is to have 8 bits in blocks, which QNN has for 4 bits alone"


def test_a_weight_of_8_bits_leaves_the_blocks_of_its_role() -> None:
    found = rules({"layers.0.q": Line(bits=8)}, replace(LINEAR, block=16))
    assert found["layers.0.q"] == Rule(8, 0, "gptq")
    assert found["layers.1.q"] == Rule(4, 16, "gptq")


def test_block_0_takes_a_weight_out_of_the_blocks_of_its_role() -> None:
    assert rules({"layers.0.q": Line(block=0)}, replace(LINEAR, block=16))["layers.0.q"] == LINEAR


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"bit": 8}, "bit: unexpected keyword argument"),
        ({"bits": 5}, "bits: input should be 4 or 8"),
        ({"bits": "8"}, "bits: input should be 4 or 8"),
        ({"block": 24}, "block: input should be 0, 16, 32, 64 or 128"),
        ({"quantizer": 4}, "quantizer: input should be a valid string"),
        (8, "input should be an object"),
    ],
)
def test_a_line_of_a_recipe_that_means_nothing(line: object, said: str) -> None:
    with pytest.raises(RecipeError, match=f"^pass 'w4a16': option 'weights'.*{said}") as caught:
        Registry.of(passes).create("pass", "w4a16", {"weights": {"layers.*": line}})
    assert "\n" not in str(caught.value)


def test_a_line_of_a_recipe_is_a_line() -> None:
    options = {"weights": {"layers.*": {"bits": 8, "block": 0, "quantizer": "nearest"}}}
    made = Registry.of(passes).create("pass", "w4a16", options)
    assert made.weights == {"layers.*": Line(8, 0, "nearest")}


@dataclass(frozen=True)
class Preset(SchemePreset):
    """8 bits for two layers, and a quantizer for one weight."""

    name: ClassVar[str] = "preset"
    lines: ClassVar[Mapping[str, Line]] = {"layers.*": Line(bits=8), "layers.0.q": Line(quantizer="clipped")}


def test_lines_of_a_recipe_count_after_those_of_its_preset() -> None:
    def found(lines: dict[str, Line]) -> dict[str, Rule]:
        return Scheme({"linear": LINEAR, "head": HEAD}, lines, Preset()).rules(ROLES, dict.fromkeys(ROLES, 64))

    eight = replace(LINEAR, bits=8)
    assert found({}) == {
        "layers.0.q": replace(LINEAR, quantizer="clipped"),
        "layers.0.down": eight,
        "layers.1.q": eight,
        "head": HEAD,
    }
    assert found({"*.q": Line(bits=4)})["layers.1.q"] == LINEAR
    assert found({"layers.*": Line(bits=4), "*.down": Line(bits=8)})["layers.1.q"] == LINEAR  # in the preset's place
    with pytest.raises(PassError, match="scheme 'preset' names 'layers"):
        Scheme({"head": HEAD}, {}, Preset()).rules({"head": "head"}, {"head": 64})


class Brings:
    """A plugin of the preset."""

    @hookimpl
    def register_schemes(self) -> list[type[SchemePreset]]:
        return [Preset]


def test_a_recipe_names_a_preset_whose_quantizers_are_made() -> None:
    registry = Registry.of(passes, quantizers, Brings())
    made = registry.create("pass", "w4a16", {"scheme": "preset", "weights": {"head": {"bits": 4}}})
    assert made.table.all_lines == {**Preset.lines, "head": Line(bits=4)}
    assert [use[:2] for use in made.uses()][:2] == [("scheme", "preset"), ("quantizer", "nearest")]
    assert ("quantizer", "clipped", {}) in made.uses()
    with pytest.raises(PluginError, match="no scheme named 'prest'; did you mean 'preset'"):
        registry.create("pass", "w4a16", {"scheme": "prest"})
    with pytest.raises(PassError, match=r"scheme 'preset' is not known here; make the pass with Registry\.create"):
        passes.W4A16(scheme="preset").uses()
