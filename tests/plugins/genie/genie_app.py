"""Genie as an app has it on the simulator: a dialog's configuration, and what it says to calls of its library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmconv import Bundle, Sampling
from llmconv_plugins.genie.genie_config import CONFIG, TOKENIZER, simulator_config
from llmconv_plugins.genie.library import faults, library

EOS = 2
SCRIPT = Path(__file__).with_name("genie_calls.py")


def dialog_of(bundle: Bundle) -> dict[str, Any]:
    """The configuration that the `genie` runtime has."""
    twins = [bundle.path(b["file"]).resolve() for b in bundle.manifest["binaries"] if b["simulator"]]
    device = json.loads(bundle.path(CONFIG).read_text())
    found: dict[str, Any] = simulator_config(device, twins, bundle.path(TOKENIZER).resolve(), Sampling(), (EOS,))
    return found["dialog"]  # type: ignore[no-any-return]


def said_to(dialog: dict[str, Any], folder: Path, *calls: Sequence[Any]) -> tuple[list[Any], str]:
    """What Genie answers to calls of its library in a process of its own, and what it prints."""
    assert not faults({"dialog": dialog})
    for name, content in (("config.json", {"dialog": dialog}), ("calls.json", calls)):
        (folder / name).write_text(json.dumps(content))
    arguments = [str(library()), *(str(folder / name) for name in ("config.json", "calls.json", "said.json"))]
    variables = {**os.environ, "LD_LIBRARY_PATH": str(library().parent)}
    ended = subprocess.run([sys.executable, str(SCRIPT), *arguments], env=variables, capture_output=True, check=False)
    printed = (ended.stdout + ended.stderr).decode(errors="replace")
    assert ended.returncode == 0, printed[-2000:]
    return json.loads((folder / "said.json").read_text()), printed
