"""Plans from a configuration alone: sizes that are exact, estimates near what was measured, and errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from torch import fx

import llmconv
from llmconv import Bundle, LlmconvError, Plan, Recipe, Registry, ResourceError, apply, hookimpl
from llmconv.backends import Stage
from llmconv.graph import Graph, Model, bytes_a_token
from llmconv.passes import GraphPass, PassContext
from llmconv.planning import plan as planning
from llmconv.planning.advice import advised
from llmconv.planning.resplit import ar_that_fits, part_count_that_fits, resplit
from llmconv.target import find
from llmconv.work import machine
from llmconv_plugins import backends, chipsets, executors, lowerings, passes, quantizers, sources
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.qnn.limits import domain_bytes, graph_bytes, seconds_a_token
from llmconv_plugins.qnn.limits import htp_limits as limits

RECIPES = Path(__file__).parents[2] / "recipes"
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
FEW_HEADS = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}

Planned = Callable[..., Plan]


def config_alone(folder: Path, recipe: Path, **changes: object) -> Path:
    """A checkpoint's folder that holds config.json and nothing else."""
    folder.mkdir()
    values = json.loads((recipe.parent / "tiny_llama" / "config.json").read_text())
    values.pop("head_dim")
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


@pytest.fixture
def planned(tiny_recipe: Path, tmp_path: Path) -> Planned:
    """Plans the tiny recipe over config.json alone."""
    folder = config_alone(tmp_path / "checkpoint", tiny_recipe)

    def call(*changes: str, jobs: int | None = None) -> Plan:
        change = [f"model.checkpoint='{folder}'", f"output.folder='{tmp_path / 'out'}'", *changes]
        return llmconv.plan(Recipe.load(tiny_recipe, change), jobs=jobs)

    return call


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The published Llama-2-7B, heads whole."""
    recipe = RECIPES / "llama2_7b_chat.toml"
    folder = config_alone(tmp_path_factory.mktemp("7b") / "checkpoint", recipe, **LLAMA_2_7B)
    loaded = Recipe.load(recipe, [f"model.checkpoint='{folder}'"], backend="qnn").to_dict()
    loaded["passes"] = [p for p in loaded["passes"] if p["name"] != "split_heads"]
    return llmconv.plan(Recipe.from_dict(loaded))


def test_weights_and_io_are_those_of_the_bundle(planned: Planned, tiny_bundle: Bundle) -> None:
    files = tiny_bundle.manifest["files"]
    for part in planned().parts:
        stored = files[f"onnx/part_{part.number + 1}_of_2.data"]["bytes"]
        assert 0 <= stored - part.weight_bytes < 64 * 40  # each of a part's weights begins at a multiple of 64
        for graph in part.graphs:
            spec = tiny_bundle.graphs[graph.graph].parts[part.number]
            sizes = {"uint8": 1, "uint16": 2, "int32": 4}
            for found, tensors in ((graph.input_bytes, spec.inputs), (graph.output_bytes, spec.outputs)):
                assert found == sum(sizes[t.dtype] * _elements(t.shape) for t in tensors)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def test_disk_is_what_the_bundle_takes(planned: Planned, tiny_bundle: Bundle) -> None:
    taken = sum(f["bytes"] for name, f in tiny_bundle.manifest["files"].items() if name.startswith(("onnx", "qnn")))
    assert planned().disk_need == pytest.approx(taken, rel=0.35)  # small binaries hold more code than weights


def test_what_a_context_adds_is_what_a_plan_without_it_lacks(planned: Planned) -> None:
    one, two = (planned(f"graphs={{ar = [1, 32], context = {contexts}}}") for contexts in ([128], [128, 256]))
    assert [(a.graph, a.ar, a.context) for a in two.additions[2:]] == [("prompt256", 32, 256), ("token256", 1, 256)]
    assert sum(a.disk for a in two.additions[2:]) == pytest.approx(two.disk_need - one.disk_need, abs=8)  # rounding
    assert sum(a.seconds for a in two.additions[2:]) == pytest.approx(
        sum(s.seconds for s in two.stages) - sum(s.seconds for s in one.stages), rel=1e-6
    )
    assert two.weight_bytes == one.weight_bytes
    alone = planned("graphs={ar = [1], context = [256]}")
    assert alone.additions == []
    assert [bytes_a_token(p) for p in two.parts] == [bytes_a_token(p) for p in alone.parts]  # of the longest context


def test_published_llama_has_its_known_sizes(published: Plan) -> None:
    assert [p.layers for p in published.parts] == [8, 8, 8, 8]
    assert 3.6e9 < published.weight_bytes < 3.8e9
    middle = published.parts[1]
    assert middle.weight_bytes == pytest.approx(8 * 101.2e6, rel=0.01)
    token = next(g for g in middle.graphs if g.graph == "token")
    assert token.input_bytes == 8 * 2 * 32 * 128 * 1023 + 2 * (4096 + 1024 + 128)  # 8-bit cache; hidden, mask, cos, sin
    prompt = next(g for g in published.parts[3].graphs if g.graph == "prompt")
    assert prompt.output_bytes == 1024 * 32000 * 2 + 8 * 2 * 32 * 128 * 1024


def test_estimates_are_near_what_was_measured(published: Plan) -> None:
    first, *middle, last = published.parts
    assert graph_bytes(last, last.graphs[0]) == pytest.approx(2_347_229 * 1024, rel=0.05)
    assert all(graph_bytes(p, p.graphs[0]) < 2_097_152 * 1024 for p in (first, *middle))
    assert 0.013 < seconds_a_token(middle[0], 67.2e9) < seconds_a_token(last, 67.2e9) < 0.017
    assert sum(seconds_a_token(p, 67.2e9) for p in published.parts) == pytest.approx(0.054, abs=0.002)
    two_layers = resplit(published.parts, 16)[1]
    stages = [s for s in published.stages_of([two_layers]) if s.parallel]
    assert stages[0].memory == pytest.approx(2.94e9 - 25e6 * 12, rel=0.1)  # measured with 25 MB of lm_head and table


def test_published_form_is_warned_about_and_ar_128_is_not(published: Plan) -> None:
    found = {(x.part, x.what): x for x in published.limits}
    assert found["part 4 of 4", "graph memory"].verdict == "warning"
    assert found["part 4 of 4", "graph memory"].advice.startswith("graphs.prompt.ar = 512 or passes.split_model.parts")
    assert {found[f"part {i} of 4", "graph memory"].verdict for i in (1, 2, 3)} == {"ok"}
    assert {x.verdict for x in published.limits if x.what == "process domain"} == {"ok"}
    assert "passes.split_model.parts = 7" in found["part 2 of 4", "time a token"].advice
    assert ar_that_fits(published.parts, "prompt", lambda _made: False) is None


def test_another_part_count_is_foreseen(published: Plan, planned: Planned) -> None:
    whole = planned("passes.split_model.parts=1")
    for count in (2, 4):
        foreseen, real = (
            resplit(planned("passes.split_model.parts=2").parts, count),
            planned(f"passes.split_model.parts={count}").parts,
        )
        assert [p.layers for p in foreseen] == [p.layers for p in real]
        assert [p.weight_bytes for p in foreseen] == pytest.approx([p.weight_bytes for p in real], rel=0.02)
        for a, b in zip(foreseen, real, strict=True):
            for x, y in zip(a.graphs, b.graphs, strict=True):
                if a.number in (0, count - 1):
                    assert x.io_bytes == pytest.approx(y.io_bytes, rel=0.02)
                assert x.io_bytes >= 0.98 * y.io_bytes
    assert sum(p.weight_bytes for p in resplit(whole.parts, 3)) == pytest.approx(whole.weight_bytes, rel=0.001)
    assert [sum(p.layers for p in resplit(published.parts, n)) for n in (5, 6, 7)] == [32, 32, 32]


def test_part_over_the_process_domain_names_the_part_count(published: Plan) -> None:
    small = replace(find("SM8550", CHIPSETS), domain_bytes=1_100_000_000)
    plan = replace(published, chipset=small, limits=limits(published.parts, small), memory=64 * 10**9)
    with pytest.raises(ResourceError) as caught:
        plan.require()
    assert str(caught.value) == (
        "part 1 of 4: process domain ≈ 1.25 GB, more than the 1.10 GB of Snapdragon 8 Gen 2; "
        "set passes.split_model.parts = 5"
    )
    assert part_count_that_fits(published.parts, lambda made: max(map(domain_bytes, made)) < 1_100_000_000) == 5


def test_graph_clearly_over_its_memory_names_ar(published: Plan) -> None:
    small = replace(find("SM8550", CHIPSETS), graph_bytes=1_500_000_000)
    said = advised(limits(published.parts, small), published.parts, lambda made: limits(made, small), "split.parts")
    found = [x for x in said if x.what == "graph memory"]
    assert [x.verdict for x in found] == ["warning", "warning", "warning", "error"]
    plan = replace(published, chipset=small, limits=found, memory=1)
    with pytest.raises(
        ResourceError, match=r"part 4 of 4: graph memory ≈ 2\.\d\d GB, more than the 1\.50 GB .*parts = "
    ):
        plan.require()


def test_too_little_memory_names_part_count_and_swap(published: Plan) -> None:
    with pytest.raises(ResourceError) as caught:
        replace(published, memory=8 * 10**9).require()
    message = str(caught.value)
    assert message.startswith("compile part 1 of 4 needs ≈ 12.")
    assert "8.00 GB are at hand; set passes.split_model.parts = 7, or add" in message
    assert "sudo fallocate -l 5G /swapfile" in message
    assert "\n" not in message


def test_too_little_memory_for_any_part_count_leaves_swap(published: Plan) -> None:
    with pytest.raises(ResourceError, match=r"0\.50 GB are at hand; add 1\d\.\d\d GB of swap: sudo fallocate"):
        replace(published, memory=500_000_000).require()


def test_advice_names_the_option_of_the_pass_that_splits(published: Plan) -> None:
    with pytest.raises(ResourceError, match=r"set passes\.cutter\.pieces = 7, or add"):
        replace(published, memory=8 * 10**9, part_setting="passes.cutter.pieces").require()
    with pytest.raises(ResourceError, match=r"8\.00 GB are at hand; add \d"):
        replace(published, memory=8 * 10**9, part_setting=None).require()


def test_too_little_disk(published: Plan) -> None:
    with pytest.raises(ResourceError) as caught:
        replace(published, disk=10**9, folder=Path("/data/out")).require()
    assert str(caught.value) == (
        "/data/out: the bundle needs ≈ 7.35 GB of disk, 1.00 GB are free; free 6.35 GB there or choose another --output"
    )


def test_parts_at_once_are_bounded_by_jobs_and_memory(published: Plan) -> None:
    assert replace(published, jobs=8, memory=25 * 10**9).at_once == 2
    assert replace(published, jobs=1, memory=25 * 10**9).at_once == 1
    assert replace(published, jobs=8, memory=10**9).at_once == 1
    assert replace(published, jobs=8, memory=None).at_once == 4
    alone, four = (replace(published, jobs=n, memory=None).seconds for n in (1, 4))
    assert alone > four > alone / 4


def test_split_heads_change_no_size(tmp_path: Path, tiny_recipe: Path) -> None:
    folder = config_alone(tmp_path / "c", tiny_recipe, **{**LLAMA_2_7B, **FEW_HEADS})
    recipe = Recipe.load(RECIPES / "llama2_7b_chat_ar128.toml", [f"model.checkpoint='{folder}'"])
    whole = recipe.model_copy(update={"passes": [p for p in recipe.passes if p.name != "split_heads"]})
    a, b = (llmconv.plan(r).parts for r in (recipe, whole))
    assert [p.weight_bytes for p in a] == [p.weight_bytes for p in b]
    assert [[g.io_bytes for g in p.graphs] for p in a] == [[g.io_bytes for g in p.graphs] for p in b]


def test_backend_that_stops_at_onnx_has_no_limits_of_a_device(planned: Planned) -> None:
    plan = planned("backend.name=onnx")
    assert plan.limits == []
    assert [s.name for s in plan.stages] == ["trace and passes", "calibrate", "lower to ONNX"]


def test_tuning_is_a_stage_of_its_own(planned: Planned) -> None:
    def stages(*overrides: str) -> dict[str, Stage]:
        return {s.name: s for s in planned("backend.name=onnx", *overrides).stages}

    steps = "passes.w4a16.tuning_steps=100"
    assert "tune" not in stages()
    whole, by_layer, short = (
        stages(steps, *more)["tune"] for more in ([], ["passes.w4a16.tuned=layer"], ["passes.w4a16.tuning_steps=10"])
    )
    assert by_layer.memory < whole.memory
    assert short.seconds == pytest.approx(whole.seconds / 10)


def test_apply_stops_before_the_work(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_at_hand", lambda: 10**7)
    recipe = Recipe.load(tiny_recipe, [f"output.folder='{tmp_path / 'out'}'"])
    with pytest.raises(ResourceError, match=r"10\.00 MB are at hand"):
        llmconv.apply(recipe, verify=False)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Reader(GraphPass):
    """A structural pass that looks at a weight."""

    name: ClassVar[str] = "reader"

    def run(self, model: Model, context: PassContext) -> bool:
        model.weights.read("norm.weight")
        return False

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return False


class ReaderPlugin:
    @hookimpl
    def register_passes(self) -> list[type[GraphPass]]:
        return [Reader]


def test_pass_that_reads_weights_cannot_be_planned_but_applied(small_recipe: Path, tmp_path: Path) -> None:
    registry = Registry.of(passes, quantizers, sources, backends, lowerings, chipsets, executors, ReaderPlugin())
    values = Recipe.load(small_recipe, [f"output.folder='{tmp_path / 'out'}'", "backend.name=onnx"]).to_dict()
    values["passes"].insert(0, {"name": "reader"})
    recipe = Recipe.from_dict(values)
    with pytest.raises(llmconv.PassError, match=r"pass 'reader': weight 'norm\.weight' is read, but a plan"):
        llmconv.plan(recipe, registry=registry)
    assert llmconv.apply(recipe, registry=registry, verify=False).graphs


def test_work_that_is_kept_counts_as_free(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "disk_at_hand", lambda _folder: 10**12)  # others write to the real one meanwhile
    assert planned().disk == 10**12
    work = tmp_path / ".out.work" / "bundle"
    work.mkdir(parents=True)
    (work / "part.data").write_bytes(b"1" * 50_000)
    assert planned().disk == 10**12 + 50_000


def test_estimates_know_no_layers_without_a_cache() -> None:
    part = replace(planning.PartSize(0, 0, 1, 0, 0, 1, 1, ()), layers=0)
    assert part_count_that_fits([part], lambda _made: True) is None


def test_cautions_are_logged_before_the_work(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = SimpleNamespace(require=lambda: None, worst=list, cautions=["mind the gap"])
    monkeypatch.setattr(planning, "part_sizes", lambda *_: [])
    monkeypatch.setattr(planning, "make", lambda *_: made)
    nothing: Any = None
    planning.preflight(nothing, nothing, nothing, nothing)
    assert [record.message for record in caplog.records] == ["mind the gap"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("passes.w4a16.weights={'nothing.*' = {bits = 8}}", "weights names 'nothing.*', which no"),
        ("passes.split_model.parts=9", "parts"),
    ],
)
def test_what_a_plan_finds_is_said_before_text_is_read(
    small_recipe: Path, tmp_path: Path, change: str, said: str
) -> None:
    text = small_recipe.read_text().replace("[[passes]]", '[[passes]]\nname = "balance_cache"\n\n[[passes]]', 1)
    changes = [change, f"output.folder='{tmp_path / 'out'}'"]
    recipe = Recipe.loads(text, "balanced", small_recipe.parent, changes)
    begun: list[str] = []
    with pytest.raises(LlmconvError, match=said):
        apply(recipe, verify=False, progress=lambda _stage, item: begun.append(item))
    assert begun == []
    assert not (tmp_path / "out").exists()
