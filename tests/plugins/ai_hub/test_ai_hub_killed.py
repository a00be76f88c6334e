"""A whole conversion through the stand-in, killed again and again: nothing is sent twice, the bundle is the same."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import Linker, StandIn, running, write_configuration

from llmconv import Bundle

pytestmark = pytest.mark.slow

CONVERT = """
import sys
from pathlib import Path

from llmconv import Recipe, apply
from llmconv_plugins.ai_hub import patience, sending

sending.POLL_SECONDS = patience.FIRST_PAUSE = 0.02
recipe = Recipe.load(Path(sys.argv[1]), [f"output.folder='{sys.argv[2]}'"], backend="qnn_ai_hub")
apply(recipe, verify=False, progress=lambda stage, item: print(stage, item, flush=True))
"""
LINES = 12  # about uploads and jobs, after as many as which a run is killed at the latest


def convert(recipe: Path, output: Path, until: int | None = None) -> int:
    """One run; killed after so many lines about the service.

    Returns:
        Its exit code.
    """
    command = [sys.executable, "-c", CONVERT, str(recipe), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = 0
        for line in process.stdout:
            said += line.startswith("AI Hub")
            if said == until:
                process.kill()
    return process.returncode


def test_killed_conversion_sends_nothing_twice_and_ends_the_same(
    hub: StandIn, compiled: Linker, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, codes = random.Random(0), [-9]
    while codes[-1] == -9:
        codes.append(convert(small_recipe, tmp_path / "broken", points.randrange(1, LINES)))
    assert codes[-1] == 0
    assert len(codes) > 3  # two kills and more
    assert {name: count for name, count in (hub.uploaded + hub.submitted).items() if count > 1} == {}
    assert (len(hub.uploaded), len(hub.submitted)) == (4, 4 + 2 + 4)  # compile, link, link alone
    with running(StandIn(tmp_path / "other_hub", compiled)) as other:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_configuration(tmp_path / "other.ini", other.url)))
        assert convert(small_recipe, tmp_path / "unbroken") == 0
    broken, unbroken = (Bundle(tmp_path / name).manifest for name in ("broken", "unbroken"))
    assert broken["files"] == unbroken["files"]
    assert broken["binaries"] == unbroken["binaries"]
