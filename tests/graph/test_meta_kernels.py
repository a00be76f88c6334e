"""Commands that lay out graphs do not import torch._dynamo, and what they infer is what PyTorch infers with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes/tiny_llama.toml"
PLANNED = """
import sys
from pathlib import Path
from llmconv import Recipe
from llmconv.planning.plan import plan
plan(Recipe.load(Path(sys.argv[1])))
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""
OPS = """
import sys, torch
if sys.argv[1] == "spared":
    import llmconv.graph.record
else:
    import torch._dynamo
x, y = (torch.empty(2, 3, 4, device="meta") for _ in range(2))
found = [
    x.cos(), x * y, x + 1, x / 3, 1 - x, -x, x**2, x.rsqrt(), x.mean(-1, keepdim=True), x > 0, torch.cat([x, y]),
    torch.stack([x, y]), torch.where(x > 0, x, y), x.transpose(0, 2) * y.transpose(0, 2), x.clamp(0, 1), x.half() + y,
    torch.rms_norm(x, [4], y[0, 0]), torch.layer_norm(x, [4]), torch.nn.functional.gelu(x), x.softmax(-1), x.int() * 2,
    torch.nn.functional.scaled_dot_product_attention(x, x, y), torch.nn.Embedding(5, 4, device="meta").weight,
]
print([(v.shape, v.stride(), v.dtype) for v in found], "torch._dynamo" in sys.modules)
"""


def _printed(code: str, *args: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True).stdout


def test_a_plan_imports_no_compiler() -> None:
    assert _printed(PLANNED, str(RECIPE), "torch._dynamo", "torch._inductor", "torch.export._trace").split() == []


def test_what_is_inferred_is_the_same() -> None:
    spared, with_it = (_printed(OPS, how).rpartition(" ") for how in ("spared", "imported"))
    assert spared[0] == with_it[0]
    assert (spared[2].strip(), with_it[2].strip()) == ("False", "True")
