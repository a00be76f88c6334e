"""Which plugins are loaded, what a recipe may ask of them, and what `llmconv plugins` says of each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pluggy
import pytest

import llmconv.plugins.registry
from llmconv import PluginError, Recipe, RecipeError, Registry, hookimpl
from llmconv.cli import main
from llmconv.plugins import hooks
from llmconv.plugins.api import API_VERSION
from llmconv.plugins.listing import listed
from llmconv.recipe.requires import require_installed

LOCAL = '''
from dataclasses import dataclass

from llmconv import hookimpl
from llmconv.passes import Pass


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing.

    Attributes:
        often: how many times.
    """

    name = "nothing"
    often: int = 1

    def run(self, model, context):
        return False


@hookimpl
def register_passes():
    return [Nothing]
'''


class Entry:
    """An entry point of a module that is there, or that fails."""

    def __init__(self, distribution: str, found: object) -> None:
        self.name, self.found, self.value = distribution, found, distribution
        self.dist = SimpleNamespace(name=distribution, version="1.0")

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def module(**attributes: object) -> ModuleType:
    made = ModuleType("third_party")
    made.register_passes = hookimpl(lambda: [])  # type: ignore[attr-defined]
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def replace(**found: object) -> None:
        entries = [Entry(name.replace("_", "-"), what) for name, what in found.items()]
        monkeypatch.setattr(llmconv.plugins.registry, "entry_points", lambda group: entries)

    return replace


@pytest.mark.parametrize(
    ("named", "loaded", "off"),
    [
        (None, ["llmconv", "my-a", "my-b"], []),
        ("", ["llmconv"], ["my-a", "my-b"]),
        ("My_A", ["llmconv", "my-a"], ["my-b"]),
    ],
)
def test_environment_selects(
    named: str | None,
    loaded: Sequence[str],
    off: Sequence[str],
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(my_b=module(), llmconv=module(), my_a=module())
    if named is not None:
        monkeypatch.setenv("LLMCONV_PLUGINS", named)
    registry = Registry.load()
    assert [one.distribution for one in registry.loaded] == [f"{name} 1.0" for name in loaded]
    assert registry.off == [f"{name} 1.0" for name in off]
    assert [one.distribution for one in listed(registry) if one.state == "off"] == off


def test_environment_that_names_what_is_not_installed(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(llmconv=module())
    monkeypatch.setenv("LLMCONV_PLUGINS", "no-such-plugin")
    with pytest.raises(PluginError, match="LLMCONV_PLUGINS: 'no-such-plugin' is not installed; pip install"):
        Registry.load()


def test_broken_ones_are_listed_with_the_reason(install: Callable[..., None]) -> None:
    install(
        bad=ImportError("no module named 'scipy'"), old=module(llmconv_api="<1.0"), good=module(llmconv_api=">=1.0,<2")
    )
    bad, good, old = listed(Registry.load())
    assert (bad.state, bad.broken) == ("broken", {"bad": "ImportError: no module named 'scipy'"})
    assert (good.distribution, good.version, good.state) == ("good", "1.0", "loaded")
    assert old.broken == {
        "old": f"asks for plugin API <1.0, and this llmconv has {API_VERSION}; install a version of it that fits"
    }


@pytest.mark.parametrize("asked", ["about 1", 1, ">=x"])
def test_a_range_that_is_none_is_refused(asked: object) -> None:
    with pytest.raises(PluginError, match=r"llmconv_api = .* is no range of versions; write one as '>=1\.0,<2'"):
        Registry.of(module(llmconv_api=asked))


def test_a_deprecated_hook_still_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By pluggy's own means, so that a plugin learns it where its tests load it."""

    class Hooks:
        @pluggy.HookspecMarker("llmconv")(warn_on_impl=DeprecationWarning("register_passes goes in 2.0"))
        def register_passes(self) -> Any: ...

    monkeypatch.setattr(llmconv.plugins.registry, "hooks", Hooks)
    with pytest.warns(DeprecationWarning, match=r"register_passes goes in 2\.0"):
        registry = Registry.of(module())
    assert registry.of_kind("pass") == {}
    assert not any(getattr(vars(hooks)[name], "llmconv_spec", {}).get("warn_on_impl") for name in vars(hooks))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"pluggy": ">=1.5", "llmconv": ">=0.1,<1"}, None),
        ({"pluggy": ">=99"}, r"requires\.pluggy: 1\..* is installed, not >=99; pip install 'pluggy>=99'"),
        ({"no-such-plugin": "==1"}, r"requires\.no-such-plugin: is not installed; pip install 'no-such-plugin==1'"),
        ({"pluggy": "new"}, r"requires\.pluggy: 'new' is no range of versions; write one as '>=1\.0,<2'"),
    ],
)
def test_what_a_recipe_requires(asked: dict[str, str], said: str | None) -> None:
    if said is None:
        require_installed(asked)
    else:
        with pytest.raises(RecipeError, match=said):
            require_installed(asked)


def test_requirements_are_checked_as_a_recipe_is_read(small_recipe: Path) -> None:
    with pytest.raises(RecipeError, match="pip install 'no-such-plugin>=2'"):
        Recipe.load(small_recipe, ["requires.no-such-plugin='>=2'"])


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmconv", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


def test_files_of_a_recipe_run_only_where_that_is_allowed(small_recipe: Path, tmp_path: Path, run: Run) -> None:
    text = small_recipe.read_text().replace('"tiny_llama', f'"{small_recipe.parent}/tiny_llama')
    first = text.index("[[passes]]")
    mine = tmp_path / "mine.toml"
    mine.write_text(
        f'plugins = ["./my_pass.py"]\n{text[:first]}[[passes]]\nname = "nothing"\noften = 2\n\n{text[first:]}'
    )
    (tmp_path / "my_pass.py").write_text(f"{LOCAL}\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    code, _, err = run("recipe", "check", mine)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: plugins: {tmp_path / 'my_pass.py'} would run with all your rights; "
        "pass --allow-local-plugins if you trust it, or install it as a plugin"
    )
    assert not (tmp_path / "ran").exists()
    code, out, _ = run("recipe", "check", mine, "--allow-local-plugins")
    assert (code, "7 passes; nothing wrong found" in out) == (0, True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such Python file"),
        ("import frobnicate\n", "cannot be loaded: ModuleNotFoundError: No module named 'frobnicate'"),
        ("x = 1\n", "brings nothing; decorate its register_ functions"),
    ],
)
def test_a_file_that_is_no_plugin_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    with pytest.raises(PluginError, match=rf"plugin .*mine\.py.*{said}"):
        Registry().add_file(tmp_path / "mine.py")


def test_plugins_lists_options_with_defaults_and_help(tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine.py").write_text(LOCAL)
    registry = Registry()
    registry.add_file(tmp_path / "mine.py")
    (one,) = listed(registry)
    (thing,) = one.to_dict()["brings"]
    assert (thing["kind"], thing["name"], thing["about"]) == ("pass", "nothing", "Changes nothing.")
    (option,) = thing["options"]
    assert option == {"name": "often", "type": "integer", "required": False, "default": 1, "help": "how many times."}
    code, out, _ = run("plugins", "--json")
    assert code == 0
    (own,) = (one for one in json.loads(out) if one["distribution"] == "llmconv")
    assert {"pass", "source", "backend", "family", "lowering", "chipset"} <= {thing["kind"] for thing in own["brings"]}
    assert own["state"] == "loaded"
