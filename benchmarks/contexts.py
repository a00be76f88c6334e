"""What each further context costs: bytes of the device's binaries, processor time and memory of compiling them.

Run: python benchmarks/contexts.py [--ar 32] [--contexts 96 128 192 256] [--recipe FILE]
Converts the tiny recipe with the first context, then with one more each time, without twins, one part after another.
The seconds are those of the processor in child processes, nearly all of them the compiler's: other work moves them less
than the clock's.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmconv import Bundle, Recipe, apply

TINY = Path(__file__).parents[1] / "recipes" / "tiny_llama.toml"


def convert(recipe: Path, ar: int, contexts: Sequence[int], folder: Path) -> Bundle:
    """The bundle, with binaries for the device alone."""
    changes = (
        f"graphs={{ar = [1, {ar}], context = {list(contexts)}}}",
        "passes.w4a16.quantizer='nearest'",
        "backend.twins='never'",
        f"output.folder='{folder}'",
    )
    return apply(Recipe.load(recipe, changes), verify=False, fresh=True, jobs=1)


def main() -> None:
    """Read the command line, convert, print a line for each number of contexts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=TINY)
    parser.add_argument("--ar", type=int, default=32, help="tokens that prompt graphs read in one run")
    parser.add_argument("--contexts", type=int, nargs="+", default=[96, 128, 192, 256])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="contexts-") as work:
        for count in range(1, len(args.contexts) + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            bundle = convert(args.recipe, args.ar, args.contexts[:count], Path(work) / str(count))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            binaries = bundle.report["binaries"]
            size = sum(bundle.path(b["file"]).stat().st_size for b in binaries)
            onnx = sum(f["bytes"] for name, f in bundle.manifest["files"].items() if name.endswith(".onnx"))
            peak = max(b["peak_rss"] for b in binaries)
            print(
                f"contexts {args.contexts[:count]}: binaries {size / 1e6:.2f} MB, ONNX files beside the weights "
                f"{onnx / 1e6:.2f} MB, compiler {seconds:.1f} s of processor time, peak {peak / 1e6:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
