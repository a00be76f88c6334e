"""Checkpoints that are quantized already: the numbers that they stand for, and their integers where a grid has them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from quantized_files import Quantized, awq, compressed, compressed_config, gptq, packed, quantized, rewrite
from tiny_checkpoints import HIDDEN, write
from tiny_models import STRUCTURAL, calibrated_model
from torch import Tensor

from llmconv import CheckpointError, PassError, Recipe, Wish, apply, choose
from llmconv.encodings import PerBlock, PerRow, fitted
from llmconv.graph import Model
from llmconv.passes import PassContext, PassManager
from llmconv.quantization import Line
from llmconv.weights import (
    Affine,
    Coded,
    Columns,
    Cut,
    DerivedCheckpoint,
    GGUFStore,
    Halved,
    Held,
    Joined,
    Rows,
    Stored,
)
from llmconv_plugins.passes import W4A16, Rotate
from llmconv_plugins.sources import DecoderSource

MODULE, NAME = "model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj.weight"
HEAD = {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 32}
TEXT = [[1, *range(i, i + 8)] for i in (2, 9, 14)]
Write = Callable[[Quantized], dict[str, Tensor]]
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 4, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 4, "version": "gemm", "zero_point": True}
KINDS: list[tuple[dict[str, Any], int, Write]] = [
    (compressed_config(4), 4, lambda q: compressed(q, 4)),
    (compressed_config(8), 8, lambda q: compressed(q, 8)),
    (compressed_config(8, "int-quantized"), 8, lambda q: compressed(q, 8, pack=False)),
    (GPTQ, 4, lambda q: gptq(q, 4)),
    ({**GPTQ, "bits": 8}, 8, lambda q: gptq(q, 8)),
    ({**GPTQ, "bits": 2}, 2, lambda q: gptq(q, 2)),
    ({**GPTQ, "checkpoint_format": "gptq_v2"}, 4, lambda q: gptq(q, 4, less=0)),
    ({**GPTQ, "format": "gptq_v2"}, 4, lambda q: gptq(q, 4, less=0)),
    (AWQ, 4, awq),
]


def source(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> DecoderSource:
    rewrite(write(folder), config, {MODULE: tensors})
    return DecoderSource(folder)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize(("config", "bits", "pack"), KINDS, ids=range(len(KINDS)))
def test_numbers_are_those_of_the_format(
    tmp_path: Path, config: dict[str, Any], bits: int, pack: Write, size: int, centred: bool
) -> None:
    q = quantized(HIDDEN, HIDDEN, bits, size, centred=centred, multiples=False)
    weights = source(tmp_path / "c", config, pack(q)).weights()
    assert torch.equal(weights.read(NAME), q.dense())
    assert torch.equal(weights.read(NAME, slice(5, 9)), q.dense()[5:9])
    coded = weights.coded(NAME)
    if centred and not size:
        assert torch.equal(coded.read().dequantize(), q.dense())
        assert coded.grid.bits == max(4, bits)
    else:
        assert isinstance(coded, str)


@pytest.mark.parametrize("pack", [True, False])
def test_one_scale_may_stand_for_all_rows(tmp_path: Path, pack: bool) -> None:
    q = quantized(HIDDEN, HIDDEN, 8)
    q.scale = q.scale[:1].expand(HIDDEN, 1)
    tensors = {**compressed(q, 8, pack=pack), "weight_scale": q.scale[0].clone()}
    layout = "pack-quantized" if pack else "int-quantized"
    weights = source(tmp_path / "c", compressed_config(8, layout), tensors).weights()
    assert torch.equal(weights.read(NAME), q.dense())
    assert torch.equal(weights.coded(NAME).read().dequantize(), q.dense())


def test_columns_of_a_group_may_lie_apart(tmp_path: Path) -> None:
    q = quantized(HIDDEN, HIDDEN, size=4)
    q.group = q.group[torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(0))]
    weights = source(tmp_path / "c", {**GPTQ, "desc_act": True}, gptq(q, 4)).weights()
    assert torch.equal(weights.read(NAME), q.dense())
    assert "desc_act" in weights.coded(NAME)


REFUSED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method = 'bitsandbytes'"),
    ({"quant_method": "fp8"}, "quant_method = 'fp8'"),
    ({"quant_method": "mxfp4"}, "quant_method = 'mxfp4'"),
    ({**compressed_config(4), "format": "float-quantized"}, "format = 'float-quantized'"),
    ({**compressed_config(4), "format": "marlin-24"}, "format = 'marlin-24'"),
    ({**GPTQ, "bits": 3}, "of 3 bits"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin'"),
    ({**GPTQ, "format": "marlin"}, "'marlin'"),
    ({**GPTQ, "is_marlin_format": True}, "is_marlin_format = True"),
    ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype = 'int64'"),
    ({**GPTQ, "dynamic": {r"+:.*\.down_proj": {"bits": 8}}}, "dynamic gives some weights other bits"),
    ({**AWQ, "version": "gemv"}, "'gemv'"),
    ({**AWQ, "version": None, "format": "gemv_fast"}, "'gemv_fast'"),
    ({**compressed_config(4), "transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, "transform_config"),
    ({**compressed_config(4), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    (compressed_config(4, strategy="block"), "scales by 'block'"),
]


@pytest.mark.parametrize(("config", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_others_are_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        source(tmp_path / "c", config, gptq(quantized(HIDDEN, HIDDEN), 4)).weights()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_zero_point_of_0_is_stored_as_all_ones(tmp_path: Path) -> None:
    """Less the 1 that the first version takes off, as AutoGPTQ's own layer reads it."""
    q = quantized(HIDDEN, HIDDEN, size=4, centred=False)
    q.zero[::3] = 0
    stored = gptq(q, 4)
    stored["qzeros"] = packed((q.zero.T - 1) % 16, 4)
    weights = source(tmp_path / "c", GPTQ, stored).weights()
    assert torch.equal(weights.read(NAME), q.dense())


def test_compressed_tensors_that_are_not_compressed_are_refused(tmp_path: Path) -> None:
    q = quantized(HIDDEN, HIDDEN)
    tensors = {"weight": q.dense(), "weight_scale": q.scale}
    with pytest.raises(CheckpointError, match=rf"'{MODULE}\.weight' is stored in floating point"):
        source(tmp_path / "c", compressed_config(4), tensors).weights()


@pytest.mark.parametrize("missing", ["weight_shape", "weight_packed"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    tensors = compressed(quantized(HIDDEN, HIDDEN), 4)
    del tensors[missing]
    with pytest.raises(CheckpointError, match=rf"no tensor '{MODULE}\.weight"):
        source(tmp_path / "c", compressed_config(4), tensors).weights()


def test_scales_that_are_multiples_of_one_lie_on_a_grid_in_blocks() -> None:
    q = quantized(8, 64, size=16)
    grid, scale, multipliers = fitted(q.scale.float(), 16, 4, 2**-10)
    assert grid.granularity == PerBlock(16)
    assert torch.equal(scale[:, None] * multipliers, q.scale.float())
    wide = fitted(q.scale.float(), 256, 4, 2**-10)
    assert wide[0].granularity == PerBlock(128)
    assert torch.equal(wide[2], multipliers.repeat_interleave(2, dim=1))
    assert fitted(q.scale[:, :1].expand(8, 4).float(), 16, 4, 2**-10)[0].granularity == PerRow()
    assert "4 bits have blocks" in fitted(q.scale.float(), 16, 8, 2**-10)
    assert "not 1 to 16 times" in fitted(1 + torch.rand(8, 4), 16, 4, 2**-10)


def test_grids_outlast_what_keeps_them() -> None:
    """Cut, halved, joined and scaled rows; columns that are scaled are off it."""
    q = quantized(8, 32)

    class Store:
        def __contains__(self, name: str) -> bool:
            return name == "w"

        def shape(self, name: str) -> tuple[int, ...]:
            return 8, 32

        def read(self, name: str, rows: slice | None = None) -> Tensor:
            return q.dense()[rows or slice(None)]

        def coded(self, name: str) -> Coded:
            found = fitted(q.scale.float(), 32, 4, 2**-10)
            return Coded(*found, lambda: (q.ints - 8).to(torch.int8))

    w, by = Stored("w"), Held(torch.linspace(0.5, 2, 8))
    table = {
        "cut": Cut(w, 2, 6),
        "halved": Halved(w, 4),
        "joined": Joined((w, Cut(w, 0, 2))),
        "scaled": Affine(w, scale=0.5),
        "rows": Rows(w, by),
        "columns": Columns(w, Held(torch.ones(32))),
        "shifted": Affine(w, shift=1.0),
    }
    store = DerivedCheckpoint(Store(), table)
    for name in ("cut", "halved", "joined", "scaled", "rows"):
        assert torch.allclose(store.coded(name).read().dequantize(), store.read(name), rtol=1e-6), name
    assert store.coded("columns") == "Columns takes it off its grid"
    assert store.coded("shifted") == "Affine takes it off its grid"


@pytest.mark.parametrize(("kind", "bits", "columns"), [("Q4_0", 4, 18), ("Q8_0", 8, 34)])
def test_gguf_blocks_with_scales_that_fit_are_kept(tmp_path: Path, kind: str, bits: int, columns: int) -> None:
    g = np.random.default_rng(0)
    blocks = g.integers(0, 256, (6, 2, columns), dtype=np.uint8)
    times = np.array([[3, 5]] * 6) if bits == 4 else np.ones((6, 2))
    blocks[..., :2] = (2.0**-8 * times).astype(np.float16)[..., None].view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", blocks.reshape(6, -1), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    store = GGUFStore([tmp_path / "m.gguf"])
    assert torch.equal(store.coded("w").read().dequantize(), store.read("w"))


def model_of(folder: Path) -> Model:
    """A tiny Llama whose linears are stored in 4 bits a row, before any pass."""
    write(folder)
    linears = [(n, p.shape) for n, p in DecoderSource(folder).module().named_parameters() if n.endswith("proj.weight")]
    made = {name: compressed(quantized(*shape, seed=i), 4) for i, (name, shape) in enumerate(linears)}
    rewrite(folder, compressed_config(4), {f"model.{n.removesuffix('.weight')}": own for n, own in made.items()})
    opened = DecoderSource(folder)
    return Model(calibrated_model(opened.module()).graphs, opened.weights(), opened.config())


def test_stored_integers_are_kept_unless_a_line_says_otherwise(tmp_path: Path) -> None:
    model = model_of(tmp_path / "c")
    passes = [
        *STRUCTURAL,
        W4A16(quantizer="gptq", weights={"layers.1.*": Line(quantizer="clipped")}),
    ]
    PassManager(passes).run(model, PassContext(TEXT))
    kept = model.encodings.kept
    assert len(kept) == 7
    assert all(name.startswith("layers.0.") for name in kept)
    for name in kept:
        assert torch.equal(model.encodings.quantized[name].dequantize(), model.weights.read(name))
        assert model.encodings.weights[name].block == 0
    other = "layers.1.mlp.up_proj.weight"
    assert not torch.equal(model.encodings.quantized[other].dequantize(), model.weights.read(other))


def test_rotation_takes_integers_away_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(tmp_path / "c")
    with caplog.at_level(logging.WARNING):
        PassManager([Rotate(), *STRUCTURAL, W4A16()]).run(model, PassContext(TEXT))
    assert model.encodings.kept == ()
    assert "14 of 14 weights are not kept but quantized again" in caplog.text
    model = model_of(tmp_path / "d")
    with pytest.raises(PassError, match="cannot keep its integers: Rotated takes it off its grid"):
        PassManager([Rotate(), *STRUCTURAL, W4A16(weights={"*.q_proj.weight": Line(quantizer="keep")})]).run(
            model, PassContext(TEXT)
        )


def test_what_was_never_quantized_has_nothing_to_keep(tmp_path: Path) -> None:
    opened = DecoderSource(write(tmp_path / "c"))
    model = Model(calibrated_model(opened.module()).graphs, opened.weights(), opened.config())
    with pytest.raises(PassError, match="the checkpoint has none of it"):
        PassManager([*STRUCTURAL, W4A16(quantizer="keep")]).run(model, PassContext(TEXT))


def test_other_bits_are_quantized_again_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(tmp_path / "c")
    with caplog.at_level(logging.WARNING):
        PassManager([*STRUCTURAL, W4A16(weight_bits=8)]).run(model, PassContext(TEXT))
    assert model.encodings.kept == ()
    assert "they have 4 bits where the recipe asks for 8 (14)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_of_integers_in_one_line(small_recipe: Path, tmp_path: Path, bits: int) -> None:
    """The recipe that is chosen keeps every one of them, and the proof says so."""
    folder = tmp_path / "c"
    shutil.copytree(small_recipe.parent / "tiny_llama", folder)
    shapes = {n: p.shape for n, p in DecoderSource(folder).module().named_parameters() if n.endswith("proj.weight")}
    made = {n.removesuffix(".weight"): compressed(quantized(*shape, bits), bits) for n, shape in shapes.items()}
    rewrite(folder, compressed_config(bits), {f"model.{name}": own for name, own in made.items()})
    text = choose(Wish(str(folder), "Galaxy S23 Ultra", context=64, backend="onnx")).text
    bundle = apply(Recipe.loads(text, "chosen", tmp_path, [f"output.folder='{tmp_path / 'out'}'"]))
    assert sorted(bundle.manifest["source"]["kept"]) == sorted(shapes)
    (check,) = (c for c in bundle.report["proof"] if "integers" in c["name"])
    assert check["passed"]
    assert check["measured"] == f"{len(shapes)} of {len(shapes)}"
