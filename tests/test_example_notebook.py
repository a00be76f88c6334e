"""The example notebook runs from top to bottom, in a kernel of its own."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "conversion.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_the_proof_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(tool) is None:
            if "CI" in os.environ:
                pytest.fail(f"{tool} is not installed: pip install {tool}")
            pytest.skip(f"{tool} is not installed: pip install {tool}")
    nbclient, nbformat = importlib.import_module("nbclient"), importlib.import_module("nbformat")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook converts to
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "part 2: 3 layers" in printed
    assert "6 perplexity, everything quantized" in printed
    assert "Return the" in printed
    assert len(list(tmp_path.glob("*/bundle/manifest.json"))) == 1


def test_notebook_is_kept_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) == 7
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]
