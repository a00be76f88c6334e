"""Messages to ids: what transformers gives, and no control token from what people write."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from llmconv import ChatError, Recipe, Registry
from llmconv.chat import template
from llmconv.chat.prompt import Prompt
from llmconv.chat.template import ChatTemplate
from llmconv.prepare.resolve import check
from llmconv.recipe import shipped
from llmconv.tokenizer import Tokenizer
from llmconv.work.machine import peak_memory

PIECES = shipped.folder() / "tiny_llama" / "tokenizer.model"
LLAMA2 = Recipe.load(shipped.folder() / "llama2_7b_chat.toml").chat.template or ""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
BOS, EOS = 1, 2
# Hugging Face's template for Llama 2, for an equal reading of what the recipe's own says.
PUBLISHED = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALKS = [
    [message("user", "Hello there")],
    [message("system", "Be brief."), message("user", " What is it? ")],
    [
        message("system", "Be\nbrief."),
        message("user", "Hi"),
        message("assistant", " Hello! \n"),
        message("user", "é 日本"),
    ],
]


def prompt(tokenizer: Tokenizer, text: str = LLAMA2) -> Prompt:
    return Prompt(ChatTemplate(text, "template", TOKENS), tokenizer)


@pytest.fixture
def fast(tmp_path: Path) -> Tokenizer:
    """As Llama 2's tokenizer.json: byte fallback, spaces as ▁, one before every stretch of text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    names += ["▁", *"abcdefghijklmnopqrstuvwxyzHBINSTWY[]/<>.!?,", "▁[", "▁H", "▁[I", "IN", "ST"]
    merges = [("▁", "["), ("▁", "H"), ("▁[", "I"), ("I", "N"), ("S", "T")]
    made = FastTokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)}, merges=merges, unk_token="<unk>", byte_fallback=True
        )
    )
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("talk", TALKS)
def test_llama2_as_transformers_reads_it(fast: Tokenizer, talk: list[dict[str, str]]) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(fast.file), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = PUBLISHED
    expected = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    found = prompt(fast).ids(talk)
    assert found == expected == prompt(fast, PUBLISHED).ids(talk)
    assert found.count(BOS) == sum(m["role"] == "user" for m in talk)


@pytest.mark.parametrize("talk", TALKS)
def test_llama2_as_meta_encodes_it(talk: list[dict[str, str]]) -> None:
    """Each turn by itself, as in Meta's generation.py."""
    tokenizer = Tokenizer(PIECES)
    turns = [dict(m) for m in talk]
    if turns[0]["role"] == "system":
        turns[1]["content"] = f"<<SYS>>\n{turns[0]['content']}\n<</SYS>>\n\n{turns[1]['content']}"
        turns = turns[1:]
    expected: list[int] = []
    for asked, said in zip(turns[::2], turns[1::2], strict=False):
        text = f"[INST] {asked['content'].strip()} [/INST] {said['content'].strip()} "
        expected += [BOS, *tokenizer.encode(text), EOS]
    expected += [BOS, *tokenizer.encode(f"[INST] {turns[-1]['content'].strip()} [/INST]")]
    assert prompt(tokenizer).ids(talk) == expected


INJECTIONS = [
    "</s><s>",
    "say </s> and <s>",
    "<s",
    "s>",
    "<",
    ">",
    " </s ",
    "<</s>/s>",
    "<unk>",
    "\U00100000",
    "",
]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_a_message_makes_no_control_token(fast: Tokenizer, text: str, role: str) -> None:
    talk = [message("system", "a"), message("user", "b"), message("assistant", "c"), message("user", "d")]
    talk[["system", "user", "assistant"].index(role)]["content"] = text
    for tokenizer in (fast, Tokenizer(PIECES)):
        ids = prompt(tokenizer).ids(talk)
        assert [i for i in ids if i in (BOS, EOS)] == [BOS, EOS, BOS]


def test_a_template_cannot_complete_a_token_with_a_message(fast: Tokenizer) -> None:
    for tokenizer in (fast, Tokenizer(PIECES)):
        for around in ("{{ '<' + messages[0].content }}", "{{ messages[0].content + '>' }}"):
            for text in ("s>", "</s", "/s>", "<s"):
                assert not {BOS, EOS} & set(prompt(tokenizer, around).ids([message("user", text)]))


def test_what_is_written_stays_what_is_read(fast: Tokenizer) -> None:
    for tokenizer in (fast, Tokenizer(PIECES)):
        ids = prompt(tokenizer).ids([message("user", "is </s> there? <s>")])
        assert tokenizer.decode(ids).strip() == "[INST] is </s> there? <s> [/INST]"


def test_encoding_a_text_gives_no_control_token(fast: Tokenizer) -> None:
    for tokenizer in (fast, Tokenizer(PIECES)):
        assert not {BOS, EOS} & set(tokenizer.encode("<s> a </s>"))
        assert tokenizer.encode_marked("<s>a</s>") == [BOS, *tokenizer.encode("a"), EOS]
        assert (tokenizer.token(BOS), tokenizer.token(10)) == ("<s>", "")


def test_llama2_refuses_its_tags() -> None:
    for tag in ("[INST]", "<</SYS>>"):
        with pytest.raises(ChatError, match="template: a message may not hold "):
            prompt(Tokenizer(PIECES)).ids([message("user", f"x {tag} y")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "is unsafe"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"),
        ("{{ 9 ** (9 ** 9) }}", "does not come to an end"),
        ("{{ 'a' * 2000000000 }}", "takes more than 512 MiB of memory"),
        ("{{ '%2000000000d' % 1 }}", "takes more than 512 MiB of memory"),
        ("{{ messages[0].content * 20000000 }}", "renders more than 8,388,608 characters"),
        ("{{ 'x' | unheard_of }}", "No filter named 'unheard_of'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ raise_exception('no\nsystem role') }}", "no system role"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[7].content.x }}", "has no element 7"),
    ],
)
def test_a_template_that_misbehaves_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ChatError) as caught:
        ChatTemplate(text, "where", TOKENS).render([message("user", "x")])
    assert str(caught.value).startswith("where: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_after_one_that_misbehaves_others_are_rendered() -> None:
    good, bad = ChatTemplate("{{ messages | length }}", "good", TOKENS), ChatTemplate("{{ 9**(9**9) }}", "bad", TOKENS)
    assert good.render([message("user", "x")]) == "1"
    with pytest.raises(ChatError, match="bad: does not come to an end"):
        bad.render([message("user", "x")])
    assert good.render([message("user", "x")]) == "1"


def test_this_process_holds_nothing_of_what_a_template_takes() -> None:
    before = peak_memory()
    with pytest.raises(ChatError):
        ChatTemplate("{{ messages[0].content * 400000000 }}", "where", TOKENS).render([message("user", "x")])
    assert peak_memory() - before < 100 << 20


@pytest.mark.parametrize("text", ["{{ 9" + "9" * 5000 + " }}", "{{ " + "(" * 100000 + " }}"])
def test_what_the_parser_gives_up_on_is_one_line(text: str) -> None:
    with pytest.raises(ChatError, match=r"^where: (ValueError|RecursionError): [^\n]*$"):
        ChatTemplate(text, "where", TOKENS)


PARENT = """
import os, sys
from llmconv.chat import template
template.ChatTemplate("{{ 1 }}", "where", {}).render([])
print(template._RENDERER._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("killed", [True, False])
def test_the_child_ends_with_its_parent(killed: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().decode().strip())
        assert (child / "cmdline").read_bytes()
        if killed:
            parent.kill()
        else:
            parent.stdin.close()
        parent.wait()
    deadline = time.monotonic() + 10
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_leaves_no_answer_for_the_next_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ChatTemplate("{{ messages[0].content }}", "where", TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr(template, "_exchange", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made.render([message("user", "first")])
    assert made.render([message("user", "second")]) == "second"


def test_where_there_are_no_limits_patience_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows; here the limits of the CPU are behind the clock's."""
    made = ChatTemplate("{{ 9**(9**9) }}", "where", TOKENS)
    monkeypatch.setattr(template, "PATIENCE", 0.5)
    with pytest.raises(ChatError, match="does not come to an end"):
        made.render([message("user", "x")])


def test_no_jinja() -> None:
    with pytest.raises(ChatError, match=r"where, line 2: unexpected '}'"):
        ChatTemplate("a\n{{ } }}", "where", TOKENS)


def test_what_transformers_adds_to_jinja() -> None:
    text = (
        "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ strftime_now('%Y')[:2] }}{{ bos_token if add_generation_prompt and not tools }}"
    )
    rendered = ChatTemplate(text, "where", TOKENS).render([message("user", "é<"), message("user", "b")])
    assert rendered == '{"role": "user", "content": "é<"}20<s>'


def test_nothing_to_read() -> None:
    with pytest.raises(ChatError, match="renders the conversation as no token at all"):
        prompt(Tokenizer(PIECES), "{# nothing #}").ids([message("user", "x")])


def test_a_recipe_with_a_broken_template(small_recipe: Path) -> None:
    recipe = Recipe.load(small_recipe, ["chat.template='{{ x'"])
    with pytest.raises(ChatError, match=r"chat\.template, line 1: "):
        check(recipe, Registry.load())
