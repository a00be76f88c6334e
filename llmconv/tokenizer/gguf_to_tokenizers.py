"""The tokenizer that a GGUF file's metadata describes, as a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from llmconv.errors import CheckpointError
from llmconv.tokenizer.sentencepiece_file import BPE, BYTE, CONTROL, UNKNOWN, USER_DEFINED, Piece, SentencePieceFile
from llmconv.tokenizer.sentencepiece_to_tokenizers import build


@dataclass(frozen=True)
class _Pre:
    """How text is cut before its pieces are merged.

    Attributes:
        patterns: cut one after the other; the last is the tokenizer's own.
        whole: whether a piece that is in the vocabulary is taken as it is (llama.cpp's `ignore_merges`).
        bos: whether BOS is put in front where no flag says.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_END}"
)
_SEED = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_END}"
_JAIS2 = _LLAMA3.replace(
    r"\s+(?!\S)|\s+", "|".join([*(rf"\s{{{2**i}}}(?!\S)" for i in range(9, 1, -1)), r"\s{1,2}(?!\S)", r"\s{1}"])
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_END}",
)
_DIGITS = r"\p{N}"
# `tokenizer.ggml.pre` -> what llama.cpp's llama-vocab.cpp does for it
_PRE = {
    **dict.fromkeys(("default", "gpt-2", "olmo", "jais", "mpt", "phi-2", "trillion"), _Pre((_GPT2,))),
    **dict.fromkeys(("exaone4", "granite-docling", "gigachat", "a.x-4.0", "mellum"), _Pre((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _Pre((_DIGITS, _GPT2))),
    **dict.fromkeys(("exaone", "minerva-7b"), _Pre((_DIGITS, _GPT2))),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _Pre((_LLAMA3,), whole=True, bos=True)),
    "midm-2.0": _Pre((_LLAMA3,), whole=True, bos=True),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Pre((_LLAMA3,))),
    "glm4": _Pre((_LLAMA3,), whole=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo"), _Pre((_QWEN2,))),
    **dict.fromkeys(("hunyuan-dense", "deepseek-v3"), _Pre(_DEEPSEEK3)),
    "seed-coder": _Pre((_SEED,)),
    "jais-2": _Pre((_JAIS2,)),
    "tekken": _Pre((_TEKKEN,), whole=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _Pre((_GPT4O,))),
}
_MODELS = ("gpt2", "llama")


def convert_gguf(metadata: Mapping[str, Any], file: Path) -> tokenizers.Tokenizer:
    """A tokenizer of the file's tokens, which puts BOS in front where the file says so.

    Raises:
        CheckpointError: the file holds none, or one of a kind that is not known here.
    """
    given = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    kind = given.get("model")
    if kind not in _MODELS:
        raise CheckpointError(f"{file}: tokenizer.ggml.model is {kind!r}; known are {' and '.join(_MODELS)}")
    tokens, kinds = list(given.get("tokens") or ()), list(given.get("token_type") or ())
    kinds = kinds or [1] * len(tokens)
    if not tokens or len(kinds) != len(tokens) or not all(isinstance(t, str) for t in tokens):
        raise CheckpointError(f"{file}: tokenizer.ggml.tokens and token_type are damaged; download it again")
    if kind == "gpt2":
        fast, bos = _byte_level(tokens, given, file)
    else:
        fast, bos = build(_pieces(tokens, kinds, given, file)), True
    added = [(t, k == CONTROL) for t, k in zip(tokens, kinds, strict=True) if k in (CONTROL, USER_DEFINED)]
    if kind == "llama":  # whose symbols of the user stand in its own vocabulary
        added = [(token, special) for token, special in added if special]
    fast.add_tokens([AddedToken(token, normalized=False, special=special) for token, special in added])
    if given.get("add_bos_token", bos) and (first := given.get("bos_token_id")) is not None:
        if not 0 <= first < len(tokens):
            raise CheckpointError(f"{file}: bos_token_id = {first} is beyond the vocabulary of {len(tokens)}")
        special = [(tokens[first], int(first))]
        fast.post_processor = processors.TemplateProcessing(
            single=[tokens[first], "$A"], pair=[tokens[first], "$A", tokens[first], "$B:1"], special_tokens=special
        )
    return fast


def _byte_level(tokens: list[str], given: Mapping[str, Any], file: Path) -> tuple[tokenizers.Tokenizer, bool]:
    name = given.get("pre", "default")
    if name not in _PRE:
        raise CheckpointError(f"{file}: tokenizer.ggml.pre is {name!r}, which is not known here")
    pre = _PRE[name]
    merges = [tuple(merge.split(" ")) for merge in given.get("merges") or ()]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.whole)
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{file}: tokenizer.ggml.merges are damaged ({error}); download it again") from error
    fast = tokenizers.Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=bool(given.get("add_space_prefix", False)), use_regex=False)
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Sequence([*cuts, level]), decoders.ByteLevel()
    return fast, pre.bos


def _pieces(tokens: list[str], kinds: list[int], given: Mapping[str, Any], file: Path) -> SentencePieceFile:
    scores = list(given.get("scores") or ())
    if len(scores) != len(tokens):
        raise CheckpointError(f"{file}: tokenizer.ggml.scores are damaged; download it again")
    unknown = given.get("unknown_token_id", kinds.index(UNKNOWN) if UNKNOWN in kinds else 0)
    return SentencePieceFile(
        file=file,
        pieces=tuple(Piece(*piece) for piece in zip(tokens, scores, kinds, strict=True)),
        algorithm=BPE,
        unknown=int(unknown),
        byte_fallback=BYTE in kinds,
        spaces_as_suffixes=False,
        character_map=bytes(given.get("precompiled_charsmap") or ()),
        prefix=bool(given.get("add_space_prefix", True)),
        strips_spaces=bool(given.get("remove_extra_whitespaces", False)),
        escapes_spaces=True,
    )
