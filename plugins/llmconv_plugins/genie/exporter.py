"""Writes a bundle's `genie/`: the files that Genie loads on a device, in one flat folder to push."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llmconv import Bundle, BundleError, Registry
from llmconv.backends import Exporter, Progress, form_folder
from llmconv.bundle import folder_of
from llmconv.files import link, write_json
from llmconv_plugins.genie.genie_config import CONFIG, EXTENSIONS, TOKENIZER


@dataclass(frozen=True)
class Genie(Exporter):
    """Genie's files in `genie/`; `genie-t2t-run -c genie_config.json` runs there."""

    name: ClassVar[str] = "genie"

    def export(self, bundle: Bundle, registry: Registry, progress: Progress) -> Path:
        """Link the binaries under flat names."""
        return lay_flat(bundle, self.name, (EXTENSIONS, TOKENIZER), progress)


def lay_flat(
    bundle: Bundle,
    name: str,
    files: Sequence[str],
    progress: Progress,
    changed: Callable[[dict[str, Any]], None] = lambda _config: None,
) -> Path:
    """Genie's configuration, the device's binaries and other files in a folder of the bundle's; adapters' in theirs.

    Args:
        name: of the folder.
        files: beside the configuration and the binaries.
        changed: changes the configuration.

    Raises:
        BundleError: the bundle has no files for Genie.
    """
    config = genie_config(bundle)
    binaries = config["dialog"]["engine"]["model"]["binary"]
    with form_folder(bundle, name) as folder:
        for file in (*binaries["ctx-bins"], *files):
            progress("link", file)
            link(bundle.path(file), folder / Path(file).name)
        for file in adapter_files(bundle):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            link(bundle.path(file), folder / file)
        binaries["ctx-bins"] = [Path(file).name for file in binaries["ctx-bins"]]
        changed(config)
        write_json(folder / CONFIG, config)
    return bundle.folder / name


def adapter_files(bundle: Bundle) -> list[str]:
    """The files from which Genie fills the inputs of the bundle's adapters, in the folders that it looks in."""
    folders = tuple(f"{folder_of(adapter)}/" for adapter in bundle.adapters)
    return [file for file in bundle.manifest["files"] if file.startswith(folders)] if folders else []


def genie_config(bundle: Bundle) -> dict[str, Any]:
    """The bundle's genie_config.json.

    Raises:
        BundleError: it has none, or one that is damaged.
    """
    if CONFIG not in bundle.manifest["files"]:
        reason = bundle.report.get("genie", "it has no binaries; convert with backend qnn")
        raise BundleError(f"{bundle.folder}: no {CONFIG} ({reason})")
    try:
        config: dict[str, Any] = json.loads(bundle.path(CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{bundle.folder / CONFIG}: damaged ({error}); convert again") from error
    return config
