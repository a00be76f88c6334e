"""What `llmconv doctor` finds, says and ends with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from llmconv import BackendError, Registry, hookimpl
from llmconv.cli import main
from llmconv.doctor import Finding
from llmconv.doctor import recipes as recipes_of
from llmconv.doctor.examine import examine
from llmconv.doctor.packages import packages
from llmconv.doctor.recipes import recipes
from llmconv.work import machine


def lacking() -> Iterator[Finding]:
    yield Finding("gauge", "3 of 4")
    yield Finding("widget", "not installed", "missing", "pip install widget")


def failing() -> Iterator[Finding]:
    yield Finding("before", "there")
    raise ValueError("odd")


def refusing() -> Iterator[Finding]:
    raise BackendError("no such thing; install it")
    yield


def registry(*checkups: object) -> Registry:
    @hookimpl
    def register_checkups() -> list[object]:
        return list(checkups)

    return Registry.of(SimpleNamespace(__name__="llmconv_looking", register_checkups=register_checkups))


def run(patch: pytest.MonkeyPatch, found: Registry, *options: str) -> int:
    patch.setattr(Registry, "load", lambda *_names: found)
    patch.setattr("llmconv.doctor.examine.recipes", lambda _registry: [])
    patch.setattr(sys, "argv", ["llmconv", "doctor", *options])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_packages_as_asked_for() -> None:
    assert list(packages(["numpy>=1.26", "onnx"], [])) == [Finding("packages", "2 as asked for")]


def test_packages_that_are_missing_or_old() -> None:
    asked = ["numpy>=1.26", "numpy>=9000; python_version >= '3'", "no-such-package<2", "ghost; sys_platform == 'beos'"]
    assert list(packages(asked, [])) == [
        Finding("numpy", f"{version('numpy')}, not >=9000", "missing", "pip install 'numpy>=9000'"),
        Finding("no-such-package", "not installed", "missing", "pip install 'no-such-package<2'"),
    ]


def test_extras_are_optional() -> None:
    asked = ["numpy", 'onnx>=1; extra == "a"', 'ghost; extra == "b"', 'llmconv[a]; extra == "c"']
    assert list(packages(asked, ["a", "b", "c"]))[1:] == [
        Finding("extra a", "installed"),
        Finding("extra b", "without ghost", "optional", "pip install 'llmconv[b]'"),
        Finding("extra c", "installed"),
    ]


def test_this_installation_has_what_it_asks_for() -> None:
    assert not [found for found in packages() if found.state == "missing"]


def test_a_recipe_whose_checkpoint_is_here_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes_of.shipped, "names", lambda: ["llama2_7b_chat", "tiny_llama"])
    tiny, others = recipes(Registry.load())
    assert (tiny.what, tiny.state, tiny.found.startswith("memory ≈ ")) == ("recipe tiny_llama", "ok", True)
    assert (others.what, others.state, others.found.split(",")[0]) == ("other recipes", "ok", "1")
    monkeypatch.setattr(machine, "memory_at_hand", lambda: 1000)
    tiny = next(iter(recipes(Registry.load())))
    assert (tiny.state, "of memory, 0.00 MB are at hand" in tiny.found) == ("missing", True)


def test_a_checkup_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmconv.doctor.examine.recipes", lambda _registry: [])
    looked: list[str] = []
    found = examine(registry(failing, refusing, lacking), looked.append)
    assert looked[3:] == [f"checkup {name} of llmconv_looking" for name in ("failing", "refusing", "lacking")]
    assert [(one.what, one.state) for one in found[-5:]] == [
        ("before", "ok"),
        ("checkup failing of llmconv_looking", "optional"),
        ("checkup refusing of llmconv_looking", "optional"),
        ("gauge", "ok"),
        ("widget", "missing"),
    ]
    assert "ValueError: odd" in found[-4].found
    assert "no such thing; install it" in found[-3].found


def test_what_is_missing_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, registry(lacking)) == 2
    said = capsys.readouterr().out
    assert "MISSING" in said
    assert "widget: pip install widget" in said.splitlines()


def test_nothing_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, registry(failing)) == 0
    assert "nothing is missing" in capsys.readouterr().err


def test_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, registry(lacking), "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found[0]["what"] == "Python"
    assert found[-1] == {
        "what": "widget",
        "found": "not installed",
        "state": "missing",
        "remedy": "pip install widget",
    }
