"""A plugin that is one Python file of a recipe's, which nobody has installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from llmconv.errors import PluginError
from llmconv.plugins.frame import ANYTHING, blame


def module_of_file(file: Path) -> ModuleType:
    """Run a Python file as a module of its own.

    Raises:
        PluginError: there is none, or it fails.
    """
    name = f"llmconv_local_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise PluginError(f"plugin {file}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names of annotations
    try:
        spec.loader.exec_module(module)
    except ANYTHING as error:
        del sys.modules[name]
        raise PluginError(f"plugin {file} cannot be loaded: {blame(name, error)}") from error
    return module
