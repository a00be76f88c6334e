"""What an editor makes of a recipe: a TOML language server reads the schema, completes, explains and checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from llmconv import Registry
from llmconv.recipe import shipped
from llmconv.recipe.schema import json_schema

TRIES = 200
FIRST_LINE = "#:schema ./llmconv.schema.json\n"  # as docs/editors.md has it
RECIPE = f"""{FIRST_LINE}
[model]
checkpoint = "somewhere"

[target]
name = "SM8550"

[graphs.token]
ar = 1
context = 64

[[passes]]
name = "w4a16"

[backend]
name = "qnn"
"""


@pytest.fixture(scope="module")
def tombi() -> str:
    beside = Path(sys.executable).with_name("tombi")
    found = str(beside) if beside.is_file() else shutil.which("tombi")
    if found is None:
        if "CI" in os.environ:
            pytest.fail("tombi is not installed: pip install tombi")
        pytest.skip("tombi is not installed: pip install tombi")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the schema that `llmconv recipe schema` prints."""
    made = tmp_path_factory.mktemp("editor")
    (made / "llmconv.schema.json").write_text(json.dumps(json_schema(Registry.load())))
    return made


@dataclass
class Server:
    """A language server, as an editor talks with it: JSON-RPC over its input and output."""

    incoming: IO[bytes]
    outgoing: IO[bytes]
    asked: list[str] = field(default_factory=list)

    def send(self, message: dict[str, Any]) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.outgoing.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self.outgoing.flush()

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """The answer; what the server asks meanwhile is answered with nothing."""
        self.asked.append(method)
        number = len(self.asked)
        self.send({"id": number, "method": method, "params": params})
        while True:
            message = self._receive()
            if "method" not in message and message.get("id") == number:
                return message["result"]
            if "method" in message and "id" in message:
                self.send({"id": message["id"], "result": None})

    def _receive(self) -> Any:
        length = 0
        while line := self.incoming.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the server ended"
        return json.loads(self.incoming.read(length))


@contextmanager
def opened(tombi: str, file: Path, text: str) -> Iterator[Server]:
    file.write_text(text)
    command = [tombi, "lsp", "--offline"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(file.parent / "cache")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        server = Server(process.stdout, process.stdin)
        root = file.parent.as_uri()
        folders = [{"uri": root, "name": "recipes"}]
        server.ask("initialize", {"processId": None, "rootUri": root, "capabilities": {}, "workspaceFolders": folders})
        server.send({"method": "initialized", "params": {}})
        document = {"uri": file.as_uri(), "languageId": "toml", "version": 1, "text": text}
        server.send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        try:
            yield server
        finally:
            process.kill()


def completed(tombi: str, folder: Path, before: str, typed: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """What is offered behind typed text, which stands behind a line of the recipe, by label; with what is wanted."""
    head, _, tail = RECIPE.partition(before)
    text = f"{head}{before}\n{typed}{tail}"
    place = {"line": text[: text.index(f"\n{typed}", len(head)) + 1].count("\n"), "character": len(typed)}
    file = folder / "recipe.toml"
    found: dict[str, dict[str, Any]] = {}
    with opened(tombi, file, text) as server:
        for _ in range(TRIES):  # until the server has read the document and its schema, it offers less
            answer = server.ask("textDocument/completion", {"textDocument": {"uri": file.as_uri()}, "position": place})
            items = answer["items"] if isinstance(answer, dict) else answer or []
            found = {item["label"].strip('"'): item for item in items}
            if wanted <= set(found):
                break
            time.sleep(0.1)
    assert wanted <= set(found)
    return found


def test_options_of_the_pass_that_is_named_are_completed_with_their_meaning(tombi: str, folder: Path) -> None:
    found = completed(tombi, folder, 'name = "w4a16"', "", {"quantizer", "block", "kv_range", "weights"})
    assert not {"parts", "seed", "name", "checkpoint"} & set(found)  # of others, or there already
    assert "LPBQ" in found["block"]["documentation"]["value"]


def test_options_of_the_backend_are_completed(tombi: str, folder: Path) -> None:
    found = completed(tombi, folder, 'name = "qnn"', "", {"twins", "optimization"})
    assert "device" not in found  # of the backend qnn_ai_hub


def test_keys_of_a_section_and_values_are_completed(tombi: str, folder: Path) -> None:
    keys = completed(tombi, folder, 'checkpoint = "somewhere"', "", {"source", "adapter", "options"})
    assert not {"block", "twins", "name"} & set(keys)
    values = completed(tombi, folder, 'name = "w4a16"', "kv_range =", {"min-max", "percentile", "mse"})
    assert len(values) == 3


def lint(tombi: str, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "checked.toml").write_text(text)
    command = [tombi, "lint", "--offline", "checked.toml"]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)


def test_wrong_words_are_marked(tombi: str, folder: Path) -> None:
    assert lint(tombi, folder, RECIPE).returncode == 0
    for right, wrong in (("context =", "contxt ="), ('"w4a16"', '"w4a16"\nblock = 5'), ('"qnn"', '"qnn"\nparts = 2')):
        assert lint(tombi, folder, RECIPE.replace(right, wrong)).returncode != 0


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_recipes_hold_by_the_schema(tombi: str, folder: Path, name: str) -> None:
    text = (shipped.folder() / f"{name}.toml").read_text()
    done = lint(tombi, folder, FIRST_LINE + text)
    assert done.returncode == 0, done.stdout + done.stderr


def test_documented_first_line_is_the_one_tried() -> None:
    assert f"```toml\n{FIRST_LINE}```" in (Path(__file__).parents[2] / "docs" / "editors.md").read_text()
