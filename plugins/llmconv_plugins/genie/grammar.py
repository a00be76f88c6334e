"""What Genie needs to hold a text to a JSON schema: the schema and a tokenizer, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA, TOKENIZER = "schema.json", "bare_tokenizer.json"


def with_schema(config: dict[str, Any], schema: str, folder: Path) -> dict[str, Any]:
    """A configuration in which Genie writes nothing but what a JSON schema allows.

    Where the schema leaves one way to go on, Genie encodes that text and reads it at once. A tokenizer that puts a
    space before each text would put one there, which the schema refuses ("Grammar rejected jump-forward sequence"), so
    that the dialog is given one that does not; ids are read and written all the same.

    Args:
        folder: takes the files.
    """
    dialog = config["dialog"]
    own = Path(dialog["tokenizer"]["path"])
    (folder / SCHEMA).write_text(schema, encoding="utf-8")
    bare = _without_prefix(json.loads(own.read_text(encoding="utf-8")))
    (folder / TOKENIZER).write_text(json.dumps(bare, ensure_ascii=False), encoding="utf-8")
    grammar = {
        "backend": "xgrammar",
        "type": "json-schema",
        "file": str(folder / SCHEMA),
        "tokenizer-json": str(own),
    }
    context = {**dialog["context"], "grammar": grammar}
    tokenizer = {**dialog["tokenizer"], "path": str(folder / TOKENIZER)}
    return {"dialog": {**dialog, "context": context, "tokenizer": tokenizer}}


def _without_prefix(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that puts no space before a text."""
    steps = _steps(tokenizer.get("normalizer"), "normalizers")
    before = [
        {**step, "prepend_scheme": "never"} if step["type"] == "Metaspace" else step
        for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    ]
    kept = [step for step in steps if step["type"] != "Prepend"]
    return {
        **tokenizer,
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": before} if before else None,
    }


def _steps(entry: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """What a sequence holds, or the one step that stands alone."""
    if entry is None:
        return []
    return list(entry[key]) if entry["type"] == "Sequence" else [entry]
