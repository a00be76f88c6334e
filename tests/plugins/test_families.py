"""Every family computes what transformers does, each of its switches matters, and every pass works on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_families import EVEN, POSITIONS, SIZES, TINY, VOCABULARY, write
from tiny_graphs import listing
from tiny_models import STRUCTURAL
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging

from llmconv import CheckpointError, Recipe, RecipeError, Registry, hookimpl
from llmconv.decoding import Decoder, TorchRunner
from llmconv.encodings import Noise
from llmconv.graph import drop_dead, trace
from llmconv.graph import record as recording
from llmconv.graph.record import record
from llmconv.prepare.resolve import check
from llmconv.sources import Architecture, Family, Keys, Rope
from llmconv.testing import try_pass
from llmconv.weights import Derived, WeightStore
from llmconv_plugins import sources
from llmconv_plugins.passes import Rotate, SplitModel
from llmconv_plugins.sources.decoder import DecoderModule
from llmconv_plugins.sources.decoder_source import DecoderSource
from llmconv_plugins.sources.families import FAMILIES
from llmconv_plugins.sources.families.granite import Granite4

pytestmark = pytest.mark.slow  # transformers alone takes seconds to import

EXACT = 100.0  # dB: float32 sums in another order; measured 115 and more
WRONG = 60.0  # dB: what any switch costs that is broken; measured 45 and less
LENGTHS = (40, 100)
GRAPHS = {"prompt": (3, 9), "token": (1, 9), "whole": (9, 9)}

Array = NDArray[np.float32]


class Saved:
    """A saved checkpoint, and what transformers computes."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.model = name, folder, write(name, folder)
        self.source = DecoderSource(folder)
        self.architecture: Architecture = self.source._layout.describe().architecture

    def expected(self, tokens: list[int]) -> Array:
        with torch.no_grad():
            return np.asarray(self.model(torch.tensor([tokens])).logits[0])

    def ratio(self, tokens: list[int], module: nn.Module, weights: WeightStore) -> float:
        """Signal over difference to transformers, dB."""
        graph = trace(module, len(tokens), len(tokens), "whole")
        found = Decoder([TorchRunner(graph, weights)], None).read(tokens)
        return Noise().add(self.expected(tokens), found).sqnr

    def rebuilt(self, architecture: Architecture) -> nn.Module:
        with torch.device("meta"):
            return DecoderModule(architecture)


def some_tokens(count: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity_warning()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    made: dict[str, Saved] = {}

    def of(name: str) -> Saved:
        if name not in made:
            made[name] = Saved(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_transformers(saved: Callable[[str], Saved], name: str) -> None:
    one = saved(name)
    for count in LENGTHS:
        assert one.ratio(some_tokens(count), one.source.module(), one.source.weights()) > EXACT


@pytest.mark.parametrize("name", TINY)
def test_the_graph_is_that_of_an_export(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = saved(name).source.module()
    inputs = {kind: torch.zeros(1, 3, dtype=torch.int32, device="meta") for kind in ("input_ids", "position_ids")}
    expected = recording._exported(module, inputs)
    drop_dead(expected.graph)
    monkeypatch.delattr(recording, "_exported")  # what cannot be recorded would call it
    assert listing(record(module, inputs)) == listing(expected)


def test_every_model_type_has_a_checkpoint() -> None:
    types = {kind for family in FAMILIES for kind in family.types}
    assert types == {name.partition("-")[0] for name in TINY} | {"gemma3", "mistral3"}


def slower(rope: Rope) -> Rope:
    return replace(rope, frequencies=tuple(0.8 * f for f in rope.frequencies))


# What differs from Llama -> the same without that difference.
SWITCHES: dict[str, Callable[[Architecture], Architecture]] = {
    "ropes": lambda a: replace(a, ropes=tuple(map(slower, a.ropes))),
    "rope_factor": lambda a: replace(a, ropes=tuple(replace(rope, factor=1.0) for rope in a.ropes)),
    "rope_of": lambda a: replace(a, rope_of=(0,) * a.layers),
    "qk_norm_after_rope": lambda a: replace(a, qk_norm_after_rope=False),
    "activation": lambda a: replace(a, activation="gelu" if a.activation == "relu2" else "relu2"),
    "attention_scale": lambda a: replace(a, attention_scale=None),
    "attention_cap": lambda a: replace(a, attention_cap=None),
    "logits_cap": lambda a: replace(a, logits_cap=None),
    "norm": lambda a: replace(a, norm="rms"),
    "qk_norm": lambda a: replace(a, qk_norm=None),
    "norms_after": lambda a: replace(a, norms_after=False),
    "norms_before": lambda a: replace(a, norms_before=False),
    "qkv_bias": lambda a: replace(a, qkv_bias=False),
    "o_bias": lambda a: replace(a, o_bias=False),
    "mlp_bias": lambda a: replace(a, mlp_bias=False),
    "head_bias": lambda a: replace(a, head_bias=False),
}


@pytest.mark.parametrize("name", TINY)
def test_a_switch_that_is_broken_is_seen(saved: Callable[[str], Saved], name: str) -> None:
    one, tokens = saved(name), some_tokens(40)
    for switch, broken in SWITCHES.items():
        if (architecture := broken(one.architecture)) != one.architecture:
            assert one.ratio(tokens, one.rebuilt(architecture), one.source.weights()) < WRONG, switch


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("gemma", "norm_shift", 0.0),
        ("nemotron", "norm_shift", 0.0),
        ("gemma2", "multipliers", lambda _: {}),
        ("granite", "multipliers", lambda _: {}),
        ("cohere2", "multipliers", lambda _: {}),
        ("glm", "paired", False),
        ("ernie4_5", "paired", False),
        ("cohere2", "paired", False),
        ("helium", "paired", False),
        ("phi3", "fused", {"qkv_proj": ("k_proj", "q_proj", "v_proj"), "gate_up_proj": ("up_proj", "gate_proj")}),
    ],
)
def test_a_weight_that_is_read_otherwise_is_seen(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch, name: str, attribute: str, value: Any
) -> None:
    one, tokens = saved(name), some_tokens(40)
    source = DecoderSource(one.folder)
    monkeypatch.setattr(type(source._layout.describe().family), attribute, value)
    layout = source._layout
    names = [parameter for parameter, _ in source.module().named_parameters()]
    opened = layout.open()
    weights = Derived(opened, {parameter: layout.weight(parameter, opened) for parameter in names})
    assert one.ratio(tokens, source.module(), weights) < WRONG


@pytest.mark.parametrize("name", TINY)
def test_passes_leave_the_numbers(saved: Callable[[str], Saved], name: str) -> None:
    """Each pass is compared with the source by the manager."""
    one = saved(name)
    passes = (Rotate(), *STRUCTURAL, SplitModel(parts=2))
    trial = try_pass(passes[-1], one.source.module(), after=passes[:-1], graphs=GRAPHS)
    assert max(trial.report.errors.values()) < 1e-3
    assert not {"sdpa", "capped_attention", "silu", "linear"} & {op for ops in trial.after.values() for op in ops}


# What a model type needs in order to be one that is read.
NEEDED: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        **{"num_local_experts": 0, "layer_types": ["attention"] * 4, "position_embedding_type": "rope"},
        "mamba_n_heads": 8,
    }
}


def minimal(kind: str) -> dict[str, Any]:
    return {**{key: SIZES[key] for key in list(SIZES)[:6]}, **EVEN, **NEEDED.get(kind, {}), "model_type": kind}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.types[0])
def test_what_a_file_leaves_out_is_as_in_transformers(family: type[Family]) -> None:
    kind = family.types[0]
    written = AutoConfig.for_model(kind, **{k: v for k, v in minimal(kind).items() if k != "model_type"}).to_dict()
    whole, least = (family(Keys(Path("config.json"), values)) for values in (written, minimal(kind)))
    assert least.described == replace(whole.described, head_dim=least.described.head_dim, ropes=least.described.ropes)
    if written.get("head_dim"):
        assert least.described == whole.described
    assert least.keys.flag("tie_word_embeddings") == whole.keys.flag("tie_word_embeddings")
    for end in ("bos_token_id", "eos_token_id"):
        assert least.keys.get(end) == whole.keys.get(end), end


@pytest.mark.parametrize(("kind", "key", "value"), [("phi3", "full_attn_mod", 2), ("cohere2", "rotary_pct", 0.5)])
def test_keys_that_say_what_is_computed_anyway(kind: str, key: str, value: object) -> None:
    (family,) = (f for f in FAMILIES if kind in f.types)
    assert family(Keys(Path("config.json"), {**minimal(kind), key: family.always[key]})).described
    with pytest.raises(CheckpointError, match=f"config.json: {key} = {value} is not implemented"):
        assert family(Keys(Path("config.json"), {**minimal(kind), key: value})).described


def test_a_text_model_inside_a_larger_one(tmp_path: Path) -> None:
    write("gemma3_text", tmp_path)
    expected = DecoderSource(tmp_path).config()
    inner = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": inner, "vision_config": {"x": 1}})
    )
    assert DecoderSource(tmp_path).config() == expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["mistral", "ministral3"])
def test_the_text_model_of_one_that_reads_images(tmp_path: Path, kind: str, tied: bool) -> None:
    """Mistral 3's text model is of either family; which table lm_head is, the whole model's file says."""
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 16,
    }
    text = {**SIZES, **TINY["ministral3"], "model_type": kind, "sliding_window": None}
    config = AutoConfig.for_model(
        "mistral3",
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
        if kind == "mistral"
        else text,
        vision_config={**vision, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(1)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    source, tokens = DecoderSource(tmp_path), some_tokens(40)
    reference = source.reference()
    assert isinstance(reference, nn.Module), reference
    with torch.no_grad():
        expected = np.asarray(reference(torch.tensor([tokens]))[0])
    found = Decoder([TorchRunner(trace(source.module(), 40, 40, "whole"), source.weights())], None).read(tokens)
    assert Noise().add(expected, found).sqnr > EXACT
    assert source.config().family == kind


def test_queries_that_grow_end_where_they_begin_to(saved: Callable[[str], Saved]) -> None:
    assert saved("ministral3").source.config().positions == 112


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layer_types": ["attention", "mamba"]}, "layer_types: some layers keep a state"),
        (
            {"layer_types": None},
            "layer_types: some layers keep a state instead of keys and values, or none is described",
        ),
        ({"num_local_experts": 4}, "num_local_experts: mixtures of experts"),
        ({"position_embedding_type": "nope"}, "position_embedding_type = 'nope' is not implemented"),
    ],
)
def test_granite_4_with_states_or_experts_is_refused(changes: dict[str, Any], why: str) -> None:
    values = minimal("granitemoehybrid")
    assert Granite4(Keys(Path("config.json"), values)).described.intermediate == 1024
    with pytest.raises(CheckpointError, match=f"config.json: {why}"):
        assert Granite4(Keys(Path("config.json"), {**values, **changes})).described


def test_a_window_is_the_longest_context(saved: Callable[[str], Saved]) -> None:
    assert saved("gemma2").source.config().window == POSITIONS
    assert saved("exaone4-full").source.config().window is None
    assert saved("qwen2").source.config().window is None


def test_a_context_beyond_the_window_is_refused(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    config = json.loads((saved("gemma2").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    recipe = {
        "model": {"checkpoint": str(tmp_path)},
        "target": {"name": "Galaxy S23 Ultra"},
        "graphs": {"prompt": {"ar": 16, "context": 65}},
        "passes": [{"name": "kv_cache_io"}],
        "backend": {"name": "onnx"},
    }
    with pytest.raises(
        RecipeError, match=r"graphs\.prompt\.context = 65, but some layers see a window of 64 positions"
    ):
        check(Recipe.from_dict(recipe, tmp_path), Registry.load())
    recipe["graphs"] = {"prompt": {"ar": 16, "context": 64}}
    assert check(Recipe.from_dict(recipe, tmp_path), Registry.load()).config.window == 64


def test_longrope_ends_where_its_other_factors_begin(saved: Callable[[str], Saved]) -> None:
    assert saved("phi3-longrope").source.config().positions == POSITIONS - 8


@pytest.mark.parametrize(
    ("kind", "why"), [("qwen3_moe", "mixture of experts"), ("lfm2", "keep a state"), ("gemma3n", "share")]
)
def test_what_is_outside_is_refused_with_the_reason(tmp_path: Path, kind: str, why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"model_type = '{kind}' is not implemented: .*{why}"):
        DecoderSource(tmp_path).config()


class Own(Family):
    """A family of somebody else's."""

    types = ("own",)


class Other(Family):
    """Claims a type that is taken."""

    types = ("llama", "other")


class Plugin:
    """Somebody else's hooks."""

    @hookimpl
    def register_families(self) -> list[type[Family]]:
        return [Own, Other]


def test_a_plugin_brings_families(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry.of(sources, Plugin())
    (tmp_path / "config.json").write_text(json.dumps({**minimal("own"), "max_position_embeddings": 77}))
    found = registry.source("decoder", {"checkpoint": tmp_path}).config()
    assert (found.family, found.positions) == ("own", 77)
    assert registry.families["other"] is Other
    assert "llama" not in registry.families
    assert "model type 'llama' comes from both llmconv_plugins.sources and Plugin; uninstall one" in caplog.text


@pytest.mark.parametrize("wrong", [object, type("NoTypes", (Family,), {"types": "llama"})])
def test_what_is_no_family_is_left_out_and_said(wrong: type, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong:
        @hookimpl
        def register_families(self) -> list[type]:
            return [wrong]

    assert not Registry.of(Wrong()).families
    assert wrong.__name__ in caplog.text
