"""What `import llmconv` gives, and what it does not load."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import llmconv


def stub_names() -> list[str]:
    stub = ast.parse(Path(llmconv.__file__).with_suffix(".pyi").read_text())
    return [
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def test_all_is_what_the_stub_names() -> None:
    assert sorted(llmconv.__all__) == sorted(stub_names())
    assert len(set(stub_names())) == len(stub_names())


@pytest.mark.parametrize("name", stub_names())
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(llmconv, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        own = found.__dict__.get("__doc__") if inspect.isclass(found) else found.__doc__
        assert own
        assert not own.startswith(f"{name}(")  # what a dataclass writes for a class without a docstring


def test_no_other_name() -> None:
    with pytest.raises(AttributeError):
        _ = llmconv.no_such_name


@pytest.mark.parametrize(
    "module", ["llmconv", "llmconv.errors", "llmconv.cli", "llmconv.recipe.recipe", "llmconv.recipe.shipped"]
)
def test_import_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_errors_are_one_tree() -> None:
    found = [getattr(llmconv, name) for name in stub_names() if name.endswith("Error")]
    assert len(found) == 11
    assert all(issubclass(error, llmconv.LlmconvError) for error in found)
