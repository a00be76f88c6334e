"""One module alone uses what the AI Hub client does not document, and its version is bounded."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLUGINS = ROOT / "plugins" / "llmconv_plugins"
ALONE = PLUGINS / "ai_hub" / "client_internals.py"
DOCUMENTED = {"Client", "client"}


def private(source: str) -> Iterator[str]:
    """What a file takes of the client beyond `qai_hub` itself and what that documents."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("qai_hub."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qai_hub":
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "qai_hub" and node.attr not in DOCUMENTED:
            yield f"qai_hub.{node.attr}"


@pytest.mark.parametrize("file", sorted(PLUGINS.rglob("*.py")), ids=lambda f: str(f.relative_to(PLUGINS)))
def test_no_other_module_touches_the_clients_private_parts(file: Path) -> None:
    assert file == ALONE or not list(private(file.read_text(encoding="utf-8")))


def test_the_one_that_does_is_seen() -> None:
    assert {"qai_hub.public_rest_api.get_job", "qai_hub.util.session.create_session"} <= set(private(ALONE.read_text()))
    assert list(private("import qai_hub\nqai_hub.api_utils.auth_header")) == ["qai_hub.api_utils"]


def test_the_clients_version_has_an_upper_bound() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (client,) = (d for d in dependencies if d.startswith("qai-hub"))
    assert "<" in client
