"""The llama source gives the same model from every layout, and one line for whatever is wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny_checkpoints import (
    HIDDEN,
    VOCABULARY,
    config_of,
    meta_tensors,
    params_of,
    shard_of,
    tensors_of,
    write,
    write_meta,
)
from tiny_models import FP32_ROUNDING

from llmconv import CheckpointError
from llmconv.decoding import Decoder, TorchRunner
from llmconv.graph import trace
from llmconv.recipe import shipped
from llmconv.sources import Rope
from llmconv_plugins.sources.decoder_source import DecoderSource

TOKENS = [1, 5, 9, 3, 7, 11, 2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PIECES = shipped.folder() / "tiny_llama" / "tokenizer.model"
LAYOUTS: dict[str, Callable[..., Path]] = {
    "one .bin": lambda folder, **options: write(folder, suffix="bin", **options),
    "three .bin": lambda folder, **options: write(folder, 3, suffix="bin", **options),
    "meta, 1 rank": write_meta,
    "meta, 2 ranks": lambda folder, **options: write_meta(folder, 2, **options),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_grouping = pytest.mark.parametrize("kv_heads", [4, 2], ids=["mha", "gqa"])


def logits(folder: Path) -> NDArray[np.float32]:
    source = DecoderSource(folder)
    graph = trace(source.module(), len(TOKENS), len(TOKENS), "prompt")
    return Decoder([TorchRunner(graph, source.weights())], None).read(TOKENS)


@each_layout
@each_grouping
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout_is_the_same_model(tmp_path: Path, layout: str, kv_heads: int, dtype: torch.dtype) -> None:
    options = {"num_key_value_heads": kv_heads, "dtype": dtype}
    expected = logits(write(tmp_path / "safetensors", **options))
    folder = LAYOUTS[layout](tmp_path / "other", **options)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(logits(folder), expected)


@each_layout
@each_grouping
def test_row_ranges_are_slices_of_the_whole(tmp_path: Path, layout: str, kv_heads: int) -> None:
    weights = DecoderSource(LAYOUTS[layout](tmp_path, num_key_value_heads=kv_heads)).weights()
    for name, tensor in tensors_of(config_of({"num_key_value_heads": kv_heads})).items():
        own, count = name.removeprefix("model."), len(tensor)
        assert weights.shape(own) == tuple(tensor.shape)
        assert torch.equal(weights.read(own), tensor)
        for rows in (slice(0, 4), slice(4, 8), slice(1, 6), slice(3, 4), slice(5, 5), slice(-3, None), slice(2, 99)):
            assert torch.equal(weights.read(own, rows), tensor[rows]), (name, rows)
        assert torch.equal(torch.cat([weights.read(own, slice(i, i + 1)) for i in range(count)]), tensor)


def test_bin_equals_transformers(tmp_path: Path) -> None:
    folder = write(tmp_path, 2, suffix="bin", num_key_value_heads=2, dtype=torch.float16)
    reference = DecoderSource(folder).reference()
    assert not isinstance(reference, str)
    with torch.no_grad():
        expected = reference(torch.tensor([TOKENS]))[0].numpy()
    np.testing.assert_allclose(logits(folder), expected, atol=FP32_ROUNDING, rtol=0)


def test_rows_of_queries_and_keys_are_moved_as_transformers_moves_them(tmp_path: Path) -> None:
    """Written as in transformers' convert_llama_weights_to_hf.py."""
    weights = DecoderSource(write_meta(tmp_path, num_key_value_heads=2)).weights()
    stored = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    for own, meta, heads in (("q_proj", "wq", 4), ("k_proj", "wk", 2)):
        w = stored[f"layers.1.attention.{meta}.weight"]
        rows, columns = w.shape
        expected = w.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        assert not torch.equal(expected, w)
        assert torch.equal(weights.read(f"layers.1.self_attn.{own}.weight"), expected)


def meta_forward(params: dict[str, Any], w: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Meta's model on Meta's tensors as they lie: neighbours of a head are one complex number, turned by RoPE."""
    heads, dim = params["n_heads"], params["dim"]
    kv_heads, head_dim, count = params.get("n_kv_heads", heads), dim // heads, len(ids)
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    angles = torch.outer(torch.arange(count).float(), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, D / 2)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weight

    def rotated(x: torch.Tensor) -> torch.Tensor:  # (T, H, D)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(-2)

    h = w["tok_embeddings.weight"][ids]
    mask = torch.full((count, count), float("-inf")).triu(1)
    for i in range(params["n_layers"]):
        p = {name.removeprefix(f"layers.{i}."): t for name, t in w.items() if name.startswith(f"layers.{i}.")}
        x = norm(h, p["attention_norm.weight"])
        q = rotated((x @ p["attention.wq.weight"].T).view(count, heads, head_dim)).transpose(0, 1)
        k = rotated((x @ p["attention.wk.weight"].T).view(count, kv_heads, head_dim)).transpose(0, 1)
        v = (x @ p["attention.wv.weight"].T).view(count, kv_heads, head_dim).transpose(0, 1)
        k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
        scores = torch.softmax(q @ k.transpose(1, 2) / head_dim**0.5 + mask, dim=-1)
        h = h + (scores @ v).transpose(0, 1).reshape(count, dim) @ p["attention.wo.weight"].T
        x = norm(h, p["ffn_norm.weight"])
        gate = F.silu(x @ p["feed_forward.w1.weight"].T) * (x @ p["feed_forward.w3.weight"].T)
        h = h + gate @ p["feed_forward.w2.weight"].T
    return norm(h, w["norm.weight"]) @ w["output.weight"].T


@each_grouping
@pytest.mark.parametrize("ranks", [1, 2])
def test_logits_equal_those_of_metas_arithmetic(tmp_path: Path, ranks: int, kv_heads: int) -> None:
    config = config_of({"num_key_value_heads": kv_heads})
    expected = meta_forward(params_of(config), meta_tensors(config), TOKENS).numpy()
    found = logits(write_meta(tmp_path, ranks, num_key_value_heads=kv_heads))
    np.testing.assert_allclose(found, expected, atol=FP32_ROUNDING, rtol=0)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_shards_without_an_index(tmp_path: Path, suffix: str) -> None:
    expected = logits(write(tmp_path / "a"))
    folder = write(tmp_path / "b", 2, suffix=suffix)
    next(folder.glob("*.index.json")).unlink()
    np.testing.assert_array_equal(logits(folder), expected)
    next(folder.glob("*-00002-of-*")).unlink()
    assert refused(folder).endswith("; is the download complete?")


def test_safetensors_win(tmp_path: Path) -> None:
    expected = logits(write(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    np.testing.assert_array_equal(logits(tmp_path), expected)


def test_config_json_wins(tmp_path: Path) -> None:
    expected = logits(write(tmp_path))
    (tmp_path / "params.json").write_text("never opened")
    (tmp_path / "consolidated.00.pth").write_bytes(b"never opened")
    np.testing.assert_array_equal(logits(tmp_path), expected)


@pytest.mark.parametrize(
    ("dim", "changes", "expected"),
    [
        (4096, {"multiple_of": 256}, 11008),  # 7B
        (5120, {"multiple_of": 256}, 13824),  # 13B
        (8192, {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # Llama 2 70B
        (8192, {"multiple_of": 256, "ffn_dim_multiplier": 1.0}, 22016),  # Code Llama 34B
        (4096, {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
    ],
)
def test_intermediate_size_of_the_published_models(
    tmp_path: Path, dim: int, changes: dict[str, Any], expected: int
) -> None:
    params = {**params_of(config_of({})), "dim": dim, "n_heads": 32, "n_layers": 1, **changes}
    (tmp_path / "params.json").write_text(json.dumps(params))
    module = DecoderSource(tmp_path).module()
    assert module.get_parameter("layers.0.mlp.gate_proj.weight").shape == (expected, dim)


def test_config_of_llama_2_7b(tmp_path: Path) -> None:
    """params.json as Meta published it, and what the keys that it lacks fall back to."""
    params = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    shutil.copy(PIECES, tmp_path)
    config = DecoderSource(tmp_path).config()
    assert (config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim) == (4096, 32, 32, 32, 128)
    assert (config.positions, config.bos, config.eos, config.ropes) == (4096, 1, (2,), (Rope.plain(10000.0, 128),))
    assert config.vocabulary == DecoderSource(tmp_path).tokenizer().size == 2048


def test_params_that_later_models_write(tmp_path: Path) -> None:
    params = {**params_of(config_of({})), "rope_theta": 1e6, "max_seq_len": 16384, "use_scaled_rope": False}
    (tmp_path / "params.json").write_text(json.dumps(params))
    config = DecoderSource(tmp_path).config()
    assert (config.ropes[0].theta, config.positions) == (1e6, 16384)


def test_the_description_alone_gives_config_module_and_tokenizer(tmp_path: Path) -> None:
    """A bundle's own copy: no weights."""
    (tmp_path / "checkpoint").mkdir()
    write_meta(tmp_path / "checkpoint", vocab_size=-1)
    shutil.copy(PIECES, tmp_path / "checkpoint")
    source = DecoderSource(tmp_path / "checkpoint")
    assert list(source.description()) == ["params.json", "tokenizer.model"]
    (tmp_path / "copy").mkdir()
    for name, content in source.description().items():
        (tmp_path / "copy" / name).write_bytes(content)
    copy = DecoderSource(tmp_path / "copy")
    assert copy.config() == source.config()
    assert copy.tokenizer().size == source.config().vocabulary
    shapes = [{n: p.shape for n, p in s.module().named_parameters()} for s in (source, copy)]
    assert shapes[0] == shapes[1]
    assert refused(tmp_path / "copy").endswith("consolidated.00.pth: missing; is the download complete?")


def test_why_there_is_no_reference(tmp_path: Path) -> None:
    reason = DecoderSource(write_meta(tmp_path)).reference()
    assert isinstance(reason, str)
    assert "transformers does not read consolidated.*.pth" in reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scaled_rope": True}, "use_scaled_rope = True is not implemented"),
        ({"moe": {"num_experts": 8}}, "moe = .* is not implemented"),
        ({"dim": "16"}, "dim must be a whole number above 0, not '16'"),
        ({"dim": 18}, "dim = 18 is no multiple of n_heads = 4"),
        ({"dim": 20}, "head_dim = 5 is odd"),
        ({"n_kv_heads": 3}, "n_heads = 4 is no multiple of n_kv_heads = 3"),
        ({"n_layers": None}, "n_layers must be a whole number above 0, not None"),
        ({"vocab_size": 0}, "vocab_size must be a whole number above 0, not 0"),
        ({"multiple_of": 0}, "multiple_of must be a whole number above 0, not 0"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier must be a number, not '1.3'"),
        ({"max_seq_len": 1.5}, "max_seq_len must be a whole number above 0, not 1.5"),
    ],
)
def test_params_that_the_module_does_not_implement(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "params.json").write_text(json.dumps({**params_of(config_of({})), **changes}))
    with pytest.raises(CheckpointError, match=message) as caught:
        DecoderSource(tmp_path).config()
    assert str(caught.value).startswith(f"{tmp_path / 'params.json'}: ")
    assert "\n" not in str(caught.value)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        DecoderSource(folder).weights()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_rank(folder: Path, rank: int, change: Callable[[dict[str, torch.Tensor]], object], ranks: int = 2) -> Path:
    tensors = {name: shard_of(name, t, rank, ranks) for name, t in meta_tensors(config_of({})).items()}
    change(tensors)
    file = folder / f"consolidated.{rank:02}.pth"
    torch.save(tensors, file)
    return file


def test_no_params(tmp_path: Path) -> None:
    (write_meta(tmp_path) / "params.json").unlink()
    assert refused(tmp_path) == f"{tmp_path / 'params.json'}: missing; is the download complete?"


def test_vocabulary_without_a_tokenizer(tmp_path: Path) -> None:
    assert "no tokenizer.json or tokenizer.model; copy the model's" in refused(write_meta(tmp_path, vocab_size=-1))


def test_vocabulary_of_another_tokenizer(tmp_path: Path) -> None:
    shutil.copy(PIECES, write_meta(tmp_path, vocab_size=-1))
    assert refused(tmp_path).endswith(
        f"tensor 'tok_embeddings.weight' has shape [{VOCABULARY}, {HIDDEN}], params.json asks for [2048, {HIDDEN}]"
    )


def test_ranks_that_are_missing(tmp_path: Path) -> None:
    (write_meta(tmp_path, 2) / "consolidated.00.pth").rename(tmp_path / "consolidated.02.pth")
    assert refused(tmp_path).endswith("consolidated.00.pth: missing; is the download complete?")
    (tmp_path / "consolidated.02.pth").rename(tmp_path / "consolidated.00.pth")
    (tmp_path / "consolidated.01.pth").unlink()
    assert f"has shape [{VOCABULARY}, {HIDDEN // 2}], params.json asks for [{VOCABULARY}, {HIDDEN}]" in refused(
        tmp_path
    )


def test_rank_that_lacks_a_tensor(tmp_path: Path) -> None:
    file = change_rank(write_meta(tmp_path, 2), 1, lambda t: t.pop("layers.1.feed_forward.w2.weight"))
    assert refused(tmp_path) == f"{file}: no tensor 'layers.1.feed_forward.w2.weight'; is the download complete?"


def test_ranks_of_two_models(tmp_path: Path) -> None:
    name = "layers.0.attention.wo.weight"
    change_rank(write_meta(tmp_path, 2), 1, lambda t: t.update({name: torch.ones(HIDDEN + 1, HIDDEN // 2)}))
    assert refused(tmp_path) == (
        f"tensor 'consolidated.01.pth/{name}' has shape [17, 8], which does not fit [16, 8] of "
        f"'consolidated.00.pth/{name}'; are they of one model?"
    )


def test_intermediate_size_that_the_tensors_do_not_have(tmp_path: Path) -> None:
    params = {**params_of(config_of({})), "multiple_of": 64}
    (write_meta(tmp_path) / "params.json").write_text(json.dumps(params))
    assert "tensor 'layers.0.feed_forward.w1.weight' has shape [44, 16], params.json asks for [64, 16]" in refused(
        tmp_path
    )


def test_damaged_bin_shards(tmp_path: Path) -> None:
    file = write(tmp_path, 3, suffix="bin") / "pytorch_model-00002-of-00003.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert refused(tmp_path) == f"{file}: truncated or damaged; download it again"
    file.unlink()
    assert refused(tmp_path) == f"{file}: missing; is the download complete?"
    file.write_bytes(whole)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": 3}}')
    assert refused(tmp_path).endswith("pytorch_model.bin.index.json: damaged; download it again")


def test_bin_of_another_shape_and_type(tmp_path: Path) -> None:
    tensors = tensors_of(config_of({}))
    write(tmp_path, suffix="bin")
    torch.save({**tensors, "model.norm.weight": torch.ones(HIDDEN + 1)}, tmp_path / "pytorch_model.bin")
    assert "tensor 'model.norm.weight' has shape [17], config.json asks for [16]" in refused(tmp_path)
    torch.save({**tensors, "model.norm.weight": torch.ones(HIDDEN, dtype=torch.int8)}, tmp_path / "pytorch_model.bin")
    assert "tensor 'model.norm.weight' has dtype int8; use one of" in refused(tmp_path)
    del tensors["model.norm.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert "no tensor 'model.norm.weight'; is the download complete?" in refused(tmp_path)
