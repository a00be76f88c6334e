"""What a checkpoint folder says about its licence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FILE = re.compile(r"(licen[cs]e|use[-_ ]?policy|notice|copying)", re.IGNORECASE)  # how their names begin
_ENTRY = re.compile(r"^(license|license_name|license_link):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
README = "README.md"
_HEAD = 1 << 16  # bytes of a README in which its front matter ends


@dataclass(frozen=True)
class Licence:
    """A checkpoint's licence, as far as its folder tells.

    Attributes:
        name: as the front matter of README.md has it, e.g. "llama2".
        link: likewise, where the text is.
        files: the text, and limits on use.
    """

    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()


def licence_files(names: Sequence[str]) -> list[str]:
    """Of a folder's files, those that say something of the licence."""
    return [name for name in names if _FILE.match(name) or name == README]


def licence_of(checkpoint: Path) -> Licence:
    """Read what LICENSE*, USE_POLICY*, NOTICE* and README.md in a checkpoint's folder, or beside its file, say."""
    checkpoint = checkpoint if checkpoint.is_dir() else checkpoint.parent
    files = tuple(sorted(f for f in checkpoint.iterdir() if f.is_file() and _FILE.match(f.name)))
    entries = _front_matter(checkpoint / README)
    name = entries.get("license_name") or entries.get("license")
    return Licence(name, entries.get("license_link"), files)


def _front_matter(readme: Path) -> dict[str, str]:
    if not readme.is_file():
        return {}
    with readme.open(encoding="utf-8", errors="replace") as file:
        before, _, rest = file.read(_HEAD).partition("---\n")
    block, closed, _ = rest.partition("\n---")
    if before.strip("\ufeff \n") or not closed:
        return {}
    return {key: value.strip("'\"") for key, value in _ENTRY.findall(block)}
