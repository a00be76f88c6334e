"""Adapters merged at reading: by the formulas of LoRA, and as peft's `merge_and_unload` where peft is installed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import HIDDEN, VOCABULARY, config_of, tensors_of, write, write_meta

from llmconv import CheckpointError, Recipe, Registry
from llmconv.cli.options import changes
from llmconv_plugins.sources import DecoderSource

LAYER = "base_model.model.model.layers.0."
Q, DOWN = "layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"
INNER, RANK = 44, 3


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LOW_RANK = {
    f"{LAYER}self_attn.q_proj.lora_A.weight": drawn(RANK, HIDDEN),
    f"{LAYER}self_attn.q_proj.lora_B.weight": drawn(HIDDEN, RANK),
}


def adapter(folder: Path, tensors: dict[str, torch.Tensor] = LOW_RANK, **config: Any) -> Path:
    folder.mkdir()
    keys = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "base_model_name_or_path": "someone/model", **config}
    (folder / "adapter_config.json").write_text(json.dumps(keys))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base")


def change(base: Path, *adapters: Path, weight: float = 1.0, of: str = Q, **config: Any) -> torch.Tensor:
    """What adapters add to a weight."""
    merged = DecoderSource(base, dict.fromkeys(adapters, weight)).weights().read(f"{of}.weight")
    return merged - DecoderSource(base).weights().read(f"{of}.weight")


def product(tensors: dict[str, torch.Tensor] = LOW_RANK) -> torch.Tensor:
    a, b = (tensors[f"{LAYER}self_attn.q_proj.lora_{x}.weight"] for x in "AB")
    return b @ a


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / RANK**0.5),
        ({"alpha_pattern": {"q_proj": 12}}, 4.0),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 12, "v_proj": 9}}, 2.0),
        ({"r": 8, "rank_pattern": {r".*\.0\.self_attn\.q_proj": RANK}}, 2.0),
    ],
)
def test_scale_follows_rank_and_alpha(tmp_path: Path, base: Path, config: dict[str, Any], scale: float) -> None:
    torch.testing.assert_close(change(base, adapter(tmp_path / "a", **config)), scale * product(), rtol=1e-5, atol=1e-5)


def test_several_add_up_by_their_weights(tmp_path: Path, base: Path) -> None:
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b", use_rslora=True)
    expected = 0.25 * (2.0 + 6 / RANK**0.5) * product()
    torch.testing.assert_close(change(base, one, other, weight=0.25), expected, rtol=1e-5, atol=1e-5)
    assert not change(base, one, of=DOWN).any()


def test_dora_scales_rows_to_their_magnitudes(tmp_path: Path, base: Path) -> None:
    magnitude = drawn(HIDDEN).abs()
    tensors = {**LOW_RANK, f"{LAYER}self_attn.q_proj.lora_magnitude_vector": magnitude}
    made = DecoderSource(base, {adapter(tmp_path / "a", tensors, use_dora=True): 1.0}).weights().read(f"{Q}.weight")
    whole = tensors_of(config_of({}))["model.layers.0.self_attn.q_proj.weight"] + 2.0 * product()
    torch.testing.assert_close(made, whole / whole.norm(dim=1, keepdim=True) * magnitude[:, None])


def test_modules_to_save_replace_and_the_head_stays_where_the_embedding_alone_is_replaced(tmp_path: Path) -> None:
    tied, table = write(tmp_path / "base", tie_word_embeddings=True), drawn(VOCABULARY, HIDDEN)
    saved = {"base_model.model.model.embed_tokens.weight": table, **LOW_RANK}
    weights = DecoderSource(tied, {adapter(tmp_path / "a", saved): 1.0}).weights()
    assert torch.equal(weights.read("embed_tokens.weight"), table)
    before = tensors_of(config_of({"tie_word_embeddings": True}))["model.embed_tokens.weight"]
    assert torch.equal(weights.read("lm_head.weight"), before)
    head = {"base_model.model.lm_head.modules_to_save.default.weight": table}
    weights = DecoderSource(tied, {adapter(tmp_path / "b", head): 1.0}).weights()
    assert torch.equal(weights.read("lm_head.weight"), table)


REFUSED = [
    ({"peft_type": "IA3"}, LOW_RANK, "peft_type = 'IA3'"),
    ({"init_lora_weights": "pissa"}, LOW_RANK, "init_lora_weights = 'pissa'"),
    ({"layer_replication": [[0, 2]]}, LOW_RANK, "layer_replication"),
    ({"r": 8}, LOW_RANK, "is of rank 3, adapter_config.json says 8"),
    ({}, {f"{LAYER}self_attn.w_proj.lora_B.weight": drawn(HIDDEN, RANK)}, "changes 'model.layers.0.self_attn.w_proj"),
    ({}, {f"{LAYER}self_attn.q_proj.lora_B.weight": drawn(HIDDEN, RANK)}, "without"),
    ({"use_dora": True}, LOW_RANK, "no 'base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector'"),
    ({}, {"base_model.model.score.weight": drawn(2, HIDDEN)}, "changes 'score.weight', which the checkpoint lacks"),
]


@pytest.mark.parametrize(("config", "tensors", "said"), REFUSED, ids=[said[:20] for _, _, said in REFUSED])
def test_what_is_not_merged_is_refused_by_name(
    tmp_path: Path, base: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(CheckpointError) as refused:
        DecoderSource(base, {adapter(tmp_path / "a", tensors, **config): 1.0}).weights()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_in_place_of_an_adapter(base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter, without adapter_config\.json; give a folder"):
        DecoderSource(base, {base: 1.0}).weights()


def test_replacing_adapters_have_no_weight(tmp_path: Path, base: Path) -> None:
    saved = adapter(tmp_path / "a", {"base_model.model.lm_head.weight": drawn(VOCABULARY, HIDDEN)})
    with pytest.raises(CheckpointError, match="give it alone, without a weight"):
        DecoderSource(base, {saved: 0.5}).weights()


@pytest.mark.parametrize("grown", ["A", "B"])
def test_an_adapter_of_a_larger_model_is_refused(tmp_path: Path, base: Path, grown: str) -> None:
    name = f"{LAYER}self_attn.q_proj.lora_{grown}.weight"
    tensors = {**LOW_RANK, name: drawn(*(n if n == RANK else 2 * HIDDEN for n in LOW_RANK[name].shape))}
    with pytest.raises(CheckpointError, match=r"the checkpoint's weight is \[16, 16\]: is it of another model\?"):
        change(base, adapter(tmp_path / "a", tensors))


def test_other_layouts_take_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Hugging Face's layout alone"):
        DecoderSource(write_meta(tmp_path / "base"), {adapter(tmp_path / "a"): 1.0}).config()


def test_an_adapter_alone_names_its_base_and_one_beside_a_base_is_said(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = adapter(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"an adapter alone, of someone/model; .* --adapter"):
        DecoderSource(alone).config()
    for file in alone.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert not change(base).any()
    assert "lies beside the checkpoint and is not merged" in caplog.text
    caplog.clear()
    assert change(base, base).any()


def test_recipes_and_the_command_line_name_adapters(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    rest = '[target]\nname = "Galaxy S23 Ultra"\n[graphs.token]\nar = 1\ncontext = 8\n[backend]\nname = "onnx"\n'
    file.write_text(f'[model]\ncheckpoint = "base"\nadapter = "one"\n{rest}')
    assert Recipe.load(file).model.adapters == {tmp_path / "one": 1.0}
    given = changes(None, None, None, [f"{tmp_path}/two=0.5", str(tmp_path / "thr=ee")])
    loaded = Recipe.load(file, given)
    assert loaded.model.adapters == {tmp_path / "two": 0.5, tmp_path / "thr=ee": 1.0}
    assert Recipe.from_dict(loaded.to_dict()).model.adapters == loaded.model.adapters
    source = Registry.load().source("decoder", loaded.model.source_options(tmp_path))
    assert source.adapters == loaded.model.adapters


PEFT = {
    "plain": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {"up_proj": 3},
        "use_rslora": True,
    },
    "dora": {"target_modules": ["k_proj", "gate_proj"], "use_dora": True},
    "saved": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "bias": {"target_modules": ["q_proj"], "bias": "all"},
    "lora_bias": {"target_modules": ["q_proj"], "lora_bias": True},
}


@pytest.mark.filterwarnings("ignore")  # the oracle's: what peft says of transformers, and of shards
@pytest.mark.parametrize("kind", PEFT)
def test_equal_to_merge_and_unload(tmp_path: Path, kind: str) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = write(tmp_path / "base", attention_bias="bias" in kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    trained = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **PEFT[kind]))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    trained.save_pretrained(tmp_path / "a")
    source = DecoderSource(base, {tmp_path / "a": 1.0})
    weights, merged = source.weights(), trained.merge_and_unload().state_dict()
    for name, parameter in source.module().named_parameters():
        expected = merged[name if name.startswith("lm_head") else f"model.{name}"]
        assert parameter.shape == expected.shape
        torch.testing.assert_close(weights.read(name), expected, rtol=1e-5, atol=1e-5)
