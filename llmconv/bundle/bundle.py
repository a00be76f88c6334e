"""The output folder: written beside its place, moved there whole, and read back through its manifest."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmconv.bundle.specs import GraphSpec, graph_from_dict
from llmconv.errors import BundleError
from llmconv.files import digest, stays_inside, write_json
from llmconv.sources.model_config import ModelConfig
from llmconv.sources.rope import Rope
from llmconv.sources.sampling import Sampling
from llmconv.work.steps import STEPS

MANIFEST = "manifest.json"
REPORT = "report.json"
PAGE = "report.html"  # the report for people
CARD = "README.md"  # for whoever receives the bundle
RECIPE = "recipe.toml"  # as it was read, where it was a text
SOURCE = "source"  # folder of the checkpoint's small files
EVALUATION = "evaluation.txt"  # held-out text
ROPE = "rope.safetensors"  # cos and sin, which the host fills
CHOSEN = "chosen.safetensors"  # what passes found on calibration text, where they did
FORMAT = 2


class Bundle:
    """A finished bundle; of several chipsets, as the first has it, until `for_target` says another.

    Args:
        adapter: which of its adapters runtimes are to switch on; the model as it is by default.

    Raises:
        BundleError: the folder is no bundle, or of a format that this version does not read.
    """

    def __init__(self, folder: Path | str, adapter: str | None = None) -> None:
        folder = Path(folder)
        self.folder, self.adapter = folder, adapter
        self._own = ""  # folder of the files that the target has in the place of the bundle's
        try:
            self.manifest: dict[str, Any] = dict(json.loads((folder / MANIFEST).read_text()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"{folder}: not a bundle (no {MANIFEST}); give the output folder of 'llmconv apply'"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(f"{folder / MANIFEST}: damaged ({error}); convert again") from error
        if self.manifest.get("format") != FORMAT:
            raise BundleError(
                f"{folder}: bundle format {self.manifest.get('format')}; this version reads {FORMAT}; convert again, "
                "or use the llmconv that made it"
            )
        if adapter is not None and adapter not in self.adapters:
            had = f"it has {', '.join(self.adapters)}" if self.adapters else "it has none; see model.switchable"
            raise BundleError(f"{folder}: no adapter '{adapter}' to switch on; {had}")

    @cached_property
    def config(self) -> ModelConfig:
        """The model's sizes, as they were converted.

        Raises:
            BundleError: the manifest is damaged.
        """
        try:
            values = dict(self.manifest["config"])
            values["sampling"] = Sampling(**values.get("sampling", {}))
            ropes = (Rope(rope["theta"], tuple(rope["frequencies"]), rope["factor"]) for rope in values["ropes"])
            return ModelConfig(**{**values, "eos": tuple(values["eos"]), "ropes": tuple(ropes)})
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{self.folder / MANIFEST}: damaged ({error}); convert again") from error

    @cached_property
    def graphs(self) -> dict[str, GraphSpec]:
        """The graphs by name."""
        return {g["name"]: graph_from_dict(g) for g in self.manifest["graphs"]}

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that runtimes can switch on."""
        return list(self.manifest.get("adapters", []))

    @property
    def targets(self) -> list[dict[str, Any]]:
        """The chipsets that it is for, as the manifest has them."""
        return list(self.manifest.get("targets", [self.manifest["target"]]))

    @property
    def binaries(self) -> list[dict[str, Any]]:
        """What its target loads, and what a simulator does in that one's place."""
        model = self.manifest["target"]["model"]
        return [b for b in self.manifest["binaries"] if model in b.get("targets", (model,))]

    @property
    def twins(self) -> dict[str, str]:
        """Of each graph of a part that a simulator runs for the target: its name -> the file of its binary."""
        return {b["graphs"][0]: b["file"] for b in self.binaries if b["simulator"]}

    def for_target(self, model: str) -> Bundle:
        """The bundle as one of its chipsets has it: with its binaries, and its own files in the place of the bundle's.

        Args:
            model: the chipset's part number.

        Raises:
            BundleError: it is for others.
        """
        found = next((target for target in self.targets if target["model"] == model), None)
        if found is None:
            names = " and ".join(f"{target['name']} ({target['model']})" for target in self.targets)
            raise BundleError(f"{self.folder}: made for {names}, not for {model}; convert for it")
        seen = copy.copy(self)
        seen.manifest = {**self.manifest, "target": found}
        seen._own = found.get("folder", "")
        return seen

    def simulated(self) -> list[Bundle]:
        """The bundle as those of its chipsets have it that a simulator tells apart."""
        found: dict[tuple[str, ...], Bundle] = {}
        for target in self.targets:
            seen = self.for_target(target["model"])
            found.setdefault(tuple(seen.twins.values()), seen)
        return list(found.values())

    def path(self, file: str) -> Path:
        """A file of the bundle, by its name in the manifest; the target's own, where that has one.

        Raises:
            BundleError: it is missing, or the name leads out of the bundle.
        """
        own = self.folder / self._own / file
        path = own if self._own and own.is_file() else self.folder / file
        if not stays_inside(file):
            raise BundleError(f"{self.folder / MANIFEST}: names '{file}', which is outside the bundle; convert again")
        if not path.is_file():
            raise BundleError(f"{path}: missing; convert again")
        return path

    @property
    def report(self) -> dict[str, Any]:
        """Times, sizes and proof, as last written."""
        path = self.folder / REPORT
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def write_report(self, report: dict[str, Any]) -> None:
        """Replace the report."""
        write_json(self.folder / REPORT, report)

    def check_files(self) -> None:
        """Compare every file with the manifest.

        Raises:
            BundleError: a file is missing or differs.
        """
        for name, entry in self.manifest["files"].items():
            if digest(self.path(name)) != entry["sha256"]:
                raise BundleError(f"{self.folder / name}: differs from the manifest; convert again")


def list_files(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """Every file below a folder with its size and sha256, but for the manifest, both reports and the steps' records.

    Args:
        known: sha256 of files that have been hashed already.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, REPORT, PAGE))
    files = [p for p in files if p.parent.name != STEPS]
    named = {f.relative_to(folder).as_posix(): f for f in files}
    return {name: {"bytes": f.stat().st_size, "sha256": known.get(name) or digest(f)} for name, f in named.items()}


def check_output(folder: Path, force: bool) -> None:
    """Whether a bundle may be written here.

    Raises:
        BundleError: the folder holds something, and `force` was not given; or holds something that is no bundle.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BundleError(f"{there}: is a file; choose another output folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise BundleError(f"{folder}: not empty; choose another --output or pass --force to replace it")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder}: holds something that is no bundle, which --force does not replace; remove it yourself"
        )
