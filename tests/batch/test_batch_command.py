"""`llmconv batch` from its command line: shared work is done once, and nothing that is done is done again."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmconv.work.faults import KILL_AT
from llmconv.work.folder import work_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are not ended by signals there"),
]
TIMED = ("report.json", "report.html", ".steps")
PATIENCE = 120  # seconds
SETTINGS = ("--set", "backend.name=onnx", "--set", "verify.passes=false", "--allow-local-plugins")
COUNTING = '''
from dataclasses import dataclass
from pathlib import Path
from llmconv import hookimpl
from llmconv.quantization import Quantizer

@dataclass(frozen=True)
class Counting(Quantizer):
    """Rounds to nearest, and writes down that it did."""

    name = "counting"

    def quantize(self, weight, grid, inputs):
        with Path(__file__).with_name("quantized").open("a") as file:
            file.write(f"{tuple(weight.shape)}\\\\n")
        return grid.encode(weight, weight.abs().amax(dim=1) / grid.top)

@hookimpl
def register_quantizers():
    return [Counting]
'''.replace("\\\\n", "\\n")


@pytest.fixture
def folder(small_recipe: Path, tmp_path: Path) -> Path:
    """The small recipe with a quantizer that counts, and a matrix of two contexts."""
    shutil.copytree(small_recipe.parent, tmp_path, dirs_exist_ok=True)
    text = small_recipe.read_text().replace('quantizer = "gptq"', 'quantizer = "counting"')
    (tmp_path / small_recipe.name).write_text(f'plugins = ["counting.py"]\n{text}')
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "night.toml").write_text(f'recipes = ["{small_recipe.name}"]\ncontexts = [64, 128]\n')
    return tmp_path


NAMES = ["small-64", "small-128"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llmconv", *map(str, arguments), *SETTINGS]


def batch(folder: Path, *options: object, kill_at: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, KILL_AT: kill_at}
    arguments = command("batch", folder / "night.toml", "--output", folder / "out", *options)
    return subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)


def counted(folder: Path) -> int:
    file = folder / "quantized"
    return len(file.read_text().splitlines()) if file.exists() else 0


def results(folder: Path) -> list[dict[str, object]]:
    return list(json.loads((folder / "out" / "batch.json").read_text())["conversions"])


def when(folder: Path, name: str) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in (folder / "out" / name).rglob("*") if file.is_file()}


def alone(folder: Path, phone: str = "", context: int = 0) -> Path:
    """The same conversion by itself, by the same changes of its recipe."""
    changes = [f'target.name="{phone}"'] if phone else []
    changes += [f"graphs.{name}.context={context}" for name in ("prompt", "token") if context]
    sets = [argument for change in changes for argument in ("--set", change)]
    arguments = command("apply", folder / "small.toml", "--output", folder / "alone")
    subprocess.run([*arguments, *sets], capture_output=True, text=True, check=True)
    return folder / "alone"


def assert_same(one: Path, other: Path) -> None:
    files = [sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file()) for b in (one, other)]
    files = [[name for name in found if Path(name).parts[0] not in TIMED] for found in files]
    assert files[0] == files[1]
    assert filecmp.cmpfiles(one, other, files[0], shallow=False)[1:] == ([], [])


def test_weights_are_quantized_once_and_the_bundles_are_those_of_conversions_alone(folder: Path) -> None:
    with (folder / "night.toml").open("a") as matrix:
        matrix.write('targets = ["Galaxy S23 Ultra", "Galaxy S25"]\n')
    names = [f"small-galaxy_{phone}-{context}" for phone in ("s23_ultra", "s25") for context in (64, 128)]
    made = alone(folder, "Galaxy S25", 128)
    once = counted(folder)
    assert once > 10
    (folder / "quantized").unlink()
    first = batch(folder)
    assert first.returncode == 0, first.stderr
    assert counted(folder) == once
    assert [(r["name"], r["state"], r["figures"]["copied"]) for r in results(folder)] == [  # type: ignore[index]
        (name, "done", name != names[0]) for name in names
    ]
    assert_same(folder / "out" / names[-1], made)
    before = {name: when(folder, name) for name in names}
    again = batch(folder)
    assert again.returncode == 0
    assert "4 of 4 conversions are done." in again.stdout
    assert {name: when(folder, name) for name in names} == before
    assert counted(folder) == once


def test_only_what_failed_is_tried_again(folder: Path) -> None:
    (folder / "night.toml").write_text(
        'recipes = ["small.toml"]\n[checkpoints]\nmissing = "later"\nbase = "tiny_llama"'
    )
    first = batch(folder)
    assert first.returncode == 1
    assert "later" in first.stderr
    assert "1 of 2 conversions are done, 1 failed." in first.stdout
    missing, base = results(folder)
    assert (missing["state"], missing["tries"], base["state"], base["tries"]) == ("failed", 2, "done", 1)
    assert str(missing["error"]) in (folder / "out" / "small-missing.log").read_text()
    before = when(folder, "small-base")
    shutil.copytree(folder / "tiny_llama", folder / "later")
    again = batch(folder)
    assert again.returncode == 0, again.stdout
    assert when(folder, "small-base") == before


def test_a_conversion_that_is_killed_is_tried_again_and_goes_on(folder: Path) -> None:
    (folder / "night.toml").write_text('recipes = ["small.toml"]')
    done = batch(folder, kill_at="after calibrate_1_of_2")
    assert done.returncode == 0, done.stderr
    assert "small: its process was ended by SIGKILL" in done.stderr
    (result,) = results(folder)
    assert (result["state"], result["tries"]) == ("done", 2)
    times = counted(folder)
    alone(folder)
    assert times == counted(folder) - times
    assert_same(folder / "out" / "small", folder / "alone")


@contextmanager
def stopped(folder: Path, sent: signal.Signals) -> Iterator[subprocess.Popen[str]]:
    """A batch that gets a signal while its first conversion has one part quantized."""
    record = work_of(folder / "out" / NAMES[0]) / "bundle" / ".steps" / "calibrate_1_of_2.json"
    arguments = command("batch", folder / "night.toml", "--output", folder / "out")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + PATIENCE
        while not record.exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(sent)
        yield process


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["killed", "interrupted"])
def test_a_batch_that_is_stopped_goes_on(folder: Path, sent: signal.Signals, code: int) -> None:
    with stopped(folder, sent) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert [r["state"] for r in results(folder)] == ["waiting"] * 2
    again = batch(folder)  # at once: what the first has started is gone
    assert again.returncode == 0, again.stderr
    assert [r["tries"] for r in results(folder)] == [1] * 2
    times = counted(folder)
    made = alone(folder, context=64)
    assert times < 2 * (counted(folder) - times)
    assert_same(folder / "out" / NAMES[0], made)


def test_killed_between_two_conversions(folder: Path) -> None:
    killed = batch(folder, kill_at=f"batch {NAMES[1]}")
    assert killed.returncode == -signal.SIGKILL
    assert [r["state"] for r in results(folder)] == ["done", "waiting"]
    before, once = when(folder, NAMES[0]), counted(folder)
    assert batch(folder).returncode == 0
    assert when(folder, NAMES[0]) == before
    assert counted(folder) == once
