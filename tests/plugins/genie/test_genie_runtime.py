"""Genie on the simulator: the ids of the qnn runtime, turns, limits, and one line for each way to fail."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmconv import BackendError, Bundle, BundleError, ContextFullError, Sampling
from llmconv.decoding import Dialog
from llmconv_plugins.genie.genie_dialog import GenieDialog
from llmconv_plugins.runtimes.genie import GenieRuntime, readable
from llmconv_plugins.runtimes.simulator import QnnSimulator

BOS, EOS = 1, 2
SHORT = [BOS, 483, 267]  # "Return the"
LONG = [BOS, *(300 + 7 * i % 200 for i in range(44))]  # longer than ar


@pytest.fixture(scope="module")
def opened(small_bundle: Bundle) -> Iterator[GenieDialog]:
    with GenieRuntime().dialog(small_bundle, Sampling(), (EOS,)) as dialog:
        assert isinstance(dialog, GenieDialog)
        yield dialog


@pytest.fixture
def genie(opened: GenieDialog) -> GenieDialog:
    opened.reset()
    return opened


@pytest.fixture(scope="module")
def simulator(small_bundle: Bundle) -> Iterator[Dialog]:
    with QnnSimulator().dialog(small_bundle, Sampling(), (EOS,)) as dialog:
        yield dialog


def expected(simulator: Dialog, ids: list[int], limit: int) -> list[int]:
    simulator.reset()
    return list(simulator.query(ids, limit))


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "longer_than_ar"])
def test_ids_are_those_of_the_qnn_runtime(genie: GenieDialog, simulator: Dialog, prompt: list[int]) -> None:
    answer = list(genie.query(prompt, 12))
    assert answer == expected(simulator, prompt, 12)
    assert genie.reason == "12 tokens"
    assert genie.length == len(prompt) + 12 + 1


def test_second_turn_reads_the_first_and_the_end_of_text_behind_it(genie: GenieDialog, simulator: Dialog) -> None:
    def answers(*turn: int) -> list[int]:
        assert expected(simulator, SHORT, 5) == first
        return list(simulator.query(list(turn), 4))  # by the same graphs: each rounds keys and values its own way

    first = list(genie.query(SHORT, 5))
    word = next(word for word in range(5, 50) if answers(EOS, word) != answers(word))  # the end of text tells
    assert list(genie.query([word], 4)) == answers(EOS, word)


def test_an_id_that_ends_the_text_is_not_given_and_is_remembered_once(small_bundle: Bundle, simulator: Dialog) -> None:
    answer = expected(simulator, SHORT, 4)
    with GenieRuntime().dialog(small_bundle, Sampling(), (answer[3], EOS)) as genie:
        assert list(genie.query(SHORT, 20)) == answer[:3]
        assert genie.reason == "end of text"
        assert list(genie.query([5, 6], 4)) == expected(simulator, [*SHORT, *answer, 5, 6], 4)


def test_prompt_beyond_the_context_is_refused_before_it_runs(genie: GenieDialog) -> None:
    with pytest.raises(ContextFullError, match="has 97 tokens, and Genie has room for 96"):
        genie.query([5] * 97, 1)
    list(genie.query([5] * 90, 1))
    with pytest.raises(ContextFullError, match=r"has 5 tokens, and Genie has room for 4 \(it reads up to position 96"):
        genie.query([5] * 5, 1)
    assert len(list(genie.query([5] * 4, 1))) == 1


def test_full_context_ends_the_answer(small_bundle: Bundle) -> None:
    with GenieRuntime().dialog(small_bundle, Sampling(), ()) as genie:
        answer = list(genie.query([BOS, *[300] * 94], 60))
        assert genie.reason == "Genie: the context is full (status 4)"
        assert 31 <= len(answer) <= 33
        assert genie.length == genie.context == 128
        with pytest.raises(ContextFullError, match="room for 0"):
            genie.query([5], 1)
        genie.reset()
        list(genie.query(SHORT, 1))
        with pytest.raises(BackendError, match="between two turns, and the dialog was given none"):
            genie.query([5], 1)


def test_answer_closed_early_is_remembered_as_far_as_it_was_taken(genie: GenieDialog, simulator: Dialog) -> None:
    answer = genie.query(SHORT, 50)
    taken = [next(answer), next(answer)]
    answer.close()  # type: ignore[attr-defined]
    assert genie.length == len(SHORT) + 2 + 1
    assert list(genie.query([5, 6], 4)) == expected(simulator, [*SHORT, *taken, EOS, 5, 6], 4)


def test_new_query_ends_one_that_is_held(genie: GenieDialog, simulator: Dialog) -> None:
    held = genie.query(SHORT, 50)
    first = next(held)
    assert list(genie.query([5, 6], 4)) == expected(simulator, [*SHORT, first, EOS, 5, 6], 4)
    assert list(held) == []


def test_sampling_depends_on_its_seed_alone(small_bundle: Bundle) -> None:
    def write(sampling: Sampling) -> list[int]:
        with GenieRuntime().dialog(small_bundle, sampling, (EOS,)) as genie:
            return list(genie.query(SHORT, 8))

    hot = Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=3)
    assert write(hot) == write(hot)
    assert write(hot) != write(Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=4))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("end", "said"), [(signal.SIGSEGV, "crashed (SIGSEGV)"), (signal.SIGKILL, "was killed")])
def test_dead_child_is_one_error_and_the_next_query_starts_anew(
    genie: GenieDialog, end: signal.Signals, said: str
) -> None:
    answer = genie.query(SHORT, 50)
    first = next(answer)
    assert genie._child is not None
    os.kill(genie._child.process.pid, end)
    with pytest.raises(BackendError, match=r"^Genie ") as caught:
        list(answer)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert genie.length == 0
    assert next(genie.query(SHORT, 1)) == first


def test_interrupt_while_genie_reads_ends_its_process(genie: GenieDialog, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_pipe: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmconv_plugins.genie.genie_dialog.receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(genie.query(SHORT, 3))
    assert genie.length == 0
    assert len(list(genie.query(SHORT, 3))) == 3


def test_genies_own_message_reaches_the_user(genie: GenieDialog) -> None:
    with pytest.raises(BackendError, match=r"^Genie: .*range is 0\.\.2047.* \(status -1\)$") as caught:
        list(genie.query([BOS, 5000], 3))
    assert "\n" not in str(caught.value)
    assert len(list(genie.query(SHORT, 3))) == 3


def test_damaged_binary_is_one_line(small_bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(small_bundle.folder, damaged)
    twin = damaged / "qnn" / "simulator" / "token_ar1_cl128_2_of_2.bin"
    twin.write_bytes(twin.read_bytes()[:4096])
    with (
        pytest.raises(BackendError, match=r"^Genie: Failed to get context binary info") as caught,
        GenieRuntime().dialog(Bundle(damaged), Sampling(), (EOS,)),
    ):
        pass
    assert "\n" not in str(caught.value)
    (damaged / "genie_config.json").write_text("{")
    with (
        pytest.raises(BundleError, match=r"genie_config\.json: damaged"),
        GenieRuntime().dialog(Bundle(damaged), Sampling(), (EOS,)),
    ):
        pass


def test_what_a_bundle_may_lack(small_bundle: Bundle) -> None:
    assert GenieRuntime().lacks(small_bundle) is None
    bundle = Bundle(small_bundle.folder)
    del bundle.manifest["files"]["genie_config.json"]
    assert (GenieRuntime().lacks(bundle) or "").startswith("genie_config.json (")
    bundle.manifest["binaries"] = []
    assert GenieRuntime().lacks(bundle) == "twins for the simulator (backend.twins)"
    with (
        pytest.raises(BackendError, match="Genie cannot run it for want of twins"),
        GenieRuntime().dialog(bundle, Sampling(), (EOS,)),
    ):
        pass


def test_published_form_reads_up_to_its_context(small_published: Bundle) -> None:
    assert readable(small_published.graphs["prompt"]) == 128
    with (
        GenieRuntime().dialog(small_published, Sampling(), (EOS,)) as genie,
        QnnSimulator().dialog(small_published, Sampling(), (EOS,)) as simulator,
    ):
        first = list(genie.query(LONG, 4))
        assert first == expected(simulator, LONG, 4)
        assert list(genie.query([5, 6], 4)) == expected(simulator, [*LONG, *first, EOS, 5, 6], 4)
        genie.reset()
        with pytest.raises(ContextFullError, match="room for 128"):
            genie.query([5] * 129, 1)
        assert len(list(genie.query([BOS, *[300] * 127], 3))) == 1
        assert genie.reason == "Genie: the context is full (status 4)"
