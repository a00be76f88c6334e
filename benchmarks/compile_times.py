"""Compile small models of several geometries and compare the compiler's seconds with what a plan estimates.

Run: python benchmarks/compile_times.py FOLDER
Each row is one part with a prompt and a token graph that share its weights, 8-bit weights, heads split, compiled alone.
The plan's formula (plugins/llmconv_plugins/qnn/estimates.py) was fitted to such rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from llmconv_plugins.qnn.estimates import graph_seconds

HERE = Path(__file__).parent
# width, layers, heads, KV heads, inner width, ar of the prompt graph
FITTED = [
    (256, 4, 4, 2, 704, 32),
    (512, 4, 8, 2, 1408, 128),
    (576, 6, 9, 3, 1536, 128),
    (1024, 3, 16, 4, 2816, 128),
    (1024, 3, 8, 8, 2816, 512),
    (2048, 2, 16, 8, 5632, 64),
    (896, 4, 14, 2, 4864, 128),
]
HELD_BACK = [(768, 4, 12, 4, 2048, 128), (1536, 2, 12, 2, 8960, 64)]
VOCABULARY, CONTEXT = 2048, 1024


def recipe_of(checkpoint: Path, ar: int) -> str:
    """The tiny recipe over another checkpoint, in one part of 8-bit weights."""
    tiny = (HERE.parent / "recipes/tiny_llama.toml").read_text()
    texts = tiny.replace('"tiny_llama/', f'"{HERE.parent}/recipes/tiny_llama/')
    made = texts.replace('checkpoint = "tiny_llama"', f'checkpoint = "{checkpoint}"').replace("parts = 2", "parts = 1")
    made = made.replace('quantizer = "gptq"', "weight_bits = 8").replace("samples = 32", "samples = 1")
    made = made.replace("context = 128", f"context = {CONTEXT}").replace("ar = 32", f"ar = {ar}")
    return made.replace('name = "qnn"', 'name = "qnn"\ntwins = "never"').replace("passes = true", "passes = false")


def measure(folder: Path, geometry: tuple[int, ...]) -> dict[str, float]:
    """Convert one model and read its report."""
    width, layers, heads, kv_heads, inner, ar = geometry
    place = folder / "_".join(map(str, geometry))
    checkpoint, bundle = place / "checkpoint", place / "bundle"
    sizes = {"hidden": width, "layers": layers, "heads": heads, "kv-heads": kv_heads, "intermediate": inner}
    flags = [f"--{name}={size}" for name, size in {**sizes, "vocabulary": VOCABULARY}.items()]
    if not bundle.exists():
        make = [sys.executable, str(HERE / "make_checkpoint.py"), str(checkpoint), *flags]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        (place / "recipe.toml").write_text(recipe_of(checkpoint, ar))
        apply = [sys.executable, "-m", "llmconv", "apply", str(place / "recipe.toml"), "--output", str(bundle)]
        subprocess.run(apply, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = json.loads((bundle / "report.json").read_text())
    (binary,), (part,) = report["binaries"], report["parts"]
    nodes = {g["graph"]: g["nodes"] for g in part["graphs"]}
    megabytes = (part["weight_bytes"] - part["table_bytes"]) / 1e6
    return {"nodes": sum(nodes.values()), "MB": megabytes, "ar": ar, "seconds": binary["seconds"]}


def estimate(row: dict[str, float]) -> float:
    """As the plan has it."""
    return sum(graph_seconds(row["nodes"] / 2, row["MB"], ar) for ar in (row["ar"], 1))


def main() -> None:
    """Measure and print every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print("| width, layers, heads, KV heads, inner, ar | nodes | MB | seconds | plan | plan / measured |")
    print("|---|---|---|---|---|---|")
    for label, geometries in (("", FITTED), (" (not fitted)", HELD_BACK)):
        for geometry in geometries:
            row = measure(folder, geometry)
            planned = estimate(row)
            shown = f"{row['nodes']:.0f} | {row['MB']:.1f} | {row['seconds']:.1f} | {planned:.1f}"
            print(f"| {geometry}{label} | {shown} | {planned / row['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
