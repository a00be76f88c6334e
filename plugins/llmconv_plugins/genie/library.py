"""libGenie of the onnxruntime-qnn wheel: where it lies, and the JSON schemas of configurations inside it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from llmconv import BackendError

_NAMED = re.compile(rb'"\$id": "urn:genie:schema:\w+"')
DIALOG = "urn:genie:schema:dialog"


def library() -> Path:
    """The library.

    Raises:
        BackendError: the wheel is not installed, or holds none.
    """
    found = importlib.util.find_spec("onnxruntime_qnn")
    if found is None or found.origin is None:
        raise BackendError("Genie needs onnxruntime-qnn: pip install onnxruntime-qnn")
    path = Path(found.origin).with_name("Genie.dll" if sys.platform == "win32" else "libGenie.so")
    if not path.is_file():
        raise BackendError(f"{path}: missing; this release of onnxruntime-qnn brings no Genie")
    return path


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """Identifier -> JSON schema, each a text that ends in NUL, of the very version in use.

    Raises:
        BackendError: the library holds none.
    """
    content = library().read_bytes()
    texts = (
        content[content.rfind(b"\0", 0, found.start()) + 1 : content.find(b"\0", found.start())]
        for found in _NAMED.finditer(content)
    )
    parsed = [json.loads(text) for text in texts]
    if DIALOG not in (found := {schema["$id"]: schema for schema in parsed}):
        raise BackendError(f"{library()}: holds no schema '{DIALOG}' to check genie_config.json with")
    return found


def faults(config: dict[str, Any]) -> list[str]:
    """What Genie's schemas say is wrong with a genie_config.json; empty if nothing is."""
    from jsonschema import Draft7Validator  # noqa: PLC0415  0.1 s that listing runtimes should not pay
    from referencing import Registry, Resource  # noqa: PLC0415  likewise
    from referencing.jsonschema import DRAFT7  # noqa: PLC0415  likewise

    if list(config) != ["dialog"]:
        return [f"the file must hold 'dialog' alone, not {', '.join(config) or 'nothing'}"]
    registry: Registry[Any] = Registry().with_resources(
        (name, Resource.from_contents(schema, DRAFT7)) for name, schema in schemas().items()
    )
    errors = Draft7Validator(schemas()[DIALOG], registry=registry).iter_errors(config["dialog"])
    return [f"{'.'.join(['dialog', *map(str, error.absolute_path)])}: {error.message}" for error in errors]
