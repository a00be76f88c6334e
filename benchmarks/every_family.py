"""Whether a tiny random checkpoint of each family converts and proves itself without a recipe.

Run: python benchmarks/every_family.py [NAME ...]    names as tests/plugins/tiny_families.py has them; all by default
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "plugins"))

from tiny_families import TINY, unproved, write, write_tokenizer
from transformers.utils import logging

import llmconv


def main() -> int:
    """Print a line a family; the number of those that failed."""
    logging.set_verbosity_error()
    registry, failed = llmconv.Registry.load(), 0
    for name in sys.argv[1:] or TINY:
        began = time.monotonic()
        with TemporaryDirectory() as folder:
            checkpoint = Path(folder) / name
            write(name, checkpoint)
            write_tokenizer(checkpoint)
            try:
                wrong = unproved(checkpoint, Path(folder) / "bundle", registry)
            except llmconv.LlmconvError as error:
                wrong = [str(error)]
        failed += bool(wrong)
        print(f"{name:20} {time.monotonic() - began:6.1f} s  {'; '.join(wrong) or 'proved'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
