"""What an exporter plugin does: give a finished bundle another runtime's form, from the same weights and encodings."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmconv.backends.backend import Progress
from llmconv.bundle.bundle import Bundle
from llmconv.plugins.frame import Framed

if TYPE_CHECKING:
    from llmconv.plugins.registry import Registry


@dataclass(frozen=True)
class Exporter(Framed, ABC):
    """Writes another form of a bundle. A subclass is a frozen dataclass; its fields are options."""

    name: ClassVar[str]

    @abstractmethod
    def export(self, bundle: Bundle, registry: Registry, progress: Progress) -> Path:
        """Write the form into a folder of its own in the bundle's, and give that folder.

        Raises:
            LlmconvError: the bundle cannot have this form, or something is not installed.
        """


@contextmanager
def form_folder(bundle: Bundle, name: str) -> Iterator[Path]:
    """A folder to write a form into, which becomes the bundle's `name` when the block ends without an error."""
    work, folder = bundle.folder / f".{name}.partial", bundle.folder / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
