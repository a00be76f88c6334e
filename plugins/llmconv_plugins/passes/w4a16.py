"""Quantize to 4-bit weights and 16-bit activations, with an 8-bit KV cache and lm_head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, Literal

from torch import fx

from llmconv import PassError
from llmconv.encodings import Encoding, Encodings, WeightEncoding
from llmconv.graph import (
    ELEMENTWISE,
    IO_META,
    MADE_BY,
    MOVEMENT,
    REQUANTIZE,
    ROTARIES,
    Model,
    aten,
    finish,
    inputs_of,
    insert,
    io_of,
    name_of,
    outputs_of,
    shape_of,
    uses_of,
    weight_of,
)
from llmconv.passes import Create, Pass, PassContext, Training, Use
from llmconv.quantization import (
    CALIBRATION,
    WINDOWS,
    Bits,
    Columns,
    Known,
    Line,
    Magnitudes,
    Nearest,
    Quantizer,
    Range,
    RangeRule,
    Rule,
    Scheme,
    SchemePreset,
    Tuned,
    calibrate,
    quantized_apart,
    sharing_groups,
    tuned_once,
)
from llmconv_plugins.passes.kept import KEEP, with_kept
from llmconv_plugins.passes.masking import mask_ranges

LINEAR, LM_HEAD = "linear", "lm_head"  # roles of weights

WIDE_BLOCK, CRASHES = 64, range(7, 10)  # columns of a block; blocks of a row
ALIGNED = 32  # columns
_WIDE_USES = {(aten.embedding.default, 0), (aten.rms_norm.default, 2), (aten.add.Tensor, 1)}
_LINEAR_USES = {(aten.conv2d.default, 1), (aten.linear.default, 1)}
_FIXED_OPS: dict[object, Range] = {aten.softmax.int: (0.0, 1.0), aten.sigmoid.default: (0.0, 1.0)}


@dataclass(frozen=True)
class W4A16(Pass):
    """Give every value and weight an encoding; encodings lie beside the graphs, which share them by name.

    Given:  graphs whose every op the NPU has, and a calibration graph without past; a model that has encodings
            already keeps them
    Result: uint16 values; symmetric int4 weights, one scale an output channel; int8 lm_head; uint16 embedding table
            and norms; keys and values requantized to uint8, or to int16, symmetric, one encoding for past, new and
            output.
    Not applied: nothing is skipped: a value without a range or a weight of unknown use is an error.
    Source: AIMET's w4a16 recipe for Llama on Snapdragon.

    Attributes:
        weight_bits: of every convolution but lm_head.
        block: columns with a multiplier of the row's scale (LPBQ), of weights of 4 bits; 0 for one scale a row.
        quantizer: what puts them on their grids; `llmconv passes` lists them.
        options: of that quantizer.
        inputs: what that quantizer looks at: what a weight is given by the quantized ones before it; or by those of the
            float model, so that the executor's workers quantize weights side by side, and worse.
        lm_head_bits: of the projection to logits, which is rounded to nearest.
        kv_bits: of keys and values, in the cache and in attention.
        kv_range: where theirs ends: at the largest number that calibration saw; with 1 of 10,000 beyond it; or where
            what is rounded and what is clipped add up to the least squared error. With 16 bits, as all other values
            have, every number fits: what is clipped costs more than the finest of 65,536 steps gains.
        tuning_steps: in which row scales and norms are trained toward the float model while integers stay; two samples
            a step; 0 leaves it out.
        tuned: what is trained at once: the model, toward float's logits, held in memory twice; or each layer's
            attention and MLP in turn, toward what they give in float, held one at a time.
        scheme: a preset of lines that a plugin brings, by name; those of `weights` count after its own.
        weights: lines by pattern of weight names, e.g. `"layers.*.mlp.down_proj.weight" = { bits = 8 }`.
    """

    name: ClassVar[str] = "w4a16"
    needs: ClassVar[tuple[str, ...]] = ("kv_cache_io", "decompose")
    runs_after: ClassVar[tuple[str, ...]] = ("kv_cache_io", "split_heads", "decompose", "lora_inputs", "linear_to_conv")
    needs_calibration: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = None
    by_place: ClassVar[tuple[str, ...] | None] = ("scheme", "weights")

    weight_bits: Bits = 4
    block: Columns = 0
    quantizer: str = Nearest.name
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Literal["quantized", "float"] = "quantized"
    lm_head_bits: Bits = 8
    kv_bits: Literal[8, 16] = 8
    kv_range: RangeRule = "mse"
    tuning_steps: int = 0
    tuned: Tuned = "model"
    scheme: str | None = None
    weights: dict[str, Line] = field(default_factory=dict)
    _preset: SchemePreset | None = None  # that `scheme` names

    def __post_init__(self) -> None:
        if self.tuning_steps < 0:
            raise PassError(f"w4a16's tuning_steps is {self.tuning_steps}; choose 0 or more")

    @property
    def trains(self) -> Training | None:
        """Scales and norms, where there are steps."""
        return Training(self.tuning_steps * WINDOWS, self.tuned == "model") if self.tuning_steps else None

    def knowing(self, create: Create) -> W4A16:
        """With the preset that `scheme` names."""
        return self if self.scheme is None else replace(self, _preset=create("scheme", self.scheme, {}))

    @property
    def table(self) -> Scheme:
        """The table of rules.

        Raises:
            PassError: the pass names a preset, and does not know it.
        """
        if self.scheme is not None and self._preset is None:
            raise PassError(f"scheme '{self.scheme}' is not known here; make the pass with Registry.create")
        roles = {
            LINEAR: Rule(self.weight_bits, self.block if self.weight_bits == 4 else 0, self.quantizer),
            LM_HEAD: Rule(self.lm_head_bits, 0, Nearest.name),
        }
        return Scheme(roles, self.weights, self._preset)

    def uses(self) -> Sequence[Use]:
        """The preset, and the quantizers of its lines and the recipe's."""
        names = [self.quantizer, Nearest.name, KEEP, *(line.quantizer for line in self.table.all_lines.values())]
        found: list[Use] = [("scheme", self.scheme, {})] if self.scheme is not None else []
        return found + [
            ("quantizer", name, self._options_of(name)) for name in dict.fromkeys(names) if name is not None
        ]

    def _options_of(self, quantizer: str) -> dict[str, Any]:
        return self.options if quantizer == self.quantizer else {}

    def widths(self, model: Model) -> Mapping[str, float]:
        """Those of all weights, and of the values that enter and leave parts."""
        cache = _cache_names(model)
        ports = {name_of(n) for part in _parts(model) for n in (inputs_of(part) | outputs_of(part)).values()}
        values = {name: self.kv_bits if name in cache else 16 for name in ports}
        return values | {name: encoding.width for name, encoding in self._weights(model, self._rules(model)).items()}

    def run(self, model: Model, context: PassContext) -> bool:
        """Insert the requantize nodes, calibrate, and choose every encoding."""
        for part in _parts(model):
            _requantize_cache(part)
        if model.encodings is not None:  # of a bundle that is being proved
            return True
        if CALIBRATION not in model.graphs or not context.samples:
            raise PassError("no calibration text; set calibration.text in the recipe")
        rules = self._kept(model, self._rules(model))
        weights = self._weights(model, rules)
        made = {use[1]: context.create(*use) for use in self.uses() if use[0] == "quantizer"}
        quantizers: dict[str, Quantizer] = {
            name: made[rule.quantizer].of_weight(name, model.weights, weights[name].grid)
            for name, rule in rules.items()
        }
        if self.inputs == "float":
            quantizers = quantized_apart(model, context, weights, quantizers)
        if self.tuning_steps:
            fixed = {name: quantizers.pop(name) for name, rule in rules.items() if rule.quantizer == KEEP}
            found = tuned_once(model, context, weights, quantizers, self.tuning_steps, self.tuned)
            quantizers = fixed | {name: Known(encoded) for name, encoded in found.items()}
        magnitudes = Magnitudes(_cache_names(model) if self.kv_bits < 16 and self.kv_range != "min-max" else ())
        ranges, quantized = calibrate(model, context, weights, quantizers, magnitudes)
        values = self._values(model, ranges, magnitudes)
        for lookup in (n for part in _parts(model) for n in part.graph.nodes if n.target is aten.embedding.default):
            shared = WeightEncoding(16, encoding=values[name_of(lookup)])  # of the table and of what is looked up
            weights[name_of(lookup.args[0])] = shared
        kept = tuple(name for name, rule in rules.items() if rule.quantizer == KEEP)
        model.encodings = Encodings(values, weights, quantized, kept)
        return True

    def _values(self, model: Model, ranges: dict[str, Range], magnitudes: Magnitudes) -> dict[str, Encoding]:
        fixed, cache = _fixed(model) | mask_ranges(model, ranges), _cache_names(model)
        encodings: dict[str, Encoding] = {}
        for group in sharing_groups(model.graphs.values()):
            pinned = [fixed[n] for n in group if n in fixed]
            seen = pinned or [ranges[n] for n in group if n in ranges]
            if not seen:
                raise PassError(f"no range for value '{group[0]}'; it is not in the calibration graph")
            low, high = min(r[0] for r in seen), max(r[1] for r in seen)
            if cache.isdisjoint(group):
                encoding = Encoding.from_range(low, high, 16)
            else:
                end = magnitudes.end(group, max(-low, high), self.kv_bits, self.kv_range)
                encoding = Encoding.from_range(-end, end, self.kv_bits, symmetric=True)
            encodings |= dict.fromkeys(group, encoding)
        return encodings

    def _rules(self, model: Model) -> dict[str, Rule]:
        """Of every weight that is multiplied with."""
        roles: dict[str, str] = {}
        columns: dict[str, int] = {}
        for part in _parts(model):
            heads = _logits_weights(part)
            for node in part.graph.find_nodes(op="get_attr"):
                if _uses(node) <= _LINEAR_USES:
                    name = name_of(node)
                    roles[name] = LM_HEAD if name in heads else LINEAR
                    columns[name] = prod(shape_of(node)[1:])
        rules = self.table.rules(roles, columns)
        for name, rule in rules.items():
            _check_blocks(name, rule.block, columns[name])
        return rules

    def _kept(self, model: Model, rules: Mapping[str, Rule]) -> dict[str, Rule]:
        """The rules, with the checkpoint's integers where it has some that fit; blocks as it has them."""
        columns = {
            name_of(node): prod(shape_of(node)[1:])
            for part in _parts(model)
            for node in part.graph.find_nodes(op="get_attr")
        }
        by_line = {name for name in rules if self.table.names_quantizer(name)}
        return with_kept(rules, by_line, model.weights, lambda name, block: _check_blocks(name, block, columns[name]))

    def _weights(self, model: Model, rules: Mapping[str, Rule]) -> dict[str, WeightEncoding]:
        found: dict[str, WeightEncoding] = {}
        for node in (n for part in _parts(model) for n in part.graph.find_nodes(op="get_attr")):
            name, uses = name_of(node), _uses(node)
            if name in rules:
                found[name] = WeightEncoding(rules[name].bits, rules[name].block)
            elif uses <= _WIDE_USES:
                found[name] = WeightEncoding(16)
            elif not uses <= {(aten.conv2d.default, 2), (aten.linear.default, 2)}:  # a bias follows its op's scales
                raise PassError(f"weight '{name}' is used by {uses}, which has no quantized form")
        return found


def _check_blocks(name: str, block: int, columns: int) -> None:
    """Whether QNN 2.7 computes a convolution in such blocks, by what the HTP simulator did with shapes around these.

    Raises:
        PassError: it crashes, or gives other numbers.
    """
    if block >= WIDE_BLOCK and columns // block in CRASHES:
        raise PassError(
            f"weight '{name}' has {columns} columns, and QNN crashes in {columns // block} blocks of {block}; "
            f"choose block = {WIDE_BLOCK // 2} for it"
        )
    if block and columns % ALIGNED:
        raise PassError(
            f"weight '{name}' has {columns} columns, no multiple of {ALIGNED}, which QNN computes wrong in blocks; "
            "choose block = 0 for it"
        )


def _parts(model: Model) -> Iterator[fx.GraphModule]:
    for graph in model.graphs.values():
        yield from graph.parts


def _uses(weight: fx.Node) -> set[tuple[object, int]]:
    """The ops that compute with a weight, and at which argument."""
    return {(user.target, user.args.index(operand)) for user, operand in uses_of(weight)}


def _logits_weights(part: fx.GraphModule) -> set[str]:
    """The weights of the projection to logits."""
    found, io = set(), io_of(part)[1]
    for name, node in outputs_of(part).items():
        if io[name].kind == "logits":
            made = node
            while made.target in MOVEMENT or (made.target in ELEMENTWISE and len(made.all_input_nodes) == 1):
                made = made.all_input_nodes[0]  # a cap of the logits
            weights = (weight_of(n) for n in made.all_input_nodes)
            found |= {name_of(n) for n in weights if n is not None}
    return found


def _fixed(model: Model) -> dict[str, Range]:
    fixed: dict[str, Range] = {}
    for graph in model.graphs.values():
        ranges: dict[str, Range] = {}
        for pair in ROTARIES.values():
            if found := [float(graph.rope[kind].abs().max()) for kind in pair if kind in graph.rope]:
                ranges |= dict.fromkeys(pair, (-max(found), max(found)))  # 1, times the table's factor
        nodes = (node for part in graph.parts for node in inputs_of(part).values())
        fixed |= {name_of(node): ranges[kind] for node in nodes if (kind := node.meta[IO_META].kind) in ranges}
    for part in _parts(model):
        fixed |= {name_of(n): _FIXED_OPS[n.target] for n in part.graph.nodes if n.target in _FIXED_OPS}
    return fixed


def _cache_names(model: Model) -> set[str]:
    names = set()
    for part in _parts(model):
        ins, outs = io_of(part)
        nodes = inputs_of(part) | outputs_of(part)
        names |= {name_of(nodes[n]) for n, io in (ins | outs).items() if io.layer is not None}
    return names


def _requantize_cache(part: fx.GraphModule) -> None:
    """Put a requantize after each value that both leaves for the cache and is attended to."""
    outputs, io = outputs_of(part), io_of(part)[1]
    cached = [b for name, node in outputs.items() if io[name].layer is not None for b in _branches(node)]
    users = {user: None for value in cached for user in value.users}
    narrow: dict[fx.Node, fx.Node] = {}
    for value in dict.fromkeys(cached):
        with part.graph.inserting_after(value):
            made = insert(part.graph, REQUANTIZE, (value,), f"{name_of(value)}.kv")
        made.meta[MADE_BY] = W4A16.name
        narrow[value] = made
    for user in users:  # once each: a concat of heads uses many
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: narrow.get(n, n))
    finish(part)


def _branches(node: fx.Node) -> list[fx.Node]:
    """Back from a cache output through movement that serves the output alone, to what attention uses too."""
    if node.target in MOVEMENT and len(node.users) == 1:
        return [b for source in node.all_input_nodes for b in _branches(source)]
    return [node]
