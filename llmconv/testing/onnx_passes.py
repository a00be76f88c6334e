"""Try an ONNX pass on the parts of a tiny model, quantized as recipes do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from llmconv.bundle.specs import ONNX_FOLDER
from llmconv.lowering.onnx_pass import OnnxPass
from llmconv.lowering.write import write_onnx
from llmconv.passes.base import said
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import check
from llmconv.prepare.run import prepare
from llmconv.recipe.recipe import Recipe
from llmconv.testing.backends import SMALL
from llmconv.testing.checkpoints import tiny_recipe


@dataclass(frozen=True)
class OnnxPassTrial:
    """What an ONNX pass did.

    Attributes:
        made: the pass.
        before, after: the ONNX of each part, by label; weights lie in files beside it.
    """

    made: OnnxPass
    before: dict[str, onnx.ModelProto]
    after: dict[str, onnx.ModelProto]

    def again(self) -> bool:
        """Run the pass once more on its result, and say whether that changed anything; one that is done says no."""
        changed = [said(self.made.rewrite(gs.import_onnx(part))) for part in self.after.values()]
        return any(changed)


def try_onnx_pass(p: OnnxPass | type[OnnxPass], folder: Path, *changes: str) -> OnnxPassTrial:
    """Lower the smallest shipped recipe over random weights with an ONNX pass and without.

    Args:
        p: the pass, or its class.
        folder: to be made, for the checkpoint, the recipe and the ONNX.
        changes: of the recipe, e.g. `passes.split_model.parts=1`.

    Raises:
        PassError: it failed, changed something without a word or what goes in or out, left what is no valid ONNX, a
            value without an encoding, or other numbers than it declares.
    """
    registry, made = Registry.load(), p() if isinstance(p, type) else p
    checked = check(Recipe.load(tiny_recipe(folder), [*SMALL, *changes]), registry)
    model, _, _ = prepare(checked, checked.source.weights(), verify=False)

    def lowered(name: str, *passes: OnnxPass) -> dict[str, onnx.ModelProto]:
        write_onnx(model, folder / name, registry.lowerings, passes=passes)
        files = sorted((folder / name / ONNX_FOLDER).glob("*.onnx"))
        return {file.stem: onnx.load(str(file), load_external_data=False) for file in files}

    return OnnxPassTrial(made, lowered("before"), lowered("after", made))
