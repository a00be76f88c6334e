"""What a plan names, what executors are sent, what the progress says and what is resumed: the same steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

import llmconv
from llmconv import Recipe, Registry
from llmconv.work import Announce, Done, Local, Outcome, Task, Threads, Workers

SEEN: list[Task] = []
SAID: list[str] = []


class Noting(Workers):
    """Does tasks here, and notes them."""

    def run(
        self,
        tasks: Sequence[Task],
        announce: Announce = lambda _names: None,
        done: Done = lambda _task, _outcome: None,
    ) -> list[Outcome]:
        SEEN.extend(tasks)

        def say(names: list[str]) -> None:
            SAID.extend(names)
            announce(names)

        return Threads(1).run(tasks, say, done)


class NotingLocal(Local):
    name: ClassVar[str] = "local"

    @contextmanager
    def open(self, folder: Path, jobs: int | None) -> Iterator[Workers]:
        yield Noting()


@pytest.mark.slow
def test_one_list_of_steps(small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    SAID.clear()
    recipe = Recipe.load(small_recipe, [f"output.folder='{tmp_path / 'out'}'"])
    registry = Registry.load()
    create = Registry.create
    monkeypatch.setattr(
        Registry,
        "create",
        lambda self, kind, name, options: NotingLocal() if kind == "executor" else create(self, kind, name, options),
    )
    planned = {s.makes: s.memory for s in llmconv.plan(recipe, registry=registry).stages if s.makes}
    bundle = llmconv.apply(recipe, registry=registry, verify=False)
    assert {task.makes: task.memory for task in SEEN} == {(file,): memory for file, memory in planned.items()}
    assert dict.fromkeys(SAID) == dict.fromkeys(task.name for task in SEEN)
    records = [json.loads(f.read_text()) for f in (bundle.folder / ".steps").glob("qnn*.json")]
    assert {record["name"]: list(record["files"]) for record in records} == {file: [file] for file in planned}
    assert {binary["file"] for binary in bundle.manifest["binaries"]} == set(planned)
    for task in SEEN:  # what a worker elsewhere needs is named, and there
        assert all((bundle.folder / name).is_file() for name in task.reads)
        assert sum(name.endswith(".data") for name in task.reads) == 1
