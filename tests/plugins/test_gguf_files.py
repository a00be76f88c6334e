"""A Llama in a GGUF file: sizes, tensors and tokens as its metadata say, equal to transformers' reading of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import CONTROL, HEAD, HIDDEN, KV_HEADS, byte_level, tensors, write

from llmconv import CheckpointError
from llmconv.decoding import Decoder, TorchRunner
from llmconv.graph import trace
from llmconv.weights import GGUFStore
from llmconv_plugins.sources.decoder_source import DecoderSource

IDS = [1, 40, 41, 42, 100, 7, 8, 9]


def logits(source: DecoderSource) -> np.ndarray[Any, Any]:
    graph = trace(source.module(), len(IDS), len(IDS), "source")
    return Decoder([TorchRunner(graph, source.weights())], None).read(IDS)


def reference(source: DecoderSource) -> np.ndarray[Any, Any]:
    model = source.reference()
    assert not isinstance(model, str)
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor([IDS]))[0].numpy()
    return found


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1], ids=lambda k: k.name)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tmp_path: Path, kind: Kind, tied: bool) -> None:
    source = DecoderSource(write(tmp_path / "x.gguf", kind=kind, tied=tied))
    expected = reference(source)
    assert np.abs(logits(source) - expected).max() < 3e-5 * np.abs(expected).max()


def test_a_folder_with_one_and_a_split_set(tmp_path: Path) -> None:
    expected = logits(DecoderSource(write(tmp_path / "x.gguf")))
    assert np.array_equal(logits(DecoderSource(tmp_path)), expected)
    (tmp_path / "set").mkdir()
    first = write(tmp_path / "set" / "y.gguf", split=9)
    assert np.array_equal(logits(DecoderSource(first)), expected)
    assert np.array_equal(logits(DecoderSource(first.parent)), expected)
    assert DecoderSource(first).reference() == "transformers does not read a GGUF file that is split"
    write(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF checkpoints \(other\.gguf, x\.gguf\); give the path"):
        DecoderSource(tmp_path).config()


def test_sizes_come_from_the_metadata(tmp_path: Path) -> None:
    source = DecoderSource(write(tmp_path / "x.gguf", metadata={"tokenizer.ggml.eot_token_id": 0}))
    found = source.config()
    assert (found.hidden, found.kv_heads, found.head_dim, found.positions) == (HIDDEN, KV_HEADS, HEAD, 256)
    assert (found.vocabulary, found.ropes[0].theta) == (len(byte_level()["tokens"]), 50000.0)
    assert (found.bos, found.eos) == (1, (2, 0))


def test_its_description_is_a_hugging_face_folder(tmp_path: Path) -> None:
    """A bundle's own copy: no weights."""
    source = DecoderSource(write(tmp_path / "x.gguf"))
    (tmp_path / "copy").mkdir()
    for name, content in source.description().items():
        (tmp_path / "copy" / name).write_bytes(content)
    copy = DecoderSource(tmp_path / "copy")
    assert copy.config() == source.config()
    text = "list the <|im_end|> of 2024\n"
    for encode in ("encode", "encode_marked"):
        assert getattr(copy.tokenizer(), encode)(text) == getattr(source.tokenizer(), encode)(text)
    assert copy.tokenizer().begin == source.tokenizer().begin == ()
    shapes = [{n: p.shape for n, p in s.module().named_parameters()} for s in (source, copy)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' is not implemented"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count = 8 is not implemented"),
        ({"metadata": {"llama.rope.scaling.type": "linear"}}, "llama.rope.scaling.type = 'linear' is not implemented"),
        ({"metadata": {"llama.attention.new_kind": 1}}, "llama.attention.new_kind = 1 is not implemented"),
        ({"metadata": {"llama.attention.value_length": 8}}, "llama.attention.value_length = 8 is not implemented"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "llama.rope.scaling.type = 'longrope' is not"),
        ({"metadata": {"llama.rope.scaling.attn_factor": 1.5}}, "llama.rope.scaling.attn_factor = 1.5 is not"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "llama.rope.dimension_count = 8 is not implemented"),
        ({"metadata": {"llama.attn_logit_softcapping": 50.0}}, "llama.attn_logit_softcapping = 50.0 is not"),
        (
            {"extra": {"rope_freqs.weight": np.full(3, 8, np.float32)}},
            "short_factor must be a list of 8 numbers, not a",
        ),
        (
            {"extra": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}},
            "'blk.0.attn_sinks.weight' is not",
        ),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(tmp_path: Path, changes: Any, message: str) -> None:
    source = DecoderSource(write(tmp_path / "x.gguf", **changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        source.weights()
    assert "\n" not in str(caught.value)


def test_frequencies_of_one_scale_nothing(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(HEAD // 2, np.float32)}
    assert DecoderSource(write(tmp_path / "x.gguf", extra=extra)).weights().shape("norm.weight") == (HIDDEN,)


def test_rows_of_permuted_tensors_read_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = DecoderSource(write(tmp_path / "x.gguf", kind=Kind.F32))
    store, rows = source.weights(), 0
    whole, read = store.read("layers.0.self_attn.q_proj.weight"), GGUFStore.read

    def counted(self: GGUFStore, name: str, wanted: slice | None = None) -> torch.Tensor:
        nonlocal rows
        found = read(self, name, wanted)
        rows += len(found)
        return found

    monkeypatch.setattr(GGUFStore, "read", counted)
    part = store.read("layers.0.self_attn.q_proj.weight", slice(HEAD, 2 * HEAD))
    assert torch.equal(part, whole[HEAD : 2 * HEAD])
    assert rows == HEAD
    expected = tensors(len(byte_level()["tokens"]))["blk.0.attn_q.weight"]
    assert torch.equal(whole, torch.from_numpy(expected))


def test_digits_are_read_one_by_one(tmp_path: Path) -> None:
    made = byte_level(merges=("1 2", "Ġ 1", "t h"))
    cut = DecoderSource(write(tmp_path / "x.gguf", tokenizer=made)).tokenizer()
    whole = DecoderSource(write(tmp_path / "y.gguf", tokenizer={**made, "pre": "gpt-2"})).tokenizer()
    assert [cut.decode([i]) for i in cut.encode("th 12")] == ["th", " ", "1", "2"]
    assert [whole.decode([i]) for i in whole.encode("th 12")] == ["th", " ", "12"]


@pytest.mark.parametrize(
    ("names", "cut"),
    [
        (("gpt-2", "exaone4", "granite-docling"), ["1234"]),
        (("qwen2", "hunyuan", "kormo", "seed-coder", "stablelm2", "starcoder"), ["1", "2", "3", "4"]),
        (("llama-bpe", "glm4", "chatglm-bpe", "hunyuan-dense", "jais-2", "midm-2.0"), ["12", "3", "4"]),
    ],
)
def test_digits_are_cut_as_llama_cpp_does(tmp_path: Path, names: tuple[str, ...], cut: list[str]) -> None:
    made = byte_level(merges=("1 2", "3 4", "12 34"))
    for name in names:
        file = write(tmp_path / f"{name}.gguf", tokenizer={**made, "pre": name})
        tokenizer = DecoderSource(file).tokenizer()
        assert [tokenizer.decode([i]) for i in tokenizer.encode("1234") if i > 1] == cut


def test_control_tokens_are_tokens_where_they_are_meant(tmp_path: Path) -> None:
    tokenizer = DecoderSource(write(tmp_path / "x.gguf")).tokenizer()
    assert tokenizer.control == {name: i for i, name in enumerate(CONTROL)}
    assert tokenizer.encode_marked("<|im_start|>th") == [1, *tokenizer.encode("th")]
    assert len(tokenizer.encode("<|im_start|>")) > 1


@pytest.mark.parametrize(
    ("pre", "flag", "begin"),
    [("smollm", False, ()), ("smollm", None, ()), ("smollm", True, (1,)), ("llama-bpe", None, (1,))],
)
def test_bos_stands_in_front_where_the_file_says_so(tmp_path: Path, pre: str, flag: bool | None, begin: Any) -> None:
    metadata = {"tokenizer.ggml.add_bos_token": flag}
    file = write(tmp_path / "x.gguf", tokenizer={**byte_level(), "pre": pre}, metadata=metadata)
    assert DecoderSource(file).tokenizer().begin == begin


def sentencepiece(kinds: dict[str, int] | None = None) -> dict[str, Any]:
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, **{f"<0x{i:02X}>": 6 for i in range(256)}, **(kinds or {})}
    tokens = [*kinds, "▁", "a", "b", "ab", "▁a"]
    return {
        "model": "llama",
        "tokens": tokens,
        "kinds": [kinds.get(token, 1) for token in tokens],
        "scores": [-float(i) for i in range(len(tokens))],
    }


def test_scores_make_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    made = sentencepiece()
    source = DecoderSource(write(tmp_path / "x.gguf", tokenizer=made, metadata={"tokenizer.ggml.add_bos_token": None}))
    found = source.tokenizer()
    assert found.begin == (1,)  # as llama.cpp does where no flag says otherwise
    texts = [made["tokens"][i] for i in found.encode("ab a é")]
    assert texts == ["▁", "ab", "▁a", "▁", "<0xC3>", "<0xA9>"]
    assert found.decode(found.encode("ab a é")) == " ab a é"
    bare = DecoderSource(
        write(tmp_path / "y.gguf", tokenizer=made, metadata={"tokenizer.ggml.add_space_prefix": False})
    )
    assert [made["tokens"][i] for i in bare.tokenizer().encode("ab a")] == ["ab", "▁a"]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({**byte_level(), "pre": "new-kind"}, "tokenizer.ggml.pre is 'new-kind', which is not known here"),
        ({**byte_level(), "model": "bert"}, "tokenizer.ggml.model is 'bert'; known are gpt2 and llama"),
        ({**byte_level(), "merges": ["ab cd"]}, "tokenizer.ggml.merges are damaged"),
        ({**byte_level(), "kinds": [1, 2]}, "tokens and token_type are damaged"),
        ({**sentencepiece(), "scores": [1.0]}, "tokenizer.ggml.scores are damaged"),
    ],
)
def test_tokenizers_that_are_not_known(tmp_path: Path, tokenizer: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        DecoderSource(write(tmp_path / "x.gguf", tokenizer=tokenizer)).tokenizer()
    assert "\n" not in str(caught.value)
