"""What else Genie can do on the simulator when its configuration is changed by hand, as docs/genie.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from genie_app import dialog_of, said_to

from llmconv import Bundle

IDS = [1, *(300 + 7 * i % 200 for i in range(20))]


@pytest.fixture
def basic(small_bundle: Bundle, tmp_path: Path) -> dict[str, Any]:
    """What the bundle's own configuration gives."""
    text, ids = said_to(dialog_of(small_bundle), tmp_path, ["text", "Return the", 12], ["reset"], ["ids", IDS, 40])[0][
        ::2
    ]
    return {**text, **ids}


def test_lookahead_decoding_writes_what_basic_dialogs_do_and_knows_no_limit(
    small_bundle: Bundle, tmp_path: Path, basic: dict[str, Any]
) -> None:
    dialog = dialog_of(small_bundle) | {"type": "lade", "lade": {"version": 1, "window": 4, "ngram": 3, "gcap": 4}}
    (found,), printed = said_to(dialog, tmp_path, ["ids", IDS, 40])
    assert found["ids"][:40] == basic["ids"]
    assert len(found["ids"]) > 40
    assert (found["status"], "Context Size was exceeded" in printed) == (4, True)


def test_a_draft_model_changes_no_text(small_bundle: Bundle, tmp_path: Path, basic: dict[str, Any]) -> None:
    target = dialog_of(small_bundle)
    engines = [{**target["engine"], "role": "target"}, {**dialog_of(small_bundle)["engine"], "role": "draft"}]
    dialog = target | {"type": "spd", "spd": {"version": 1, "draft-len": 3}, "engine": engines}
    text, ids = said_to(dialog, tmp_path, ["text", "Return the", 12], ["ids", IDS, 12])[0]
    assert (text["status"], text["text"]) == (0, basic["text"])
    assert (ids["status"], ids["ids"]) == (-6, [])  # it takes texts alone


def test_several_texts_at_once_need_graphs_for_as_many(small_bundle: Bundle, tmp_path: Path) -> None:
    config = dialog_of(small_bundle)
    (one,), _ = said_to(config, tmp_path, ["batch", ["Return the"], 8])
    (two,), _ = said_to(config, tmp_path, ["batch", ["Return the", "A"], 8])
    assert one["status"] == 0
    assert one["texts"][0]
    assert two == {"status": -6, "texts": ["", ""]}
