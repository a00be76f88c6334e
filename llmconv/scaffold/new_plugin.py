"""Copies an example with its test, its pyproject.toml and its README, and gives everything in it another name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from llmconv.errors import LlmconvError

# kind -> the example that is one
EXAMPLES = {
    "pass": "scale_queries",
    "source": "npz_folder",
    "family": "nano_llama",
    "quantizer": "thrice_the_mean",
    "backend": "fused_onnx",
    "lowering": "fold_silu",
    "evaluator": "among_five",
    "onnx-pass": "positive_axes",
    "scheme": "more_bits",
    "observer": "watch_sizes",
    "recipes": "house_recipes",
}
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
WORKFLOW = Path(__file__).parent / "templates" / "test.yml"
_HERE = Path(__file__).parents[1]  # the package llmconv


def examples() -> Path:
    """Where they lie: inside the wheel, or beside the package in a checkout."""
    installed = _HERE / "shipped_examples"
    return installed if installed.is_dir() else _HERE.parent / "examples"


def new_plugin(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a plugin of a kind into `folder`/`name`; it installs, its test passes, and a recipe may name it.

    Args:
        kind: one of `EXAMPLES`.
        name: words with - or _ between them; the plugin's name in recipes, with _.

    Returns:
        The files.

    Raises:
        LlmconvError: the name cannot be one, or something lies there; nothing is written then.
    """
    words = _words(kind, name)
    target, partial = folder / name, folder / f".{name}.partial"
    if target.exists():
        raise LlmconvError(f"{target}: exists; choose another name, or remove it")
    if not folder.is_dir():
        raise LlmconvError(f"{folder}: no such folder; make it first")
    example = examples() / EXAMPLES[kind]
    shutil.rmtree(partial, ignore_errors=True)
    for file in sorted(f for f in example.rglob("*") if f.is_file() and "__pycache__" not in f.parts):
        copy = partial / _renamed(file.relative_to(example).as_posix(), words)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_renamed(file.read_text(encoding="utf-8"), words), encoding="utf-8")
    workflow = partial / ".github" / "workflows" / WORKFLOW.name
    workflow.parent.mkdir(parents=True)
    shutil.copyfile(WORKFLOW, workflow)
    partial.rename(target)
    return sorted(f for f in target.rglob("*") if f.is_file())


def _words(kind: str, name: str) -> dict[str, str]:
    """The example's names -> the plugin's: of modules, of distributions, of classes."""
    if not NAME.fullmatch(name):
        raise LlmconvError(f"'{name}': a plugin's name is of lower-case words with - or _ between them, as my-{kind}")
    old, new = EXAMPLES[kind], name.replace("-", "_")
    found = {old: new, old.replace("_", "-"): new.replace("_", "-"), _class(old): _class(new)}
    module = examples() / EXAMPLES[kind] / f"llmconv_{EXAMPLES[kind]}.py"
    taken = {word for word in re.findall(r"\w+", module.read_text(encoding="utf-8")) if word not in found}
    if clash := next((word for word in found.values() if word in taken), None):
        raise LlmconvError(f"'{name}': the module has a '{clash}' already; choose another name")
    return found


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _renamed(text: str, words: dict[str, str]) -> str:
    """All at once, so that a new name is never taken for an old one."""
    return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], text)
