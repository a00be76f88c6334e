"""Whether two bundles hold the same ONNX files and binaries, byte for byte: for work that must not change a result.

Run: python benchmarks/same_bytes.py BEFORE AFTER, two bundles of one recipe, made before and after the work.
Prints the files that differ or that one bundle lacks, and ends with 1 where there are any.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmconv.files import digest

FOLDERS = ("onnx", "qnn")


def contents(bundle: Path) -> dict[str, str]:
    """The sha256 of each file that a device or a simulator loads, by its name in the bundle."""
    files = (f for folder in FOLDERS for f in (bundle / folder).rglob("*") if f.is_file())
    return {str(f.relative_to(bundle)): digest(f) for f in files}


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    chosen = parser.parse_args()
    before, after = contents(chosen.before), contents(chosen.after)
    if not before or not after:
        parser.error("a bundle has no files in onnx/ or qnn/")
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in different:
        print(f"{name}: {'differs' if name in before and name in after else 'is in one alone'}")
    print(f"{len(before.keys() | after.keys()) - len(different)} files are the same, {len(different)} are not")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
