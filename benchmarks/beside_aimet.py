"""Perplexity of a recipe's model with its weights quantized by AIMET, on the windows and the text of `quality.py`.

Run: python benchmarks/beside_aimet.py RECIPE --python ENV/bin/python [--methods nearest seqmse] [--windows 24]
         [--tokens 256] [--samples 16]

ENV has aimet-onnx (`pip install aimet-onnx==2.42.*`), which does not go together with this package's onnxruntime.
Weights have 4 bits and a scale a row, lm_head 8, activations are float, as in `quality.py`; the graph is the recipe's
without the passes that split it or change weights. SeqMSE looks at so many samples of the calibration text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import llmconv
from llmconv import Recipe, Registry
from llmconv.decoding.torch_runner import HostInputs
from llmconv.evaluation import windows_of
from llmconv.graph import Model, trace
from llmconv.passes import PassContext, PassManager
from llmconv.prepare.resolve import check
from llmconv.prepare.text import calibration_samples

PASSES = ("kv_cache_io", "decompose", "linear_to_conv")
CHILD = Path(__file__).parent / "aimet_child.py"


def prepare(recipe: Path, folder: Path, windows: int, tokens: int, samples: int) -> None:
    """Write the float ONNX file, and what the host gives it for each window and sample."""
    registry = Registry.load()
    checked = check(Recipe.load(recipe, [f"calibration.tokens={tokens}", f"calibration.samples={samples}"]), registry)
    text = checked.recipe.verify.text
    assert text is not None
    plain = folder / "float.toml"
    passes = "".join(f'[[passes]]\nname = "{name}"\n' for name in PASSES)
    target = json.dumps(checked.recipe.target.names[0])
    plain.write_text(
        f'[model]\ncheckpoint = "{checked.recipe.model.checkpoint}"\n[target]\nname = {target}\n'
        f'[graphs.prompt]\nar = {tokens}\ncontext = {tokens}\n{passes}[backend]\nname = "onnx"\n'
    )
    override = [f"output.folder='''{folder / 'bundle'}'''"]
    llmconv.apply(Recipe.load(plain, override), verify=False)
    model = Model(
        {"prompt": trace(checked.source.module(), tokens, tokens, "prompt")}, checked.source.weights(), checked.config
    )
    PassManager([registry.create("pass", name, {}) for name in PASSES]).run(model, PassContext())
    host = HostInputs(model.graphs["prompt"])
    found = windows_of(checked, text, windows, tokens)
    common = {name: x.numpy() for name, x in host.of(found[0]).items() if name != "input_ids"}
    ids = {"windows": found, "samples": calibration_samples(checked)}
    arrays = {name: np.array(tokens, dtype=np.int32) for name, tokens in ids.items()}
    np.savez(folder / "bundle" / "inputs.npz", **arrays, **common)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=["nearest", "seqmse"], choices=["nearest", "seqmse"])
    for name, value in {"windows": 24, "tokens": 256, "samples": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    exact = None
    with TemporaryDirectory() as folder:
        prepare(given.recipe, Path(folder), given.windows, given.tokens, given.samples)
        for method in ["float", *given.methods]:
            command = [str(given.python), str(CHILD), f"{folder}/bundle", method]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = json.loads(said.splitlines()[-1])
            exact = exact or row["perplexity"]
            print(
                f"| AIMET, {method} | {row['perplexity']:.2f} | {row['perplexity'] / exact:.4f} "
                f"| {row['seconds']:.0f} s, {row['processor']:.0f} of processors | {row['peak'] / 1e9:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
