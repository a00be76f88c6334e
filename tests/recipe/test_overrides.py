"""Changes to a recipe's values before they are validated."""

from __future__ import annotations

from typing import Any

import pytest

from llmconv import RecipeError
from llmconv.recipe.overrides import override, quoted, substitute


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ("'quoted'", "quoted"),
        ("bare words", "bare words"),
        ("/a/path", "/a/path"),
        ("[1, 2]", [1, 2]),
        ("{a = 1}", {"a": 1}),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_toml_and_bare_words_are_strings(text: str, expected: object) -> None:
    values: dict[str, Any] = {}
    override(values, [f"section.key={text}"])
    assert values == {"section": {"key": expected}}


@pytest.mark.parametrize(
    "name", ["bad\x01name", "it's", "a'''b'", 'say "no"', "back\\slash", "two\nlines", "del\x7f", "ü 好"]
)
def test_a_quoted_text_is_read_back_whichever_characters_it_holds(name: str) -> None:
    values: dict[str, object] = {}
    override(values, [f"output.folder={quoted(name)}"])
    assert values == {"output": {"folder": name}}


def test_top_level_key() -> None:
    values: dict[str, Any] = {"name": "old"}
    override(values, ["name=new"])
    assert values == {"name": "new"}


def test_later_assignment_wins_and_the_rest_stays() -> None:
    values: dict[str, Any] = {"graphs": {"prompt": {"ar": 4, "context": 8}}}
    override(values, ["graphs.prompt.ar=1", "graphs.prompt.ar=2"])
    assert values == {"graphs": {"prompt": {"ar": 2, "context": 8}}}


def test_pass_is_addressed_by_its_name() -> None:
    values: dict[str, Any] = {"passes": [{"name": "first"}, {"name": "second", "bits": {"a": 4}}]}
    override(values, ["passes.second.option=1", "passes.second.bits.b=8"])
    assert values["passes"] == [{"name": "first"}, {"name": "second", "option": 1, "bits": {"a": 4, "b": 8}}]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("no equals sign", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("a..b=3", "write it as section.key=value"),
        ("target.name.more=3", "'target.name' is a value, not a section"),
        ("passes.secnd.option=1", "the recipe has no pass 'secnd'; did you mean 'second'?"),
        ("passes.second=1", "passes.NAME.option=value"),
    ],
)
def test_assignment_that_cannot_be_made(assignment: str, expected: str) -> None:
    values: dict[str, Any] = {"target": {"name": "SM8550"}, "passes": [{"name": "second"}]}
    with pytest.raises(RecipeError) as caught:
        override(values, [assignment])
    assert str(caught.value).startswith(f"--set {assignment}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variables_are_substituted_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "there")
    values = {"a": "${HERE}/x/${HERE}", "b": [{"c": "${HERE}"}], "d": 3, "e": "$HERE"}
    expected = {"a": "there/x/there", "b": [{"c": "there"}], "d": 3, "e": "$HERE"}
    assert substitute(values, "") == expected


def test_variable_that_is_not_set_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(RecipeError, match=r"^passes\[1\]\.text: environment variable NOWHERE is not set$"):
        substitute({"passes": [{}, {"text": "${NOWHERE}"}]}, "")
