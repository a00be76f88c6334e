"""The site, built once a run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(folder: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mermaidx") is None:
        if "CI" in os.environ:
            pytest.fail("the site's tools are not installed: pip install 'llmconv[docs]'")
        pytest.skip("the site's tools are not installed: pip install 'llmconv[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def site(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of the built site: every warning of MkDocs was an error."""
    return once("site", build)
