"""How Genie on the simulator chooses tokens and ends texts, and what it keeps of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from genie_app import dialog_of, said_to

from llmconv import Bundle, Registry, Sampling
from llmconv.chat.session import open_session
from llmconv.decoding import Dialog, stream_text, until
from llmconv.errors import BackendError
from llmconv.sources import Rope
from llmconv_plugins.genie.genie_config import CONFIG, TOKENIZER, GenieModel, device_config
from llmconv_plugins.genie.grammar import with_schema
from llmconv_plugins.genie.library import faults
from llmconv_plugins.runtimes.genie import GenieRuntime
from llmconv_plugins.runtimes.simulator import QnnSimulator

BOS, EOS = 1, 2
SHORT = [BOS, 483, 267]  # "Return the"
PROMPT = [BOS, 500, 500, 346, 500, 500, 719, 323]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["read", "write"]}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


def on_both(bundle: Bundle, sampling: Sampling, turns: Sequence[Sequence[int]], limit: int) -> list[list[list[int]]]:
    """What Genie and the `qnn` runtime write in each turn; the latter is given what Genie puts between two."""

    def answers(dialog: Dialog, between: list[int]) -> list[list[int]]:
        return [list(dialog.query([*(between if i else []), *turn], limit)) for i, turn in enumerate(turns)]

    with GenieRuntime().dialog(bundle, sampling, (EOS,)) as genie:
        found = answers(genie, [])
    with QnnSimulator().dialog(bundle, sampling, (EOS,)) as qnn:
        return [found, answers(qnn, [EOS])]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 1}, {"temperature": 2.0, "top_p": 0.0}])
def test_a_penalty_gives_the_ids_of_the_qnn_runtime(small_bundle: Bundle, sampling: dict[str, Any]) -> None:
    turns = [SHORT, [600]]
    plain, _ = on_both(small_bundle, Sampling(**sampling), turns, 10)
    genie, qnn = on_both(small_bundle, Sampling(**sampling, repetition_penalty=1.5), turns, 10)
    assert genie == qnn != plain


@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="Genie of QAIRT 2.51; where it is right, what docs/genie.md says of penalties can go",
)
def test_a_logit_that_a_penalty_takes_below_the_range_stays_small(small_bundle: Bundle) -> None:
    genie, qnn = on_both(small_bundle, Sampling(repetition_penalty=8.0), [PROMPT], 8)
    assert genie == qnn


def test_rewound_dialogs_write_what_those_of_the_qnn_runtime_do(small_bundle: Bundle) -> None:
    def answers(dialog: Dialog, kept: int) -> list[list[int]]:
        first = list(dialog.query(PROMPT, 6))
        text = [*[*PROMPT, *first][:kept], 900, 901]
        dialog.reset()
        assert list(dialog.query(PROMPT, 6)) == first
        known = dialog.rewind(text)
        assert known == dialog.length == kept
        return [first, list(dialog.query(text[known:], 6))]

    with (
        GenieRuntime().dialog(small_bundle, Sampling(), (EOS,)) as genie,
        QnnSimulator().dialog(small_bundle, Sampling(), (EOS,)) as qnn,
    ):
        for kept in (len(PROMPT) + 5, len(PROMPT) + 3, 3):
            assert answers(genie, kept) == answers(qnn, kept)
            assert genie.length == qnn.length + 1 == kept + 2 + 6 + 1
            assert list(genie.query([5], 3)) == list(qnn.query([EOS, 5], 3))
            assert genie.rewind([900, 901]) == genie.length == 0
            first = list(genie.query(PROMPT, 2))
            assert genie.rewind([*PROMPT, *first, 900]) == genie.length == 0  # the last of them is not read yet
            assert qnn.rewind([900, 901]) == qnn.length == 0


def test_stops_in_genies_configuration_end_a_text_as_those_of_the_host_do(small_bundle: Bundle, tmp_path: Path) -> None:
    def text(dialog: dict[str, Any]) -> str:
        (found,), _ = said_to(dialog, tmp_path, ["text", "Return the", 12])
        return str(found["text"])

    whole = text(dialog_of(small_bundle))
    assert len(whole) > 12
    stops = [whole[7:9], whole[-3:]]
    found = text(dialog_of(small_bundle) | {"stop-sequence": stops})
    assert found == "".join(until(iter(whole), stops)) == whole[: min(whole.index(stop) for stop in stops)]


def test_stops_of_the_recipe_are_in_genies_configuration() -> None:
    model = GenieModel((128,), 2048, BOS, (EOS,), 64, (Rope.plain(10000.0, 64),), Sampling(), ("\nUser:",))
    config = device_config(model, ["part.bin"])
    assert config["dialog"]["stop-sequence"] == ["\nUser:"]
    assert not faults(config)


def test_a_saved_dialog_goes_on_where_it_was(small_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    calls = (
        ["ids", PROMPT, 6],
        ["save", str(folder)],
        ["ids", [900], 6],
        ["reset"],
        ["ids", [900], 6],
        ["restore", str(folder)],
        ["ids", [900], 6],
        ["restore", str(tmp_path / "nowhere")],
    )
    said, _ = said_to(dialog_of(small_bundle), tmp_path, *calls)
    assert [step["status"] for step in said] == [0, 0, 0, 0, 0, 0, 0, -6]
    assert said[2]["ids"] == said[6]["ids"] != said[4]["ids"]


@pytest.mark.slow
def test_json_out_of_a_model(tiny_bundle: Bundle) -> None:
    registry = Registry.load()
    sampling = Sampling(schema=json.dumps(SCHEMA))
    with open_session(tiny_bundle, "genie", sampling, registry) as session:
        ids = [*session.tokenizer.begin, *session.tokenizer.encode("Return a dict: ")]
        for turn in (ids, session.tokenizer.encode("Another: ")):
            text = "".join(stream_text(session.tokenizer, [], session.dialog.query(turn, 60)))
            found = json.loads(text)
            assert found.keys() == {"name", "ok"}
            assert found["name"] in ("read", "write")
            assert isinstance(found["ok"], bool)
            assert session.dialog.reason == "end of text"
    with pytest.raises(BackendError, match="runtime 'onnxruntime' holds no text to a JSON schema; take 'genie'"):
        open_session(tiny_bundle, "onnxruntime", sampling, registry).__enter__()


def test_genie_refuses_a_schema_in_one_line(small_bundle: Bundle) -> None:
    with (
        pytest.raises(BackendError, match=r"^Genie: .*schema") as caught,
        GenieRuntime().dialog(small_bundle, Sampling(schema='{"type": "nothing"}'), (EOS,)),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_schemas_tokenizer_puts_no_space_before_a_text(small_bundle: Bundle, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    config = json.loads(small_bundle.path(CONFIG).read_text())
    config["dialog"]["tokenizer"]["path"] = str(small_bundle.path(TOKENIZER))
    changed = with_schema(config, "{}", tmp_path)
    assert not faults(changed)
    own, bare = (tokenizers.Tokenizer.from_file(c["dialog"]["tokenizer"]["path"]) for c in (config, changed))
    assert own.decode(own.encode("ead", add_special_tokens=False).ids) == " ead"
    assert bare.decode(bare.encode("ead", add_special_tokens=False).ids) == "ead"
