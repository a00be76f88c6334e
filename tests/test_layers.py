"""Rules over the source text: imports point one way, files stay short, nothing prints but the command line."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import llmconv
import llmconv.cores
import llmconv.files
import llmconv.heap
import llmconv.target

CORE = Path(llmconv.__file__).parent
PLUGINS = CORE.parent / "plugins" / "llmconv_plugins"
TESTS = CORE.parent / "tests"

# From the ground up: a room imports from rows below its own, and within its row from itself alone.
ROWS = """
errors
cores files heap naming quantities
target encodings
plugins tokenizer weights
work
sources recipe scaffold
graph
decoding
passes bundle
quantization
lowering runtimes
backends chat
report prepare
evaluation planning
proof choosing doctor
apply_recipe
batch testing
cli
__main__
"""
ROW_OF = {room: index for index, row in enumerate(ROWS.strip().splitlines()) for room in row.split()}


def files(root: Path) -> list[Path]:
    return sorted(f for f in root.rglob("*.py*") if f.suffix in (".py", ".pyi") and "__pycache__" not in f.parts)


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
            assert node.level == (file.suffix == ".pyi"), f"{file}: stubs import relatively, from their room"
            base = f"{module_of(file)}." if node.level else ""
            yield from (f"{base}{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """The room of a module or of a name in it; a name of `llmconv` itself has none."""
    return [*name.split("."), ""][1]


CORE_FILES, PLUGIN_FILES = files(CORE), files(PLUGINS)


def ids(found: list[Path]) -> list[str]:
    return [module_of(f) for f in found]


def test_files_are_found() -> None:
    assert {"llmconv.graph.trace", "llmconv.cli"} <= set(ids(CORE_FILES))
    assert "llmconv_plugins.passes.w4a16" in ids(PLUGIN_FILES)


@pytest.mark.parametrize("file", CORE_FILES, ids=ids(CORE_FILES))
def test_core_imports_no_plugin_and_points_down(file: Path) -> None:
    own = room(module_of(file))
    for name in imports(file):
        assert not name.startswith("llmconv_plugins")
        if name.startswith("llmconv.") and room(name) != own:
            assert own == "" or ROW_OF[room(name)] < ROW_OF[own], f"{module_of(file)} imports {name}"


def test_every_room_has_a_row_and_every_row_is_there() -> None:
    assert set(ROW_OF) == {room(name) for name in ids(CORE_FILES)} - {""}


def test_rows_would_show_a_violation() -> None:
    assert ROW_OF[room("llmconv.graph.edit")] < ROW_OF[room("llmconv.decoding.decoder.Decoder")]
    assert ROW_OF[room("llmconv.errors.PassError")] < ROW_OF[room("llmconv.cli.main")]


PUBLIC = [
    importlib.import_module(".".join(stub.relative_to(CORE.parent).parent.parts))
    for stub in sorted(CORE.rglob("__init__.pyi"))
] + [llmconv.cores, llmconv.files, llmconv.heap, llmconv.target]


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=ids(PLUGIN_FILES))
def test_plugins_import_what_llmconv_exports(file: Path) -> None:
    exported = {f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__}
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


def test_no_module_imports_itself_through_others() -> None:
    modules = {module_of(file): file for file in CORE_FILES + PLUGIN_FILES if file.suffix == ".py"}
    stubs = sorted(CORE.rglob("__init__.pyi"))
    home = {f"{module_of(s)}.{name.rpartition('.')[2]}": name.rpartition(".")[0] for s in stubs for name in imports(s)}

    def imported(name: str) -> str:
        name = home.get(name, name)  # from a room, which loads the module when the name is asked for
        return name if name in modules else name.rpartition(".")[0]

    below = {module: {imported(name) for name in imports(file)} - {module} for module, file in modules.items()}
    TopologicalSorter(below).prepare()  # raises a CycleError that names the circle


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by name alone, and a run of both stops at the second."""
    names = Counter(file.name for file in TESTS.rglob("*.py") if file.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_test_imports_a_conftest() -> None:
    """There are several, and which one is found depends on what else is collected."""
    assert [
        file.name for file in TESTS.rglob("*.py") if re.search(r"^(from|import) conftest\b", file.read_text(), re.M)
    ] == []
