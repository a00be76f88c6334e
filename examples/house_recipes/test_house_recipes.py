from pathlib import Path

from llmconv_house_recipes import register_recipes

from llmconv import Recipe, plan
from llmconv.testing import tiny_checkpoint


def test_every_recipe_means_something_for_a_model_of_its_family(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama", max_position_embeddings=512)
    for file in [file for folder in register_recipes() for file in folder.glob("*.toml")]:
        recipe = Recipe.load(file, [f"model.checkpoint='{model}'"])
        recipe_plan = plan(recipe)  # its passes run, as far as they read no weight
        assert not [limit for limit in recipe_plan.limits if limit.verdict == "error"]
