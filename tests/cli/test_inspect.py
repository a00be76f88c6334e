"""`llmconv inspect`: the page's figures in a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llmconv import Bundle
from llmconv.report.contents import sections

SCRIPT = """import sys; sys.argv = ['llmconv', 'inspect', sys.argv[1]]
from llmconv.cli import main
try:
    main()
except SystemExit as left:
    print('torch' in sys.modules, left.code or 0)
"""


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "120", **environment}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables)


def test_figures_without_torch(small_bundle: Bundle) -> None:
    done = run(small_bundle.folder)
    assert done.stdout.splitlines()[-1] == "False 0"
    assert done.stderr == ""
    for section in sections(small_bundle):
        for table in section.tables:
            assert table.caption in done.stdout
    lines = done.stdout.splitlines()
    (all_parts,) = (line for line in lines if line.strip().startswith("all "))
    assert all_parts.split()[-1] == "ms"
    assert f"{small_bundle.report['perplexity']['float']:.3f}" in done.stdout
    assert "more in report.html" in done.stdout


def test_piped_output_is_plain(small_bundle: Bundle) -> None:
    text = run(small_bundle.folder, TERM="dumb", COLUMNS="60").stdout
    assert "\x1b" not in text
    assert not set("─│┃━┏") & set(text)
    assert "qnn/simulator/prompt_ar32_cl128_1_of_2.bin" in text  # nothing is broken over lines


def test_wrong_folder_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}: not a bundle (no manifest.json); give the output folder of 'llmconv apply'"
    ]
    assert done.stdout.splitlines() == ["False 2"]
