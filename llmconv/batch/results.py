"""What has become of each conversion of a matrix: `batch.json`, in which a run that was killed finds it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmconv.batch.matrix import Member
from llmconv.bundle.bundle import Bundle
from llmconv.files import write_json

RESULTS = "batch.json"
State = Literal["waiting", "done", "failed"]


class Figures(BaseModel):
    """Of a bundle, from its manifest and report.

    Attributes:
        weights: bytes, scales included.
        files: bytes of all files.
        copied: whether its quantized weights are those of another conversion.
        proof: how many of its checks hold, and how many there are; None where it was not proved.
        perplexity: of held-out text, by what is quantized.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: int
    weights: int
    files: int
    copied: bool
    proof: tuple[int, int] | None
    perplexity: dict[str, float]

    @classmethod
    def of(cls, bundle: Bundle) -> Figures:
        """Those of a finished bundle."""
        report = bundle.report
        parts, counted = report.get("parts", []), [check["passed"] for check in report.get("proof", [])]
        held = [passed for passed in counted if passed is not None]
        return cls(
            parts=len(parts),
            weights=sum(part["weight_bytes"] for part in parts),
            files=sum(file["bytes"] for file in bundle.manifest["files"].values()),
            copied=any(name.startswith("calibrate_") for name in report.get("copied", [])),
            proof=(sum(held), len(held)) if proved(bundle) else None,
            perplexity=report.get("perplexity", {}),
        )


def proved(bundle: Bundle) -> bool:
    """Whether its proof has run, whatever came of it."""
    return "proof" in bundle.report


class Result(BaseModel):
    """Of one conversion.

    Attributes:
        axes: key of the matrix -> what it gives.
        tries: of the run that did it.
        seconds: of the last of these; None where none was measured.
        error: in a line, where it failed.
        figures: where its bundle is there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    axes: dict[str, str]
    state: State = "waiting"
    tries: int = 0
    seconds: float | None = None
    error: str | None = None
    figures: Figures | None = None


class Results(BaseModel):
    """Of all, in the matrix's order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    matrix: str
    llmconv: str = Field(default_factory=lambda: version("llmconv"))
    conversions: list[Result]

    def write(self, folder: Path) -> None:
        """Into the folder of all bundles, whole."""
        write_json(folder / RESULTS, self.model_dump(mode="json"))

    def having(self, result: Result) -> Results:
        """With another result of a conversion."""
        return self.model_copy(
            update={"conversions": [result if r.name == result.name else r for r in self.conversions]}
        )


def begun(matrix: str, members: Sequence[Member], folder: Path) -> Results:
    """Results of which an earlier run may have left some; a file that is damaged has left none."""
    known: dict[str, Any] = {}
    try:
        read = Results.model_validate(json.loads((folder / RESULTS).read_text(encoding="utf-8")))
        known = {result.name: result for result in read.conversions}
    except (OSError, ValueError):
        pass
    results = [known.get(m.name, Result(name=m.name, axes=m.axes)).model_copy(update={"axes": m.axes}) for m in members]
    return Results(matrix=matrix, conversions=results)
