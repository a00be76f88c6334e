"""What a plugin's class must be, checked when it is registered."""

from __future__ import annotations

from pathlib import Path

BASES = {
    "pass": "llmconv.passes.Pass",
    "source": "llmconv.sources.Source",
    "quantizer": "llmconv.quantization.Quantizer",
    "backend": "llmconv.backends.Backend",
    "runtime": "llmconv.runtimes.Runtime",
    "exporter": "llmconv.backends.Exporter",
    "executor": "llmconv.work.Executor",
    "evaluator": "llmconv.evaluation.Evaluator",
    "chooser": "llmconv.choosing.Chooser",
    "onnx_pass": "llmconv.lowering.OnnxPass",
    "scheme": "llmconv.quantization.SchemePreset",
}


def lacks(plugin: object, kind: str) -> str | None:
    """What a class lacks to be a plugin of a kind, said after its name, or None.

    It derives from the kind's base, is a frozen dataclass, and defines what its bases leave open: abstract methods, and
    class variables that have no value.
    """
    if not isinstance(plugin, type):
        return "is not a class"
    if kind in BASES and BASES[kind] not in map(_public_name, plugin.__mro__):  # by name: importing it may import torch
        return f"does not derive from {BASES[kind]}"
    parameters = vars(plugin).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        return "is not decorated with @dataclass(frozen=True)"
    missing = [name for name in _class_variables(plugin) if not hasattr(plugin, name)]
    missing += [f"{name}()" for name in sorted(getattr(plugin, "__abstractmethods__", ()))]
    if missing:
        return f"does not define {', '.join(missing)}"
    return None if isinstance(getattr(plugin, "name", None), str) else "has a name that is not a string"


def lacks_of_family(family: object) -> str | None:
    """What a class lacks to be a family, said after its name, or None."""
    if not isinstance(family, type) or "llmconv.sources.Family" not in map(_public_name, family.__mro__):
        return "does not derive from llmconv.sources.Family"
    types = getattr(family, "types", None)
    if not isinstance(types, tuple) or not types or not all(isinstance(kind, str) for kind in types):
        return 'has no types, a tuple such as ("llama",)'
    return None


def lacks_of_observer(observer: object) -> str | None:
    """What a class lacks to be an observer, said after its name, or None."""
    derives = isinstance(observer, type) and "llmconv.passes.Observer" in map(_public_name, observer.__mro__)
    return None if derives else "does not derive from llmconv.passes.Observer"


def lacks_of_folder(folder: object) -> str | None:
    """What something lacks to be a folder of recipes, said after its name, or None."""
    if not isinstance(folder, Path):
        return "is not a pathlib.Path"
    return None if any(folder.glob("*.toml")) else "is no folder that holds recipes, .toml files"


def _public_name(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[0]}.{cls.__qualname__}"


def _class_variables(plugin: type) -> list[str]:
    annotations = {n: str(a) for c in reversed(plugin.__mro__) for n, a in vars(c).get("__annotations__", {}).items()}
    return [name for name, annotation in annotations.items() if "ClassVar[" in annotation]
