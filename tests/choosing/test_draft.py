"""A recipe on its way: TOML that says what its sections say."""

from __future__ import annotations

import tomllib

from llmconv.choosing import Draft, Line, Section

DRAFT = Draft(
    "weights of 4 bits",
    (
        Section("", (Line("name", "x"),)),
        Section("model", (Line("checkpoint", 'C:\\a "b" # c', "licence: mit"),)),
        Section("graphs.token", (Line("ar", 1), Line("context", 64, "as asked"))),
        Section("passes", (Line("name", "split"), Line("parts", 1))),
        Section("passes", (Line("name", "round"), Line("weights", {"*.up.weight": {"block": 0}}), Line("on", True))),
    ),
    ("a note",),
    "Model",
)


def test_what_is_written_is_read_again() -> None:
    assert tomllib.loads(str(DRAFT)) == {
        "name": "x",
        "model": {"checkpoint": 'C:\\a "b" # c'},
        "graphs": {"token": {"ar": 1, "context": 64}},
        "passes": [
            {"name": "split", "parts": 1},
            {"name": "round", "weights": {"*.up.weight": {"block": 0}}, "on": True},
        ],
    }


def test_reasons_and_notes_are_comments() -> None:
    lines = str(DRAFT).splitlines()
    assert lines[0] == "# Model: token 1 of 64, weights of 4 bits."
    assert "# a note." in lines
    assert "context = 64 # as asked" in lines


def test_a_value_is_changed_where_set_would_change_it() -> None:
    changed = DRAFT.changed("passes.split.parts", 3, "as few as fit")
    assert tomllib.loads(str(changed))["passes"][0] == {"name": "split", "parts": 3}
    assert ("passes.split.parts", 3, "as few as fit") in list(changed.choices())
    assert str(changed.changed("passes.split.parts", 1, "")) == str(DRAFT)
