"""Step 3 of the proof, without running anything: roundings in the ONNX files, integers that are kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from llmconv.bundle.check import Check
from llmconv.bundle.weights import BundleStore
from llmconv.evaluation.subject import Subject
from llmconv.weights.coded import Coded, coded_of

QUANTIZE, DEQUANTIZE = ".q", ".dq"  # behind a value's name, in the names of nodes


def encodings_hold(subject: Subject) -> Iterator[Check]:
    """Every scale and zero point of a value, bit by bit.

    A scale that is off by a few per cent hides in the noise of the others' roundings where logits are compared.
    """
    encodings = subject.quantized.encodings
    known = {} if encodings is None else encodings.values
    for name, graph in subject.bundle.graphs.items():
        subject.progress("prove", f"encodings of {name}")
        right, wrong = 0, []
        for part in graph.parts:
            model = onnx.load(str(subject.bundle.path(part.onnx)), load_external_data=False).graph
            numbers = {t.name: t for t in model.initializer}
            for node in model.node:
                value, _, kind = node.name.rpartition(".")
                if f".{kind}" not in (QUANTIZE, DEQUANTIZE) or value not in known:
                    continue
                scale, zero_point = (numpy_helper.to_array(numbers[i]) for i in node.input[1:3])
                wanted = known[value]
                if np.float32(wanted.scale) == scale and wanted.zero_point == int(zero_point):
                    right += 1
                else:
                    wrong.append(value)
        measured = f"{right} of {right + len(wrong)}" + (f", not of '{wrong[0]}'" if wrong else "")
        yield Check(3, f"{name}: roundings in the ONNX files as in encodings.json", measured, "all", not wrong)


def integers_kept(subject: Subject) -> Iterator[Check]:
    """Weights whose integers are said to be the checkpoint's: each number of the bundle against the checkpoint's."""
    kept: list[str] = subject.bundle.manifest["source"].get("kept", [])
    if not kept:
        return
    name = "weights that keep the checkpoint's integers and scales"
    if subject.checkpoint is None:
        yield Check(3, name, subject.gone)
        return
    bundle, wrong = BundleStore(subject.bundle.folder), []
    for weight in kept:
        coded = coded_of(subject.float_weights, weight)
        same = isinstance(coded, Coded) and torch.equal(coded.read().dequantize(), bundle.read(weight))
        wrong += [] if same else [weight]
    measured = f"{len(kept) - len(wrong)} of {len(kept)}" + (f", not '{wrong[0]}'" if wrong else "")
    yield Check(3, name, measured, "all", not wrong)
