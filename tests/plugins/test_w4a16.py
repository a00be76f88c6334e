"""w4a16: which encoding each value and weight has, and where keys and values change width."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny_models import (
    AR,
    CONTEXT,
    HEADS,
    KV_HEADS,
    LAYERS,
    SIZES,
    STRUCTURAL,
    calibrated_model,
    llama,
    named,
    nodes,
    quantized,
    samples,
)

from llmconv import PassError, RecipeError, Registry
from llmconv.decoding import MASKED, Decoder, TorchRunner
from llmconv.encodings import Encoding, Encodings, WeightEncoding
from llmconv.graph import Graph, Model, aten, is_weight, name_of, value_of
from llmconv.passes import PassContext, PassManager
from llmconv.quantization import CALIBRATION, Line, Nearest, nearest
from llmconv.sources import Architecture
from llmconv.weights import DictStore
from llmconv_plugins import passes
from llmconv_plugins.passes import W4A16, SplitModel, w4a16
from llmconv_plugins.passes.masking import mask_ranges, masked_sums
from llmconv_plugins.sources.decoder import DecoderModule

REQUANTIZE = torch.ops.llmconv.requantize.default
KV_OF_LAYER_0 = {
    "key": [
        "past_key_0_in",
        "past_key_0_in.h1",
        "layers.0.self_attn.key.h1.kv",
        "layers.0.self_attn.keys.h1",
        "past_key_0_out",
    ],
    "value": [
        "past_value_0_in",
        "past_value_0_in.h1",
        "layers.0.self_attn.transpose_2.h1.kv",
        "layers.0.self_attn.values.h1",
        "past_value_0_out",
    ],
}


@cache
def model() -> Model:
    """With a prompt graph with past, one without, and token; look and leave it as it is."""
    return quantized(prompt=(AR, CONTEXT), whole=(CONTEXT, CONTEXT), token=(1, CONTEXT))


def values() -> dict[str, Encoding]:
    return model().encodings.values


def weights() -> dict[str, WeightEncoding]:
    return model().encodings.weights


def test_every_float_value_of_every_graph_has_an_encoding() -> None:
    for graph in model().graphs.values():
        every = [n for part in graph.parts for n in part.graph.nodes if n.op != "output" and not is_weight(n)]
        floats = {name_of(n) for n in every if value_of(n).is_floating_point()}
        assert len(floats) > 100
        assert floats <= values().keys()


def test_values_are_uint16_and_only_the_cache_is_uint8() -> None:
    narrow = {name for name, e in values().items() if e.bits == 8}
    assert all(e.bits in (8, 16) for e in values().values())
    assert narrow == {
        n for n in values() if n.startswith("past_") or ".keys" in n or ".values" in n or n.endswith(".kv")
    }


def test_weights_are_int4_but_lm_head_int8_and_embedding_and_norms_uint16() -> None:
    layer = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    layer += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    norms = ("input_layernorm", "post_attention_layernorm")
    expected = {f"layers.{i}.{m}.weight": WeightEncoding(4) for i in range(LAYERS) for m in layer}
    expected |= {f"layers.{i}.{m}.weight": WeightEncoding(16) for i in range(LAYERS) for m in norms}
    expected |= {"norm.weight": WeightEncoding(16), "lm_head.weight": WeightEncoding(8)}
    expected["embed_tokens.weight"] = WeightEncoding(16, encoding=values()["embed_tokens"])
    assert weights() == expected
    assert all(e.per_row == (e.bits < 16) for e in weights().values())


def test_the_embedding_shares_its_encoding_with_the_rows_it_gives() -> None:
    table = model().weights.read("embed_tokens.weight")
    encoding = values()["embed_tokens"]
    restored = encoding.dequantize(encoding.quantize(table))
    assert (
        float((restored - table).abs().max()) <= encoding.scale
    )  # the whole table is in range, not the rows seen alone


@pytest.mark.parametrize("what", KV_OF_LAYER_0)
def test_one_symmetric_encoding_from_past_to_output(what: str) -> None:
    (encoding,) = {values()[name] for name in KV_OF_LAYER_0[what]}
    assert (encoding.bits, encoding.zero_point) == (8, 128)
    other = {"key": "value", "value": "key"}[what]
    assert encoding not in {values()[name] for name in KV_OF_LAYER_0[other]}
    assert values()[f"past_{what}_1_in"] != encoding  # each layer has its own


def test_the_cache_holds_the_largest_key_that_calibration_saw() -> None:
    largest = 0.0

    def observe(node: torch.fx.Node, value: torch.Tensor) -> None:
        nonlocal largest
        if name_of(node) == "past_key_0_out":
            largest = max(largest, float(value.abs().max()))

    graph = model().graphs[CALIBRATION]
    decoder = Decoder([TorchRunner(graph, model().weights, observer=observe)], graph.host_tables())
    for sample in samples():
        decoder.reset()
        decoder.read(sample)
    whole = quantized(W4A16(kv_range="min-max")).encodings.values
    assert whole["past_key_0_out"].scale * 127 == pytest.approx(largest, rel=1e-5)  # the scale is float32
    assert values()["past_key_0_out"].scale < whole["past_key_0_out"].scale  # where a few are clipped, at less error
    sixteen = (quantized(W4A16(kv_bits=16, kv_range=rule)).encodings.values for rule in ("min-max", "mse"))
    assert len({v["past_key_0_out"] for v in sixteen}) == 1


@pytest.mark.parametrize("graph", ["prompt", "whole", "token", CALIBRATION])
def test_keys_are_requantized_after_rope_and_values_after_their_projection(graph: str) -> None:
    found = list(nodes(model().graphs[graph], REQUANTIZE))
    assert len(found) == LAYERS * 2 * KV_HEADS
    made_by = [name_of(computed(n.args[0])) for n in found]
    assert sorted(made_by) == sorted(
        f"layers.{i}.self_attn.{op}.h{g}"
        for i in range(LAYERS)
        for op in ("k_rope.cat", "v_proj")
        for g in range(KV_HEADS)
    )
    for node in found:
        assert values()[name_of(node.args[0])].bits == 16
        assert values()[name_of(node)].bits == 8
        assert list(node.args[0].users) == [node]  # attention and the cache both read the narrow value


def computed(node: torch.fx.Node) -> torch.fx.Node:
    """Back through transposes to the op that computes a value."""
    while node.target in (aten.permute.default, aten.transpose.int):
        node = node.args[0]
    return node


def test_attention_reads_the_narrow_keys_and_values() -> None:
    for name in ("prompt", "whole"):
        graph = model().graphs[name]
        scores, out = named(graph, "layers.0.self_attn.sdpa.h2.matmul"), named(graph, "layers.0.self_attn.sdpa.h2")
        assert [values()[name_of(x)].bits for x in scores.args] == [16, 8]
        assert [values()[name_of(x)].bits for x in out.args] == [16, 8]


def test_what_is_known_is_fixed_not_calibrated() -> None:
    step = 1 / 65535
    mask, cos, sin = (values()[n] for n in ("attention_mask", "position_ids_cos", "position_ids_sin"))
    assert (mask.scale, mask.zero_point) == (pytest.approx(100 * step), 65535)
    assert cos == sin
    assert (cos.scale, cos.zero_point) == (pytest.approx(2 * step), pytest.approx(32768, abs=1))
    graph = model().graphs["prompt"]
    for op, count in ((aten.softmax.int, LAYERS * HEADS), (aten.sigmoid.default, LAYERS)):
        fixed = [values()[name_of(n)] for n in nodes(graph, op)]
        assert len(fixed) == count
        assert all((e.scale, e.zero_point) == (pytest.approx(step), 0) for e in fixed)


def test_the_mask_reaches_below_scores_that_spread_widely() -> None:
    made, seen = quantized(), {"attention_mask": (MASKED, 0.0)}
    sums = dict(masked_sums(made))
    assert len(sums) == LAYERS * HEADS
    for name, scores in sums.items():
        seen |= {scores: (-10.0, 10.0), name: (MASKED, 10.0)}
    assert set(mask_ranges(made, seen).values()) == {(-100.0, 0.0), (-110.0, 10.0)}
    seen[scores] = (-400.0, 300.0)
    found = mask_ranges(made, seen)
    assert found["attention_mask"] == (-730.0, 0.0)  # hides the lowest as well as the highest
    assert found[name] == (-1130.0, 10.0)


def test_movement_keeps_the_encoding() -> None:
    movement = (aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.cat.default)
    for graph in model().graphs.values():
        moved = [n for op in movement for n in nodes(graph, op) if not is_weight(n)]
        assert len(moved) > 50
        for node in moved:
            assert {values()[name_of(x)] for x in node.all_input_nodes} == {values()[name_of(node)]}


def test_the_hidden_state_has_one_encoding_on_both_sides_of_a_cut() -> None:
    split = quantized(split=SplitModel(parts=2))
    for graph in split.graphs.values():
        assert len(graph.parts) == 2
        assert name_of(graph.parts[1].graph.find_nodes(op="placeholder")[0]) in split.encodings.values
    assert split.encodings.values["layers.0.add_1"].bits == 16
    assert "layers.1.self_attn.v_proj.h0" in split.encodings.values


def test_calibrated_once_for_all_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Graph] = []
    calibrate = w4a16.calibrate

    def count(model: Model, *args: object) -> object:
        seen.append(model.graphs[CALIBRATION])
        return calibrate(model, *args)

    monkeypatch.setattr(w4a16, "calibrate", count)
    found = quantized(prompt=(AR, CONTEXT), token=(1, CONTEXT))
    assert [graph.name for graph in seen] == [CALIBRATION]
    prompt, token = ({name_of(n) for n in nodes(found.graphs[name])} for name in ("prompt", "token"))
    assert prompt == token  # one entry a name, whichever graph it stands in
    assert {name: found.encodings.values[name] for name in prompt & values().keys()} == {
        name: values()[name] for name in prompt & values().keys()
    }


def test_encodings_that_are_there_already_are_kept() -> None:
    given = calibrated_model(llama())
    given.encodings = kept = Encodings({"logits": Encoding(16, 1.0, 0)})
    del given.graphs[CALIBRATION]
    PassManager([*STRUCTURAL, W4A16()]).run(given)
    assert given.encodings is kept
    assert len(kept.values) == 1
    assert len(list(nodes(given.graphs["token"], REQUANTIZE))) == LAYERS * 2 * KV_HEADS


def sqnr(quantized: Model) -> float:
    """Signal to quantization noise of the logits of a calibration sample, dB."""
    graph = quantized.graphs["token"]
    rope, tokens = graph.host_tables(), samples()[0]
    encodings = quantized.encodings.weights
    found = {n: nearest(quantized.weights.read(n), e) for n, e in encodings.items()} | quantized.encodings.quantized
    store = DictStore({n: encoded.dequantize() for n, encoded in found.items()})
    expected = Decoder([TorchRunner(graph, quantized.weights)], rope).read(tokens)
    found = Decoder([TorchRunner(graph, store, quantized.encodings)], rope).read(tokens)
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


def test_more_bits_are_closer_to_float() -> None:
    four, eight = sqnr(model()), sqnr(quantized(W4A16(weight_bits=8, kv_bits=16)))
    assert four > 6  # 4 bits on weights without structure; noise alone would give 0
    assert eight > four + 15  # 4 bits more are 24 dB, less what 16-bit activations and lm_head add


def test_wide_cache_is_signed_which_the_npu_multiplies_in_full() -> None:
    wide = quantized(W4A16(kv_bits=16))
    made = [node for graph in wide.graphs.values() for node in nodes(graph, REQUANTIZE)]
    assert {wide.encodings.values[name_of(node)].dtype for node in made} == {"int16"}
    assert {wide.encodings.values[name_of(node.args[0])].dtype for node in made} == {"uint16"}
    (encoding,) = {wide.encodings.values[n] for n in ("past_key_0_in", "layers.0.self_attn.keys.h0", "past_key_0_out")}
    assert (encoding.bits, encoding.zero_point, encoding.signed) == (16, 0, True)


def test_the_last_pattern_that_matches_a_weight_counts() -> None:
    bits = {"layers.*": 8, "layers.0.mlp.*": 4, "*.down_proj.weight": 8, "lm_head.weight": 4}
    found = quantized(W4A16(weights={pattern: Line(bits=width) for pattern, width in bits.items()})).encodings.weights
    assert found["layers.1.self_attn.q_proj.weight"].bits == 8
    assert found["layers.0.mlp.gate_proj.weight"].bits == 4
    assert found["layers.0.mlp.down_proj.weight"].bits == 8
    assert found["lm_head.weight"].bits == 4
    assert found["layers.0.input_layernorm.weight"].bits == 16  # patterns are of convolutions


UNDIVIDED = {"*.o_proj.weight": Line(block=0), "*.down_proj.weight": Line(block=0)}  # of 56 and 40 columns


def test_blocks_reach_every_convolution_but_lm_head() -> None:
    found = quantized(W4A16(block=16, weights=UNDIVIDED)).encodings.weights
    assert found["layers.1.mlp.up_proj.weight"] == WeightEncoding(4, block=16)
    assert found["layers.1.mlp.down_proj.weight"] == WeightEncoding(4)
    assert found["lm_head.weight"] == WeightEncoding(8)
    eight = quantized(W4A16(block=16, weight_bits=8)).encodings.weights
    assert eight["layers.1.mlp.up_proj.weight"] == WeightEncoding(8)


def test_blocks_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(
        PassError, match=r"'layers\.0\.\w+\.\w+\.weight' has \d+ columns, which blocks of 16 do not"
    ) as caught:
        quantized(W4A16(block=16))
    assert "\n" not in str(caught.value)


def test_finer_grids_and_better_quantizers_are_closer_to_float() -> None:
    whole = replace(W4A16(), kv_range="min-max")  # weights alone are looked at: no key or value is clipped
    plain, blocks = (sqnr(quantized(p)) for p in (whole, replace(whole, block=16, weights=UNDIVIDED)))
    gptq = sqnr(quantized(replace(whole, quantizer="gptq")))
    assert blocks > plain + 1
    assert gptq > plain + 1  # of a sample that it has seen


def test_lm_head_is_rounded_to_nearest_unless_a_line_says_otherwise() -> None:
    made, other = (W4A16(quantizer="gptq", weights=lines) for lines in ({}, {"lm_head.weight": Line(quantizer="gptq")}))
    found, changed = (quantized(p).encodings.quantized for p in (made, other))
    assert found.keys() == {n for n, e in weights().items() if e.bits < 16}
    head = nearest(model().weights.read("lm_head.weight"), WeightEncoding(8)).ints
    assert torch.equal(found["lm_head.weight"].ints, head)
    assert not torch.equal(changed["lm_head.weight"].ints, head)


def test_options_go_to_the_quantizer_that_they_stand_beside() -> None:
    lines = {"*.q_proj.weight": Line(quantizer="clipped"), "*.k_proj.weight": Line(quantizer="gptq"), "*": Line(bits=4)}
    uses = W4A16(quantizer="gptq", options={"damping": 0.1}, weights=lines).uses()
    assert uses == [
        ("quantizer", "gptq", {"damping": 0.1}),
        ("quantizer", "nearest", {}),
        ("quantizer", "keep", {}),
        ("quantizer", "clipped", {}),
    ]


def test_quantizers_are_made_by_the_context() -> None:
    asked: list[object] = []

    def create(*use: object) -> object:
        asked.append(use)
        return Nearest()

    model = calibrated_model(llama())
    PassManager([*STRUCTURAL, W4A16(quantizer="mine", options={"a": 1})]).run(
        model, PassContext(samples(), create=create)
    )
    assert asked == [("quantizer", "mine", {"a": 1}), ("quantizer", "nearest", {}), ("quantizer", "keep", {})]
    assert model.encodings.quantized == {}  # whatever writes them rounds to nearest by itself


def test_widths_reach_every_convolution() -> None:
    found = quantized(W4A16(weight_bits=8, lm_head_bits=4)).encodings.weights
    assert found["layers.1.mlp.up_proj.weight"] == WeightEncoding(8)
    assert found["lm_head.weight"] == WeightEncoding(4)


@pytest.mark.parametrize("pattern", ["layers.7.*", "norm.weight"])
def test_a_pattern_that_changes_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(PassError, match="which no convolution's weight matches") as caught:
        quantized(W4A16(weights={"*.q_proj.weight": Line(bits=8), pattern: Line(bits=8)}))
    assert f"weights names '{pattern}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("graph", "text"), [(False, samples()), (True, [])])
def test_without_calibration_text_is_an_error(graph: bool, text: list[list[int]]) -> None:
    found = calibrated_model(llama())
    if not graph:
        del found.graphs[CALIBRATION]
    with pytest.raises(PassError, match=r"no calibration text; set calibration\.text in the recipe") as caught:
        PassManager([*STRUCTURAL, W4A16()]).run(found, PassContext(text))
    assert "\n" not in str(caught.value)


class Scaled(DecoderModule):
    """Multiplies by a weight, which w4a16 knows no form for."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__(sizes)
        self.gain = torch.nn.Parameter(torch.ones(1, 1, sizes.vocabulary))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids, position_ids) * self.gain


def test_a_weight_of_unknown_use_is_an_error_not_left_in_float() -> None:
    with torch.device("meta"):
        module = Scaled(SIZES)
    with pytest.raises(PassError, match=r"weight 'gain' is used by .*mul.*, which has no quantized form") as caught:
        quantized(module=module)
    assert "\n" not in str(caught.value)


def test_biases_take_the_scales_of_their_convolution() -> None:
    found = quantized(module=llama(attention_bias=True))
    assert named(found.graphs["token"], "layers.0.self_attn.q_proj.bias.h1").target is aten.slice.Tensor
    assert not [name for name in found.encodings.weights if name.endswith(".bias")]
    assert found.encodings.weights["layers.0.self_attn.q_proj.weight"].bits == 4


def test_before_decompose_is_refused() -> None:
    with pytest.raises(PassError, match="'w4a16' needs 'decompose' before it"):
        PassManager([STRUCTURAL[0], W4A16(), STRUCTURAL[2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bit": 4}, "no option 'weight_bit'; did you mean 'weight_bits'"),
        ({"weight_bits": 5}, "option 'weight_bits': input should be 4 or 8, not 5"),
        ({"kv_bits": 4}, "option 'kv_bits': input should be 8 or 16, not 4"),
        ({"block": 24}, "option 'block': input should be 0, 16, 32, 64 or 128, not 24"),
        ({"weights": {"*.q_proj.weight": {"bits": 3}}}, r"option 'weights'.*: input should be 4 or 8, not .*3"),
        ({"weights": {"*.q_proj.weight": {"clip": True}}}, r"option 'weights'.*'?clip"),
        ({"weights": 4}, "option 'weights': input should be an object, not 4"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Registry.of(passes).create("pass", "w4a16", options)
    assert "\n" not in str(caught.value)
