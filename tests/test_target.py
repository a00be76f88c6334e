"""Chipsets by name, part number and device."""

from __future__ import annotations

import pytest

from llmconv import RecipeError
from llmconv.target import find
from llmconv_plugins.chipsets import CHIPSETS


@pytest.mark.parametrize(
    "name",
    ["Snapdragon 8 Gen 2", "SM8550", "sm8550", "Samsung Galaxy S23 Ultra", "galaxy s23 ultra", "  Xiaomi   13 "],
)
def test_chipset_is_found_by_any_of_its_names(name: str) -> None:
    chipset = find(name, CHIPSETS)
    assert (chipset.model, chipset.soc_model, chipset.htp_arch) == ("SM8550", "43", "73")


def test_every_name_leads_to_its_own_chipset() -> None:
    for chipset in CHIPSETS:
        for name in (chipset.name, chipset.model, *chipset.devices):
            assert find(name, CHIPSETS) is chipset


def test_unknown_name_comes_with_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match="no chipset or device 'Snapdragon 8 Gen2'; did you mean 'Snapdragon 8 Gen 2'"
    ):
        find("Snapdragon 8 Gen2", CHIPSETS)


def test_name_like_none_lists_all() -> None:
    with pytest.raises(RecipeError, match="known: ") as caught:
        find("???", CHIPSETS)
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)
