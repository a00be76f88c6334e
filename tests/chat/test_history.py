"""What a chat remembers: turns within the context, and what the dialog has read of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from llmconv import ChatError
from llmconv.chat.chat import Chat
from llmconv.chat.prompt import Prompt
from llmconv.chat.template import ChatTemplate
from llmconv.decoding import Dialog, common
from llmconv.errors import ContextFullError
from llmconv.recipe import shipped
from llmconv.tokenizer import Tokenizer

TOKENIZER = Tokenizer(shipped.folder() / "tiny_llama" / "tokenizer.model")
TALK = "<s>{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ '</s>' if m.role == 'assistant' }}{% endfor %}a:"
REWRITES = "<s>{{ messages | length }}{% for m in messages %} {{ m.content }}{% endfor %}"
EOS = 2


class FakeDialog(Dialog):
    """Writes given answers; remembers ids, and which were asked of it."""

    context = 64

    def __init__(self, *answers: str) -> None:
        self.answers = [TOKENIZER.encode(a) for a in answers]
        self.read: list[int] = []
        self.asked: list[list[int]] = []
        self.resets = 0
        self.fails_after: int | None = None

    @property
    def length(self) -> int:
        return len(self.read)

    def query(self, tokens: Sequence[int], limit: int) -> Iterator[int]:
        self.check_room(tokens)
        assert tokens
        self.asked.append(list(tokens))
        self.read += tokens
        return self._write(self.answers.pop(0)[:limit])

    def _write(self, answer: list[int]) -> Iterator[int]:
        self.reason = "end of text" if answer else "status 4"
        for i, token in enumerate(answer):
            if i == self.fails_after:
                raise KeyboardInterrupt
            self.read.append(token)
            yield token

    def reset(self) -> None:
        self.read, self.resets = [], self.resets + 1


def chat(dialog: FakeDialog, template: str = TALK, system: str = "", limit: int | None = None) -> Chat:
    return Chat(dialog, Prompt(ChatTemplate(template, "template", {}), TOKENIZER), system=system, limit=limit)


def said(talk: Chat) -> list[tuple[str, str]]:
    return [(a["content"], b["content"]) for a, b in talk.turns]


def rendered(dialog: FakeDialog) -> str:
    """What the dialog has read, tokens named."""
    names = {i: name for name, i in TOKENIZER.control.items()}
    return "".join(names.get(i) or "" if i in names else TOKENIZER.decode([i]) for i in dialog.read)


def test_a_second_turn_reads_what_is_new() -> None:
    dialog = FakeDialog("one", "two")
    talk = chat(dialog, system="brief")
    answer = talk.say("a")
    assert "".join(answer.pieces) == "one"
    assert (answer.reason, answer.dropped) == ("end of text", 0)
    assert answer.tokens == len(TOKENIZER.encode("one"))
    assert answer.seconds >= answer.first > 0
    first = list(dialog.read)
    assert "".join(talk.say("b").pieces) == "two"
    assert dialog.resets == 0
    assert dialog.asked[1][0] == EOS  # the answer's end, which the dialog did not keep
    assert dialog.read[: len(first)] == first
    assert said(talk) == [("a", "one"), ("b", "two")]


def test_a_template_that_rewrites_history_is_read_anew() -> None:
    dialog = FakeDialog("one", "two")
    talk = chat(dialog, REWRITES)
    for text in ("a", "b"):
        assert list(talk.say(text).pieces)
    assert dialog.resets == 1
    assert dialog.asked[1] == talk.prompt.ids(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "b"},
        ]
    )


def test_the_oldest_turns_make_room() -> None:
    dialog = FakeDialog(*["answer"] * 12)
    talk = chat(dialog, system="sys", limit=8)
    dropped = []
    for i in range(12):
        answer = talk.say(f"q{i}")
        assert list(answer.pieces)
        dropped.append(answer.dropped)
        assert dialog.length <= dialog.context
    assert sum(dropped) > 0
    assert len(talk.turns) == 12 - sum(dropped)
    assert said(talk)[-1] == ("q11", "answer")
    assert dialog.resets >= sum(1 for d in dropped if d)
    ids = talk.prompt.ids([*talk.system, {"role": "user", "content": "x"}])
    assert dialog.read[: len(ids) - 4] == ids[:-4]  # the system message stays
    assert dialog.asked[dropped.index(1)][0] == TOKENIZER.control["<s>"]


def test_a_prompt_beyond_the_context_changes_nothing() -> None:
    dialog = FakeDialog("one", "two")
    talk = chat(dialog)
    assert list(talk.say("a").pieces)
    before = list(dialog.read)
    with pytest.raises(ContextFullError, match=r"has \d+ tokens by itself, and the context holds 64; say less"):
        talk.say("word " * 80)
    assert (dialog.read, said(talk), len(dialog.asked)) == (before, [("a", "one")], 1)
    assert "".join(talk.say("b").pieces) == "two"
    assert dialog.resets == 0


def test_a_prompt_that_leaves_an_answer_little_room_is_read() -> None:
    dialog = FakeDialog("one")
    talk = chat(dialog)
    text = "word " * 50
    count = len(talk.prompt.ids([{"role": "user", "content": text}]))
    assert dialog.context - dialog.context // 4 < count < dialog.context
    assert list(talk.say(text).pieces)


def test_what_the_template_refuses_changes_nothing() -> None:
    dialog = FakeDialog("one")
    talk = chat(dialog, "{{ raise_exception('no') if messages[-1].content == 'bad' }}" + TALK)
    with pytest.raises(ChatError, match="template: no"):
        talk.say("bad")
    assert (dialog.asked, talk.turns) == ([], [])
    assert list(talk.say("good").pieces)


def test_a_stopped_answer_is_kept_and_gone_on_from() -> None:
    dialog = FakeDialog("one two three four", "five")
    talk = chat(dialog)
    answer = talk.say("a")
    shown = next(answer.pieces) + next(answer.pieces)
    answer.pieces.close()
    assert said(talk) == [("a", shown)]
    assert "one two three four".startswith(shown)
    assert "four" not in shown
    assert "".join(talk.say("b").pieces) == "five"
    assert dialog.resets == 0
    assert dialog.read[:1] == [TOKENIZER.control["<s>"]]


def test_an_interrupt_inside_the_dialog_has_all_read_anew() -> None:
    dialog = FakeDialog("one two three four", "five")
    dialog.fails_after = 3
    talk = chat(dialog)
    with pytest.raises(KeyboardInterrupt):
        list(talk.say("a").pieces)
    ((_, shown),) = said(talk)
    assert shown
    assert dialog.resets == 0  # not before it is needed
    dialog.fails_after = None
    assert "".join(talk.say("b").pieces) == "five"
    assert dialog.resets == 1
    assert dialog.asked[1] == talk.prompt.ids(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": shown},
            {"role": "user", "content": "b"},
        ]
    )


def test_an_answer_in_other_tokens_than_its_texts_is_not_read_anew() -> None:
    letters = [TOKENIZER.encode(f"#{c}")[-1] for c in "one"]
    assert TOKENIZER.decode(letters).strip() == "one"
    dialog = FakeDialog("one", "two", "three")
    dialog.answers[0] = letters
    talk = chat(dialog)
    for text, shown in (("a", "one"), ("b", "two"), ("c", "three")):
        assert "".join(talk.say(text).pieces) == shown
    assert dialog.resets == 0
    assert [asked[0] for asked in dialog.asked] == [TOKENIZER.control["<s>"], EOS, EOS]


def test_an_answer_in_so_many_tokens_that_nothing_fits_behind_is_read_anew() -> None:
    dialog = FakeDialog("", "two")
    dialog.answers[0] = [TOKENIZER.encode("#o")[-1]] * 50
    assert len(TOKENIZER.encode("o" * 50)) < 30
    talk = chat(dialog, limit=50)
    for text in ("a", "b b b b b b b b"):
        assert "".join(talk.say(text).pieces)
    assert dialog.resets == 1
    assert len(talk.turns) == 2


def test_a_dialog_that_kept_more_than_it_said_is_read_anew() -> None:
    dialog = FakeDialog("one", "two")
    talk = chat(dialog)
    assert list(talk.say("a").pieces)
    dialog.read.append(EOS)
    assert list(talk.say("b").pieces)
    assert dialog.resets == 1


def test_an_empty_answer_has_a_reason_and_leaves_no_turn() -> None:
    dialog = FakeDialog("", "two")
    talk = chat(dialog)
    answer = talk.say("a")
    assert list(answer.pieces) == []
    assert (answer.reason, answer.tokens, answer.rate, talk.turns) == ("status 4", 0, None, [])
    assert "".join(talk.say("b").pieces) == "two"
    assert dialog.resets == 1


def test_leading_space_is_left_out_where_the_template_leaves_it_out() -> None:
    for trims, shown in ((True, "one"), (False, "  one")):
        talk = Chat(FakeDialog(" one"), Prompt(ChatTemplate(TALK, "template", {}), TOKENIZER), trims=trims)
        assert "".join(talk.say("a").pieces) == shown
        assert said(talk) == [("a", shown)]


def test_an_answer_is_half_the_context_unless_said_otherwise() -> None:
    for limit, count in ((None, 32), (5, 5)):
        dialog = FakeDialog("word " * 60)
        answer = chat(dialog, limit=limit).say("a")
        assert "".join(answer.pieces)
        assert answer.tokens == count


class RewindingDialog(FakeDialog):
    """Keeps what a text begins with."""

    def rewind(self, text: Sequence[int]) -> int:
        kept = common(self.read, text[:-1])
        self.read = self.read[:kept]
        return kept


def test_what_changed_in_the_middle_is_read_from_there_on() -> None:
    dialog = RewindingDialog("one", "two")
    talk = chat(dialog, REWRITES, system="a system prompt that stays")
    for text in ("first", "second"):
        assert list(talk.say(text).pieces)
    asked = talk.prompt.ids([*talk.system, *(m for turn in talk.turns[:1] for m in turn), talk.turns[1][0]])
    assert dialog.resets == 0
    assert 0 < len(dialog.asked[1]) < len(asked)
    assert [*dialog.read[: -len(TOKENIZER.encode("two"))]] == asked


def test_an_answer_ends_before_a_stop_and_the_next_turn_reads_it_so() -> None:
    dialog = FakeDialog("one two three", "four")
    talk = Chat(dialog, Prompt(ChatTemplate(TALK, "template", {}), TOKENIZER), stops=[" two"])
    answer = talk.say("a")
    assert "".join(answer.pieces) == "one"
    assert said(talk) == [("a", "one")]
    assert len(dialog.read) < len(dialog.asked[0]) + len(TOKENIZER.encode("one two three"))
    assert "".join(talk.say("b").pieces) == "four"
    assert "two" not in rendered(dialog)
