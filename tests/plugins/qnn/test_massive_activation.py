"""RMSNorm beside a massive activation, through the project's own lowering, on the HTP simulator."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import fx

from llmconv import Registry
from llmconv.bundle.part_file import WeightFile
from llmconv.encodings import Encoding, Encodings, WeightEncoding
from llmconv.graph import IO, IO_META, NAME, aten, insert, set_outputs
from llmconv.lowering import Lowering
from llmconv.lowering.write import PlacedWeights
from llmconv.weights import DictStore
from llmconv_plugins.qnn.compiler import GraphJob, compile_part
from llmconv_plugins.qnn.simulator import Simulator

CHANNELS, TOKENS, EPSILON = 256, 8, 1e-5
MASSIVE = 1000.0  # as real Llamas have at BOS
FLOOR = 55.0  # dB against float; decomposed norms give −26 dB, since a mean of squares does not fit 16 bits


def norm_part() -> fx.GraphModule:
    """hidden (1, TOKENS, CHANNELS) -> rms_norm -> out."""
    part = fx.GraphModule({}, fx.Graph())
    with torch.device("meta"):
        hidden, gamma = part.graph.placeholder("hidden"), part.graph.create_node("get_attr", "norm.weight")
        hidden.meta |= {NAME: "hidden", IO_META: IO("hidden"), "val": torch.empty(1, TOKENS, CHANNELS)}
        gamma.meta |= {NAME: "norm.weight", "val": torch.empty(CHANNELS)}
        out = insert(part.graph, aten.rms_norm.default, (hidden, [CHANNELS], gamma, EPSILON), "norm")
    part.graph.output({})
    set_outputs(part, {"out": out}, {"out": IO("hidden")})
    return part


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    noise = (other - reference).double().square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise))


def ranged(x: torch.Tensor) -> Encoding:
    return Encoding.from_range(float(x.min()), float(x.max()), 16)


def test_rms_norm_survives_a_massive_activation(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, TOKENS, CHANNELS, generator=generator)
    hidden[0, 0, 7] = MASSIVE
    gamma = 1 + 0.2 * torch.randn(CHANNELS, generator=generator)
    ints = ranged(hidden).quantize(hidden)
    expected = F.rms_norm(ranged(hidden).dequantize(ints), [CHANNELS], gamma, EPSILON)  # of what the norm really reads
    encodings = Encodings({"hidden": ranged(hidden), "norm": ranged(expected)}, {"norm.weight": WeightEncoding(16)})
    with WeightFile(tmp_path / "part.data") as file:
        weights = PlacedWeights(file, DictStore({"norm.weight": gamma}), encodings)
        model = Lowering(norm_part(), encodings, weights, Registry.load().lowerings).run()
    onnx.save(model, tmp_path / "norm.onnx")
    compile_part([GraphJob(tmp_path / "norm.onnx", "norm")], tmp_path / "norm.bin", soc_model="43", htp_arch="73")
    with Simulator({"norm": tmp_path / "norm.bin"}) as simulator:
        found = simulator.run("norm", {"hidden": ints.numpy().astype("uint16")})["out"]
    out = encodings.values["norm"].dequantize(torch.from_numpy(found))
    assert sqnr(expected, out) >= FLOOR
    assert sqnr(expected[:, 1:], out[:, 1:]) >= FLOOR  # the tokens without it, which a decomposed norm ruins
