"""Recipes for a Snapdragon's NPU: two graphs, the passes in their usual order, and bits as the model bears them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from llmconv.choosing import Chooser, Draft, Facts, Line, Section
from llmconv_plugins.backends.qnn_backend import QnnBackend
from llmconv_plugins.passes.rotate import Rotate
from llmconv_plugins.passes.split_model import SplitModel
from llmconv_plugins.passes.w4a16 import W4A16
from llmconv_plugins.quantizers.gptq import GPTQ

PROMPT = 128  # tokens that a prompt graph reads at once: few runs, and buffers that stay small
BLOCK = 32  # columns; 16 more bits a row would not help what is truncated, docs/quantization.md
SMALL = 50e6  # parameters below which 4 bits take too much, and 8 bits cost little
SAMPLES, TOKENS = 32, 512
TEXT = "shipped:calibration/mixed.txt"
USUAL = {
    "rotate": "outlier channels spread over all, in the weights alone",
    "balance_cache": "keys and values fill the 8 bits of their cache",
    "kv_cache_io": "keys and values of earlier tokens come in, new ones go out",
    "split_heads": "one attention a head, as the NPU takes it",
    "decompose": "into ops that the compiler takes, each value with an encoding",
    "linear_to_conv": "as 1×1 convolutions, which the NPU computes faster and more exactly",
}


@dataclass(frozen=True)
class HTP(Chooser):
    """Drafts of 4 bits by GPTQ in blocks, in 8 bits for tiny models or where a bound on the size has room for them."""

    name: ClassVar[str] = "htp"
    backend: ClassVar[str] = QnnBackend.name

    def drafts(self, facts: Facts) -> Iterator[Draft]:
        """Those with `rotate` first, but for integers, which stay on their grid; last those without it."""
        if facts.kept is not None:
            yield _draft(
                facts, f"its own integers of {facts.kept} bits", _beside_kept(facts), (Rotate.name, "balance_cache")
            )
        for left_out in ((), (Rotate.name,)):
            for label, lines in _grids(facts):
                yield _draft(facts, label, lines, left_out)


def _draft(facts: Facts, label: str, lines: tuple[Line, ...], left_out: tuple[str, ...]) -> Draft:
    passes = [Section("passes", (Line("name", name, why),)) for name, why in USUAL.items() if name not in left_out]
    split = Section("passes", (Line("name", SplitModel.name), Line("parts", 1)))
    quantize = Section("passes", (Line("name", W4A16.name), *lines))
    return Draft(label, (*_graphs(facts), *passes, split, quantize, _calibration(facts)))


def _beside_kept(facts: Facts) -> tuple[Line, ...]:
    """The options of w4a16 for a checkpoint whose integers are kept: for weights that it has in floating point."""
    if facts.kept == 8:
        return (Line("weight_bits", 8, "as the checkpoint's own integers have, which are kept"),)
    return (Line("quantizer", GPTQ.name, "of weights that are no integers yet; the others are kept"), *_blocks(facts))


def _graphs(facts: Facts) -> tuple[Section, ...]:
    """A prompt graph that leaves most of the context to what comes before and behind; a token graph."""
    ar = 1 << (min(PROMPT, max(1, facts.context // 4)).bit_length() - 1)
    why = "tokens at once" if ar == PROMPT else f"tokens at once, in a context of {facts.context}"
    token = Section("graphs.token", (Line("ar", 1, "a token at a time, as answers are written"),))
    return (Section("graphs.prompt", (Line("ar", ar, why),)), token) if ar > 1 else (token,)


def _grids(facts: Facts) -> Iterator[tuple[str, tuple[Line, ...]]]:
    """A label and the options of w4a16, the best first."""
    tiny = facts.parameters < SMALL
    if tiny or facts.limited:
        why = f"{facts.parameters / 1e6:.1f} million parameters: 4 bits would take too much of them" if tiny else ""
        yield "weights of 8 bits", (Line("weight_bits", 8, why or "the budget has room for them"),)
    blocks = _blocks(facts)
    if blocks:
        yield f"weights of 4 bits in blocks of {BLOCK}", (*_gptq("a night of one core is enough for it"), *blocks)
        yield f"weights of 4 bits in blocks of {BLOCK}, rounded to nearest", blocks
    if facts.limited or not blocks:
        yield "weights of 4 bits, a scale a row", _gptq("for the bound on the size" if blocks else "")
    if facts.limited:
        smallest = (*_gptq("for the bound on the size"), Line("lm_head_bits", 4, "for the bound on the size"))
        yield "weights of 4 bits, a scale a row, lm_head too", smallest


def _gptq(why: str) -> tuple[Line, ...]:
    return (Line("quantizer", GPTQ.name, why),)


def _blocks(facts: Facts) -> tuple[Line, ...]:
    """The lines for blocks, where QNN computes them: in rows whose length they divide. Nothing where it is none."""
    linears = {name: shape[1] for name, shape in facts.shapes.items() if len(shape) == 2 and "embed" not in name}
    odd = {name for name, columns in linears.items() if columns % BLOCK}
    if len(odd) == len(linears):
        return ()
    why = "int4 with a scale a row is truncated on the NPU"
    line = Line("block", BLOCK, why)
    kinds = sorted({name.rsplit(".", 2)[-2] for name in odd} - {"lm_head"})
    if not kinds:
        return (line,)
    exceptions: dict[str, Any] = {f"*.{kind}.weight": {"block": 0} for kind in kinds}
    return line, Line("weights", exceptions, f"rows that blocks of {BLOCK} do not divide")


def _calibration(facts: Facts) -> Section:
    tokens = min(TOKENS, facts.context)
    widest = max((shape[1] for shape in facts.shapes.values() if len(shape) == 2), default=1)
    each = f"{SAMPLES * tokens} tokens in all, {SAMPLES * tokens / widest:.1f} for each input of the widest linear"
    long = "a page of text each" if tokens == TOKENS else "as many as the graphs see"
    return Section(
        "calibration",
        (
            Line("text", TEXT, "prose, code, conversations; the last in the chat template, where there is one"),
            Line("samples", SAMPLES, each),
            Line("tokens", tokens, long),
        ),
    )
