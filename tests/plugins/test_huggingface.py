"""The source of decoders: the same numbers as transformers from every layout, and one line for whatever is wrong."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import BASE, HIDDEN, VOCABULARY, tensors_of, write
from tiny_models import FP32_ROUNDING

from llmconv import CheckpointError, RecipeError, Registry, Sampling
from llmconv.decoding import Decoder, TorchRunner
from llmconv.graph import trace
from llmconv.recipe import shipped
from llmconv.sources import ModelConfig, Rope
from llmconv_plugins import sources
from llmconv_plugins.sources.decoder_source import DecoderSource

TOKENS = 7


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = tensors_of(json.loads((folder / "config.json").read_text()))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"attention_bias": True},
        {"head_dim": 6},
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"mlp_bias": True, "hidden_act": "gelu"},
    ],
    ids=["mha", "gqa", "mqa_tied", "bias", "head_dim", "rope_theta", "rope_parameters", "rope_legacy_type", "mlp_bias"],
)
def test_logits_equal_those_of_transformers(tmp_path: Path, changes: dict[str, Any], shards: int) -> None:
    source = DecoderSource(write(tmp_path, shards, **changes))
    tokens = [1, *torch.randint(VOCABULARY, (TOKENS - 1,), generator=torch.Generator().manual_seed(3)).tolist()]
    graph = trace(source.module(), TOKENS, TOKENS, "prompt")
    logits = Decoder([TorchRunner(graph, source.weights())], None).read(tokens)
    reference = source.reference()
    assert not isinstance(reference, str)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens]))[0].numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=FP32_ROUNDING, rtol=0)


def test_rope_theta_is_part_of_the_comparison(tmp_path: Path) -> None:
    tokens, rows = [1, 5, 9, 3, 7, 11, 2], []
    for theta in (500.0, 10000.0):
        source = DecoderSource(write(tmp_path, rope_theta=theta))
        graph = trace(source.module(), TOKENS, TOKENS, "prompt")
        rows.append(Decoder([TorchRunner(graph, source.weights())], None).read(tokens))
    assert np.abs(rows[0] - rows[1]).max() > 10 * FP32_ROUNDING


def test_config_gives_what_hosts_need(tmp_path: Path) -> None:
    config = DecoderSource(write(tmp_path, num_key_value_heads=2, eos_token_id=[2, 5], head_dim=6)).config()
    assert config == ModelConfig(
        family="llama",
        layers=2,
        hidden=HIDDEN,
        heads=4,
        kv_heads=2,
        head_dim=6,
        vocabulary=VOCABULARY,
        positions=64,
        window=None,
        bos=1,
        eos=(2, 5),
        ropes=(Rope.plain(10000.0, 6),),
    )


def test_sizes_that_config_leaves_out_follow_from_others(tmp_path: Path) -> None:
    write(tmp_path)
    config = {key: value for key, value in BASE.items() if key not in ("num_key_value_heads", "eos_token_id")}
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": None}))
    found = DecoderSource(tmp_path).config()
    assert (found.kv_heads, found.head_dim, found.eos) == (4, 4, (2,))


def test_ends_of_text_are_those_of_the_generation_config(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=2)
    for given, eos in ((5, (5,)), ([5, 2, 7], (5, 2, 7)), (None, (2,))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        source = DecoderSource(tmp_path)
        assert source.config().eos == source.config().eos == eos
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must be a whole number"):
        DecoderSource(tmp_path).config()


def test_a_bundle_keeps_what_talking_needs(tmp_path: Path) -> None:
    write(tmp_path)
    files = ["config.json", "tokenizer.model"]
    shutil.copy(shipped.folder() / "tiny_llama" / "tokenizer.model", tmp_path)
    assert list(DecoderSource(tmp_path).description()) == files
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
        files.append(name)
    assert sorted(DecoderSource(tmp_path).description()) == sorted(files)


def test_a_tied_lm_head_is_a_second_name_for_the_embedding(tmp_path: Path) -> None:
    weights = DecoderSource(write(tmp_path, tie_word_embeddings=True)).weights()
    assert torch.equal(weights.read("lm_head.weight"), weights.read("embed_tokens.weight"))
    assert torch.equal(weights.read("lm_head.weight", slice(3, 5)), weights.read("embed_tokens.weight")[3:5])


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    write(tmp_path)
    change_tensors(tmp_path, lambda t: t.update({name: value.bfloat16() for name, value in t.items()}))
    read = DecoderSource(tmp_path).weights().read("model.norm.weight".removeprefix("model."))
    assert read.dtype == torch.float32
    assert torch.equal(read, tensors_of(BASE)["model.norm.weight"].bfloat16().float())


def test_the_module_holds_no_data(tmp_path: Path) -> None:
    assert {p.device.type for p in DecoderSource(write(tmp_path)).module().parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor must be a number, not None"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "RoPE of kind 'spiral' is not implemented"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
            "short_factor must be a list of 2 numbers, not a list of 1",
        ),
        ({"hidden_act": "leaky_relu"}, "hidden_act = 'leaky_relu' is not implemented"),
        ({"model_type": "mixtral"}, "model_type = 'mixtral' is not implemented: it is a mixture of experts"),
        ({"model_type": "lama"}, "model_type = 'lama' is not implemented: no family knows it; 'llmconv families'"),
        ({"model_type": None}, "model_type = None is not implemented"),
        ({"model_type": ["llama"]}, r"model_type = \['llama'\] is not implemented: no family knows it"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling must be a number above 0, not 0"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a number above 0, not 0"),
        ({"rope_theta": -1.0}, "rope_theta must be a number above 0, not -1.0"),
        ({"mlp_bias": "yes"}, "mlp_bias must be true or false, not 'yes'"),
        ({"attention_sinks": 4}, "attention_sinks = 4 is not implemented"),
        ({"layer_types": ["full_attention", "conv"]}, "layer_types = .* is not implemented"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.quant_method = None is not implemented"),
        ({"hidden_size": "16"}, "hidden_size must be a whole number above 0, not '16'"),
        ({"hidden_size": 16.5}, "hidden_size must be a whole number above 0, not 16.5"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a whole number above 0, not -1"),
        ({"num_attention_heads": True}, "num_attention_heads must be a whole number above 0, not True"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0, not 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number above 0, not 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is no multiple of num_key_value_heads = 3"),
        ({"head_dim": 5}, "head_dim = 5 is odd"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, not 'small'"),
        ({"rope_theta": "big"}, "rope_theta must be a number, not 'big'"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a whole number or a list of them, not '</s>'"),
        ({"eos_token_id": [2, "x"]}, r"eos_token_id must be a whole number or a list of them, not \[2, 'x'\]"),
        ({"bos_token_id": "<s>"}, "bos_token_id must be a whole number, not '<s>'"),
        ({"rope_parameters": [1]}, r"rope_parameters must be a table, not \[1\]"),
    ],
)
def test_config_that_the_module_does_not_implement(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **changes}))
    with pytest.raises(CheckpointError, match=message) as caught:
        DecoderSource(tmp_path).config()
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_size_that_config_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in BASE.items() if k != "vocab_size"}))
    with pytest.raises(CheckpointError, match="vocab_size must be a whole number above 0, not None"):
        DecoderSource(tmp_path).config()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[1]", "not a table of keys"), ("\udc80", "not JSON")]
)
def test_config_that_is_no_json_object(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=f"config.json: {message}") as caught:
        DecoderSource(tmp_path).config()
    assert "\n" not in str(caught.value)


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder; set model"):
        DecoderSource(tmp_path / "nowhere").config()
    with pytest.raises(CheckpointError, match=r"config\.json: missing; is the download complete\?"):
        DecoderSource(tmp_path).config()


def drop_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def truncate_shard(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def truncate_header(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:20])


def empty_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"")


def break_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [')


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def index_of_elsewhere(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pointer_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def unknown_dtype(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].replace(b'"F32"', b'"F8X"', 1)
    file.write_bytes(data[:8] + header + data[8 + length :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, r"00002-of-00003\.safetensors: missing; is the download complete\?"),
        (truncate_shard, r"00002-of-00003\.safetensors: truncated: tensor '.*' ends at byte \d+ of \d+"),
        (truncate_header, r"00002-of-00003\.safetensors: truncated inside its header; download it again"),
        (empty_shard, r"00002-of-00003\.safetensors: not a safetensors file; download it again"),
        (break_index, r"index\.json: damaged; download it again"),
        (index_of_elsewhere, r"index\.json: names '\.\./other/model\.safetensors', which is no file of this folder"),
        (pointer_index, r"index\.json: a pointer of Git LFS, not the file itself; run 'git lfs pull'"),
        (empty_index, r"index\.json: damaged; download it again"),
        (unknown_dtype, r"00002-of-00003\.safetensors: tensor '.*' has dtype F8X; use one of F64, F32, F16, BF16"),
    ],
)
def test_damaged_shards(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(write(tmp_path, shards=3))
    with pytest.raises(CheckpointError, match=message) as caught:
        DecoderSource(tmp_path).weights()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "no tensor 'model.layers.1.mlp.up_proj.weight'"),
        (lambda t: t.pop("lm_head.weight"), "no tensor 'lm_head.weight'; is the download complete"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(HIDDEN + 1)}),
            r"tensor 'model.norm.weight' has shape \[17\], config.json asks for \[16\]",
        ),
    ],
)
def test_tensors_that_are_missing_or_misshapen(tmp_path: Path, change: Callable[..., object], message: str) -> None:
    change_tensors(write(tmp_path), change)
    with pytest.raises(CheckpointError, match=message) as caught:
        DecoderSource(tmp_path).weights()
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path: Path) -> None:
    (write(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing; is the download complete"):
        DecoderSource(tmp_path).weights()


def test_missing_and_damaged_tokenizer(tmp_path: Path) -> None:
    source = DecoderSource(write(tmp_path))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json or tokenizer\.model; copy the model's") as caught:
        source.tokenizer()
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer that can be read") as caught:
        source.tokenizer()
    assert "\n" not in str(caught.value)


def test_options() -> None:
    registry = Registry.of(sources)
    with pytest.raises(RecipeError, match="no option 'checkpoints'; did you mean 'checkpoint'"):
        registry.create("source", "decoder", {"checkpoints": "x"})
    with pytest.raises(RecipeError, match="source 'decoder': option 'checkpoint' is missing"):
        registry.create("source", "decoder", {})
    assert registry.create("source", "decoder", {"checkpoint": "x"}) == DecoderSource(Path("x"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling()),  # of no account where it does not sample
        ({"do_sample": True}, Sampling(1.0, 50, 1.0)),  # as transformers' defaults are
        ({"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9}, Sampling(0.6, 0, 0.9)),
        ({"do_sample": True, "temperature": None, "top_k": 7}, Sampling(1.0, 7, 1.0)),
        ({"do_sample": True, "repetition_penalty": 1.1}, Sampling(1.0, 50, 1.0, repetition_penalty=1.1)),
        ({"repetition_penalty": 1.2}, Sampling(repetition_penalty=1.2)),
    ],
)
def test_tokens_are_chosen_as_the_generation_config_asks(tmp_path: Path, given: Any, expected: Sampling) -> None:
    write(tmp_path)
    if given is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(given))
    assert DecoderSource(tmp_path).config().sampling == expected


def test_null_is_no_bos_and_no_eos(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "bos_token_id": None, "eos_token_id": None}))
    found = DecoderSource(tmp_path).config()
    assert (found.bos, found.eos) == (None, ())


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 7.0}, 7.0),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, 9.0),
        ({"rope_scaling": {}}, 10000.0),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 7.0}, 7.0),
    ],
)
def test_bases_of_rope(tmp_path: Path, changes: dict[str, Any], theta: float) -> None:
    config = {key: value for key, value in BASE.items() if key != "rope_theta"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes, "hidden_act": "swish"}))
    assert DecoderSource(tmp_path).config().ropes == (Rope.plain(theta, 4),)


def test_an_adapter_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(CheckpointError, match="an adapter alone, of some/base; give that model's folder"):
        DecoderSource(tmp_path).config()


def test_an_index_that_is_left_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert DecoderSource(tmp_path).weights().shape("lm_head.weight")
    assert "names files that are not there; model.safetensors is read instead" in caplog.text


def test_a_stored_lm_head_is_not_tied(tmp_path: Path) -> None:
    """As transformers 5 reads it."""
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = DecoderSource(tmp_path).weights()
    assert not torch.equal(weights.read("lm_head.weight"), weights.read("embed_tokens.weight"))


def test_shards_of_two_sets_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert DecoderSource(tmp_path).weights().shape("norm.weight")
    (tmp_path / "model-00001-of-00003.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="shards of sets of 00002 and of 00003"):
        DecoderSource(tmp_path).weights()
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: missing"):
        DecoderSource(tmp_path).weights()


def test_of_a_tied_pair_the_head_alone_may_be_stored(tmp_path: Path) -> None:
    write(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    weights = DecoderSource(tmp_path).weights()
    assert torch.equal(weights.read("embed_tokens.weight"), table)
    assert torch.equal(weights.read("lm_head.weight"), table)


def test_a_decoder_that_was_saved_without_its_head(tmp_path: Path) -> None:
    write(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    weights = DecoderSource(tmp_path).weights()
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(weights.read(name), tensors["model.embed_tokens.weight"])
    assert torch.equal(weights.read("norm.weight"), tensors["model.norm.weight"])


def test_files_behind_links_are_read_and_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    real, snapshot = write(tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert torch.equal(
        DecoderSource(snapshot).weights().read("norm.weight"), DecoderSource(real).weights().read("norm.weight")
    )
    (real / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing; is the download complete"):
        DecoderSource(snapshot).weights()
