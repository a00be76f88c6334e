"""What a backend or a lowering of a plugin does wrong is one line that names it, and leaves no bundle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from llmconv import BackendError, Bundle, LlmconvError, Recipe, Registry, apply, hookimpl
from llmconv.backends import Backend, BuildJob, BuildResult
from llmconv.bundle import Check
from llmconv.target import Chipset

SHORT = ("graphs.prompt.ar=8", "graphs.prompt.context=32", "graphs.token.context=32")


@dataclass(frozen=True)
class Bad(Backend):
    """Lowers, and does one thing wrong."""

    name: ClassVar[str] = "bad"
    runtimes: ClassVar[tuple[str, ...]] = ()
    wrong: str = ""

    def check(self, chipset: Chipset) -> None:
        if self.wrong == "check":
            raise FileNotFoundError("/opt/sdk")

    def build(self, job: BuildJob) -> BuildResult:
        (job.folder / "half.bin").write_bytes(b"123")
        if self.wrong == "build":
            raise RuntimeError("compiler crashed")
        if self.wrong == "refuses":
            raise BackendError("no licence; ask for one")
        if self.wrong == "outside":
            (job.folder / "x" / "y.bin").write_bytes(b"")
        job.lower()
        return BuildResult()

    def prove(self, bundle: Bundle) -> list[Check]:
        return 1 / 0 if self.wrong == "proof" else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Misspelt(Bad):
    """Names a runtime that there is not."""

    name: ClassVar[str] = "misspelt"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxrt",)


class Plugin:
    @hookimpl
    def register_backends(self) -> list[type[Backend]]:
        return [Bad, Misspelt]


def said_of(recipe: Path, folder: Path, backend: str, *changes: str) -> str:
    """The one line that a conversion with the backend ends with."""
    registry = Registry.load()
    registry.add("broken-dist 1.0", Plugin())
    text = re.sub(r"\[\[passes\]\]\nname = \"w4a16\".*?\n\n", "", recipe.read_text(), flags=re.DOTALL)
    output = f"output.folder='{folder / 'out'}'"
    given = Recipe.loads(text, "mine", recipe.parent, [*SHORT, output, *changes], backend=backend)
    with pytest.raises(LlmconvError) as caught:
        apply(given, registry=registry, verify=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HERE = r"\(.*test_broken_backends\.py:\d+\)"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("check", rf"^Bad\.check failed: FileNotFoundError: /opt/sdk {HERE}$"),
        ("build", rf"^Bad\.build failed: RuntimeError: compiler crashed {HERE}$"),
        ("refuses", r"^no licence; ask for one$"),
        ("outside", rf"^Bad\.build failed: FileNotFoundError: .*y\.bin' {HERE}$"),
    ],
)
def test_a_backend_that_fails_leaves_no_bundle(wrong: str, said: str, small_recipe: Path, tmp_path: Path) -> None:
    assert re.search(said, said_of(small_recipe, tmp_path, "bad", f"backend.wrong={wrong}"))
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_there_is_not_is_said_before_any_work(small_recipe: Path, tmp_path: Path) -> None:
    said = said_of(small_recipe, tmp_path, "misspelt")
    assert said.startswith("no runtime named 'onnxrt'; did you mean 'onnxruntime'?")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("proof", rf"^Bad\.prove failed: ZeroDivisionError: division by zero {HERE}$"),
        ("no checks", r"Bad\.prove.*NoneType"),
    ],
)
def test_a_proof_that_fails_is_the_backends(wrong: str, said: str, small_recipe: Path, tmp_path: Path) -> None:
    assert re.search(said, said_of(small_recipe, tmp_path, "bad", f"backend.wrong='{wrong}'"))
