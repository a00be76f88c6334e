from pathlib import Path

import llmconv_more_bits

from llmconv import Recipe, Registry
from llmconv.prepare import check, lay_out
from llmconv.testing import tiny_recipe


def test_values_and_the_way_back_from_the_mlp_have_8_bits_and_all_else_4(tmp_path: Path) -> None:
    registry = Registry.load()
    if "more_bits" not in registry.of_kind("scheme"):  # not installed
        registry.add("more_bits", llmconv_more_bits)
    recipe = Recipe.load(tiny_recipe(tmp_path / "tiny"), ["passes.w4a16.scheme=more_bits"])
    _, widths = lay_out(check(recipe, registry))
    bits = {name.removeprefix("layers.0."): width for name, width in widths.items() if name.endswith("proj.weight")}
    assert bits["self_attn.v_proj.weight"] == bits["mlp.down_proj.weight"] == 8
    assert bits["self_attn.q_proj.weight"] == bits["mlp.up_proj.weight"] == 4
