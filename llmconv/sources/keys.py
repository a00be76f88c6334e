"""The keys of a checkpoint's JSON file, each checked when it is asked for, and remembered to have been."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmconv.errors import CheckpointError
from llmconv.files import check_no_pointer


@dataclass(frozen=True)
class Keys:
    """The keys of a file such as config.json, or of a table inside it.

    Attributes:
        defaults: values of keys that the file leaves out.
        asked: keys that were asked for: whoever reads the file knows them.

    Raises:
        CheckpointError: a key is missing or of another type; the message names the file, the key and the value.
    """

    path: Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file.

        Raises:
            CheckpointError: it is missing, or no table of keys.
        """
        check_no_pointer(path)
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

    def get(self, key: str, default: Any = None) -> Any:
        """Whatever stands there, or by default does where the key is left out; null counts as nothing."""
        self.asked.add(key)
        value = self.values[key] if key in self.values else self.defaults.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            bound = f" above {least - 1}" if least else ""
            raise CheckpointError(f"{self.path}: {key} must be a whole number{bound}, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        return self._number(key, self.get(key, default))

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{self.path}: {key} must be a number, not {value!r}")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        return self._positive(key, self.get(key, default))

    def optional(self, key: str) -> float | None:
        """A number above 0, or None where there is none."""
        value = self.get(key)
        return None if value is None else self._positive(key, value)

    def _positive(self, key: str, value: Any) -> float:
        number = self._number(key, value)
        if not 0 < number < math.inf:
            raise CheckpointError(f"{self.path}: {key} must be a number above 0, not {value!r}")
        return number

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of so many numbers above 0."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
            raise CheckpointError(f"{self.path}: {key} must be a list of {count} numbers, not {shown}")
        return [self._positive(key, x) for x in value]

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} must be true or false, not {value!r}")
        return value

    def table(self, key: str) -> Keys:
        """A table inside; an empty one where there is none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: {key} must be a table, not {value!r}")
        return Keys(self.path, value)

    def unsupported(self, key: str) -> CheckpointError:
        """The error for a key whose value asks for what the source does not compute."""
        return CheckpointError(f"{self.path}: {key} = {self.get(key)!r} is not implemented")
