"""Rules over the source text: imports point one way, files stay short, nothing prints but the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmconv

CORE = Path(llmconv.__file__).parent
PLUGINS = CORE.parent / "plugins" / "llmconv_plugins"

# From the ground up: a module imports from rows below its own, and within its row from its own package alone.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "llmconv",
        "llmconv.errors",
        "llmconv.naming",
        "llmconv.files",
        "llmconv.identity",
        "llmconv.machine",
        "llmconv.hookspecs",
        "llmconv.planning.quantities",
    ),
    ("llmconv.plugins", "llmconv.processes", "llmconv.steps"),
    ("llmconv.recipe", "llmconv.checkpoint"),
    ("llmconv.graph",),
    ("llmconv.decoding",),
    ("llmconv.quantization", "llmconv.passes", "llmconv.lowering", "llmconv.bundle"),
    ("llmconv.checks", "llmconv.testing", "llmconv.chat", "llmconv.graph_specs"),
    ("llmconv.backend",),
    ("llmconv.report",),
    ("llmconv.prepare",),
    ("llmconv.bundle_graphs",),
    ("llmconv.exporter",),
    ("llmconv.proof", "llmconv.planning"),
    ("llmconv.conversion",),
    ("llmconv.cli",),
    ("llmconv.__main__",),
)


def files(root: Path) -> list[Path]:
    return sorted(f for f in root.rglob("*.py") if "__pycache__" not in f.parts)


def module_of(file: Path) -> str:
    parts = file.relative_to(CORE.parent if file.is_relative_to(CORE) else PLUGINS.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run, wherever they stand."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from statements(node)


def imports(file: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, or of the names where they may be modules."""
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def row(name: str) -> tuple[int, str]:
    """The row of a module or of a name in it, and the entry that covers it."""
    found = [(len(e), i, e) for i, layer in enumerate(LAYERS) for e in layer if name == e or name.startswith(f"{e}.")]
    _, index, entry = max(found)
    return index, entry


def package(name: str) -> str:
    return ".".join(name.split(".")[:2])


CORE_FILES, PLUGIN_FILES = files(CORE), files(PLUGINS)


def ids(found: list[Path]) -> list[str]:
    return [module_of(f) for f in found]


def test_files_are_found() -> None:
    assert {"llmconv.graph.trace", "llmconv.cli"} <= set(ids(CORE_FILES))
    assert "llmconv_plugins.passes.w4a16" in ids(PLUGIN_FILES)


@pytest.mark.parametrize("file", CORE_FILES, ids=ids(CORE_FILES))
def test_core_imports_no_plugin_and_points_down(file: Path) -> None:
    own, here = row(module_of(file)), module_of(file)
    for name in imports(file):
        assert not name.startswith("llmconv_plugins")
        if name.split(".")[0] != "llmconv":
            continue
        index, entry = row(name)
        assert index < own[0] or (index == own[0] and package(name) == package(here)), (
            f"{here} ({own[1]}) imports {name} ({entry})"
        )


def test_layers_name_what_there_is() -> None:
    known = {*ids(CORE_FILES), *(package(m) for m in ids(CORE_FILES))}
    assert {entry for layer in LAYERS for entry in layer} <= known


def test_layers_would_show_a_violation() -> None:
    assert row("llmconv.graph.edit")[0] < row("llmconv.decoding.evaluate.evaluate")[0]
    assert row("llmconv.errors.PassError")[0] < row("llmconv.cli.main")[0]


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=ids(PLUGIN_FILES))
def test_plugins_import_what_llmconv_exports(file: Path) -> None:
    exported = {f"llmconv.{name}" for name in llmconv.__all__}
    found = {name for name in imports(file) if name.split(".")[0] == "llmconv"}
    assert found <= exported


@pytest.mark.parametrize("file", CORE_FILES + PLUGIN_FILES, ids=ids(CORE_FILES + PLUGIN_FILES))
def test_files_are_short_quiet_and_well_named(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert file.stem not in {"utils", "util", "helpers", "common", "misc"}
    if not file.is_relative_to(CORE / "cli"):
        calls = [n.func for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
        assert not [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
