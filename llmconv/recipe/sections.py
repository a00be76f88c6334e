"""The sections of a recipe, but for its graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from llmconv.recipe.section import Section

AdapterName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # and a folder's


class ModelSection(Section):
    """Where the checkpoint lies, and which source reads it.

    Attributes:
        source: the plugin that reads the checkpoint; by default the one that knows what lies there.
        checkpoint: its folder or its file; `package:DISTRIBUTION/PATH` for one inside an installed package;
            `hub:ORG/NAME` for one on Hugging Face, with `/FILE` for one GGUF file of several and `@REVISION`.
        adapter: a PEFT folder to merge, or several with weights: `{ "a" = 0.7, "b" = 0.3 }`.
        switchable: PEFT folders by name, that a runtime switches between; pass `lora_inputs` makes them inputs.
        options: the source's own.
    """

    source: str | None = None
    checkpoint: Path
    adapter: Path | dict[Path, float] | None = None
    switchable: dict[AdapterName, Path] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def adapters(self) -> dict[Path, float]:
        """Folder -> weight."""
        return self.adapter if isinstance(self.adapter, dict) else {} if self.adapter is None else {self.adapter: 1.0}

    def source_options(self, checkpoint: Path) -> dict[str, Any]:
        """What a source is made with, its checkpoint having been located."""
        merged = {str(folder): weight for folder, weight in self.adapters.items()}
        apart = {name: str(folder) for name, folder in self.switchable.items()}
        given = {"adapters": merged, "switchable": apart}
        return {"checkpoint": checkpoint, **{key: value for key, value in given.items() if value}, **self.options}


class TargetSection(Section):
    """What the parts are for.

    Attributes:
        name: a chipset, its part number, or a device that carries it; a list for binaries for each in one bundle.
    """

    name: str | Annotated[list[str], Field(min_length=1)]

    @field_validator("name", mode="before")
    @classmethod
    def _one_or_several(cls, name: Any) -> Any:
        if isinstance(name, str) or (isinstance(name, list) and name and all(isinstance(one, str) for one in name)):
            return name
        raise ValueError(f"write a name, or a list of names, not {json.dumps(name)}")

    @property
    def names(self) -> list[str]:
        """Each."""
        return [self.name] if isinstance(self.name, str) else self.name


class Named(Section):
    """A plugin by name; all other keys are its options.

    Attributes:
        name: of the plugin; all other keys are its options.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key but the name."""
        return dict(self.model_extra or {})


class PassEntry(Named):
    """One pass of the recipe, in its place."""


class OnnxPassEntry(Named):
    """One pass over the ONNX of each part, in its place."""


class BackendSection(Named):
    """The backend that builds the parts."""


class CalibrationSection(Section):
    """Text whose activations choose the ranges.

    Attributes:
        text: `shipped:PATH` for one that comes with llmconv; documents, separated by a line that holds a form feed; one
            that begins with `User: ` is a conversation, whose turns begin with `User: ` and `Assistant: `.
        samples: how many windows; each starts as the tokenizer starts texts, with BOS or without.
        tokens: of each window.
        control_tokens: whether the string of a control token in the text means the token.
        chat: whether half of a chat model's samples are the text's conversations, or else its paragraphs as such, in
            its chat template.
    """

    text: Path
    samples: int = Field(default=16, ge=1)
    tokens: int = Field(default=128, ge=2)
    control_tokens: bool = True
    chat: bool = True


class ChatSection(Section):
    """How a conversation becomes the text that the model was trained on.

    Attributes:
        template: in Jinja; by default the checkpoint's own.
        stop: texts at which an answer ends, without them.
        length: ids of a conversation at most, more than the context: behind that the oldest are forgotten one by one.
        sinks: how many of the first ids are not forgotten.
    """

    template: str | None = None
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    length: int | None = Field(default=None, ge=2)
    sinks: int = Field(default=4, ge=0)


class VerifySection(Section):
    """How the conversion proves itself.

    Attributes:
        passes: compare after each pass, and prove the bundle.
        text: held-out text for perplexity, or `shipped:PATH`.
    """

    passes: bool = True
    text: Path | None = None


class ExecutorSection(Named):
    """Who does the heavy work; the same files come out whoever it is.

    Attributes:
        name: of the executor.
    """

    name: str = "local"


class OutputSection(Section):
    """Where the bundle goes.

    Attributes:
        folder: by default `build/<recipe>` in the current folder.
    """

    folder: Path | None = None
