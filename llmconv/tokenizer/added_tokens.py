"""What the files beside a tokenizer add to it: tokens, and whether texts begin with BOS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from llmconv.errors import CheckpointError
from llmconv.files import check_no_pointer

CONFIG, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def added_tokens(folder: Path) -> dict[int, AddedToken]:
    """The tokens that tokenizer_config.json and added_tokens.json add, by id; what a role names is special.

    Raises:
        CheckpointError: a file is damaged.
    """
    found: dict[int, AddedToken] = {}
    named = set(named_tokens(folder).values())
    for content, i in read_table(folder / ADDED).items():
        if type(i) is not int or i < 0:
            raise CheckpointError(f"{folder / ADDED}: the id of {content!r} must be a whole number, not {i!r}")
        special = content in named or _looks_special(content)
        found[i] = AddedToken(content, special=special, normalized=not special)
    for i, token in (read_table(folder / CONFIG).get("added_tokens_decoder") or {}).items():
        try:
            flags = {flag: bool(token[flag]) for flag in _FLAGS if flag in token}
            found[int(i)] = AddedToken(str(token["content"]), **flags)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / CONFIG}: added_tokens_decoder.{i} is damaged") from error
    return found


def _looks_special(content: str) -> bool:
    """added_tokens.json has no flags; tokens that mark turns and ends are written so, words that were added are not."""
    return len(content) > 2 and content[0] + content[-1] in ("<>", "[]")


def named_tokens(folder: Path) -> dict[str, str]:
    """Strings of tokens by their role, such as `bos_token`, in special_tokens_map.json and tokenizer_config.json."""
    return {**roles(read_table(folder / SPECIAL)), **roles(read_table(folder / CONFIG))}


def roles(table: Mapping[str, Any]) -> dict[str, str]:
    """Strings of tokens by their role, in one file's keys."""
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in table.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def adds_bos(folder: Path, default: bool) -> bool:
    """Whether a text begins with BOS, as tokenizer_config.json says for a tokenizer without rules of its own."""
    given = read_table(folder / CONFIG).get("add_bos_token")
    return default if given is None else bool(given)


def read_table(file: Path) -> dict[str, Any]:
    """The keys of a file; none where it is not there.

    Raises:
        CheckpointError: it is no table of keys.
    """
    if not file.is_file():
        return {}
    check_no_pointer(file)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: not a table of keys in JSON ({error})") from error
