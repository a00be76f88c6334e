"""Which weight gets which grid and which quantizer: a rule for each role, and lines of a recipe that override it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from pydantic import ConfigDict

from llmconv.errors import PassError

Bits = Literal[4, 8]
Columns = Literal[0, 16, 32, 64, 128]


@dataclass(frozen=True)
class Rule:
    """What becomes of a weight.

    Attributes:
        bits: of its integers, which are symmetric.
        block: columns with a multiplier of the row's scale, of 4 bits alone; 0 where a row has one scale.
        quantizer: by name.
    """

    bits: Bits
    block: Columns
    quantizer: str


@dataclass(frozen=True)
class Line:
    """What a recipe says of the weights that a pattern matches; what it leaves out is as their role has it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # a misspelt key is no line

    bits: Bits | None = None
    block: Columns | None = None
    quantizer: str | None = None

    def over(self, rule: Rule) -> Rule:
        """The rule with what the line says."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        found = replace(rule, **said)
        return replace(found, block=0) if found.bits != 4 and self.block is None else found


@dataclass(frozen=True)
class SchemePreset:
    """Lines under a name, which recipes give instead of writing them; a recipe's own lines count after them.

    A subclass is a frozen dataclass and nothing but data.

    Attributes:
        name: the recipe's name of it.
        lines: name of a weight, or a pattern of names -> what overrides its role, as of `Scheme`.
    """

    name: ClassVar[str]
    lines: ClassVar[Mapping[str, Line]]


@dataclass(frozen=True)
class Scheme:
    """A table of rules.

    Attributes:
        roles: role -> rule.
        lines: name of a weight, or a pattern of names -> what overrides its role; of several, the last counts, but one
            that is the very name counts before any pattern.
        preset: whose lines come before these.
    """

    roles: Mapping[str, Rule]
    lines: Mapping[str, Line]
    preset: SchemePreset | None = None

    @property
    def all_lines(self) -> dict[str, Line]:
        """The preset's, then the recipe's own, which takes the place of one of the same pattern."""
        given = self.preset.lines if self.preset is not None else {}
        return {**{pattern: line for pattern, line in given.items() if pattern not in self.lines}, **self.lines}

    def rules(self, roles: Mapping[str, str], columns: Mapping[str, int]) -> dict[str, Rule]:
        """The rule of each weight.

        Args:
            roles: of each weight.
            columns: of each weight, for blocks.

        Raises:
            PassError: a line matches no weight, or blocks do not fit one.
        """
        found = {name: self._rule(name, self.roles[role]) for name, role in roles.items()}
        for pattern in self.all_lines:
            if not any(fnmatchcase(name, pattern) for name in roles):
                by = "weights" if pattern in self.lines or self.preset is None else f"scheme '{self.preset.name}'"
                raise PassError(f"{by} names {pattern!r}, which no convolution's weight matches")
        for name, rule in found.items():
            if rule.block and rule.bits != 4:
                raise PassError(
                    f"weight '{name}' is to have {rule.bits} bits in blocks, which QNN has for 4 bits alone"
                )
            if rule.block and columns[name] % rule.block:
                raise PassError(
                    f"weight '{name}' has {columns[name]} columns, which blocks of {rule.block} do not divide; "
                    f"choose another block for it"
                )
        return found

    def names_quantizer(self, name: str) -> bool:
        """Whether a line names the quantizer of a weight."""
        return self._line(name).quantizer is not None

    def _rule(self, name: str, rule: Rule) -> Rule:
        return self._line(name).over(rule)

    def _line(self, name: str) -> Line:
        lines = self.all_lines
        matching = [line for pattern, line in lines.items() if fnmatchcase(name, pattern)]
        return lines.get(name) or (matching[-1] if matching else Line())
