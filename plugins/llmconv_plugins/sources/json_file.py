"""A checkpoint's JSON file, each key checked when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv import CheckpointError


@dataclass(frozen=True)
class JsonFile:
    """The keys of a file such as config.json.

    Raises:
        CheckpointError: a key is missing or of another type; the message names the file, the key and the value.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> JsonFile:
        """Read a file.

        Raises:
            CheckpointError: it is missing, or no table of keys.
        """
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing; is the download complete?") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: not a table of keys; download it again")
        return cls(path, values)

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; null counts as absent."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            bound = f" above {least - 1}" if least else ""
            raise CheckpointError(f"{self.path}: {key} must be a whole number{bound}, not {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.path}: {key} must be a number, not {value!r}")
        return float(value)

    def unsupported(self, key: str) -> CheckpointError:
        """The error for a key whose value asks for what the source does not compute."""
        return CheckpointError(f"{self.path}: {key} = {self.values[key]!r} is not implemented by source 'llama'")
