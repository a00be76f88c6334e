"""Two conversions in one program: every switch of the process is left as it was, and each does what it does alone."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from tiny_graphs import build_part, tiny_causal
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import fx
from torch.fx import _lazy_graph_module
from torch.fx import config as fx_config

from llmconv.chat.template import ChatTemplate
from llmconv.graph import aten, evaluate, insert, name_of, trace
from llmconv.tokenizer import Tokenizer
from llmconv.weights import DictStore

pytestmark = pytest.mark.usefixtures("thawed")

THREADS, TIMES = 4, 3


def switches() -> dict[str, Any]:
    """What a library may not leave changed."""
    return {
        "oneDNN": torch.backends.mkldnn.enabled,
        "threads of torch": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "stack traces": fx_config.do_not_emit_stack_traces,
        "lazy graphs": _lazy_graph_module._use_lazy_graph_module_flag,
        "exporting": torch.compiler.is_exporting(),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "tracing": sys.gettrace(),
    }


def in_threads(work: Callable[[], Any]) -> list[Any]:
    """What each thread made, all of them at once, several times."""
    begin = Barrier(THREADS)

    def repeat() -> list[Any]:
        begin.wait()
        return [work() for _ in range(TIMES)]

    with ThreadPoolExecutor(THREADS) as pool:
        made = [pool.submit(repeat) for _ in range(THREADS)]
        return [result for thread in made for result in thread.result()]


@pytest.fixture
def convolution() -> fx.GraphModule:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> dict[str, fx.Node]:
        return {"y": insert(graph, aten.conv2d.default, (nodes["x"], nodes["w"]), "conv")}

    return build_part(body, {"x": (1, 64, 1, 16)}, {"w": (256, 64, 1, 1)})


def test_runs_leave_onednn_to_the_program(convolution: fx.GraphModule) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 64, 1, 16, generator=generator), torch.randn(256, 64, 1, 1, generator=generator)
    before, seen = switches(), []

    def work() -> torch.Tensor:
        store = DictStore({"w": w})
        return evaluate(convolution, {"x": x}, store, observer=lambda *_: seen.append(switches()["oneDNN"]))["y"]

    expected = work()
    assert all(torch.equal(found, expected) for found in in_threads(work))
    assert set(seen) == {before["oneDNN"]}  # nor meanwhile
    assert switches() == before


def test_traces_leave_torch_as_it_was() -> None:
    before, lengths = switches(), count(20)  # what has been traced before is not traced again

    def work() -> list[str]:
        (part,) = trace(tiny_causal(), next(lengths), 1000, "g").parts
        return [name_of(n) for n in part.graph.nodes if n.op != "output"]

    expected = work()
    assert all(found == expected for found in in_threads(work))
    assert switches() == before


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = FastTokenizer(models.BPE(vocab={**alphabet, "<s>": 256}, merges=[]))
    fast.add_special_tokens(["<s>"])
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


def test_a_text_has_no_control_token_while_another_thread_marks_some(tokenizer: Tokenizer) -> None:
    text = "<s>" * 500

    def work() -> tuple[list[int], list[int]]:
        return tokenizer.encode(text), tokenizer.encode_marked(text)

    for plain, marked in in_threads(work):
        assert 256 not in plain
        assert marked == [256] * 500


def test_templates_are_rendered_side_by_side() -> None:
    before, template = switches(), ChatTemplate("{{ messages[0].content }}", "where", {})
    texts = iter(range(THREADS * TIMES))

    def work() -> tuple[str, str]:
        text = str(next(texts))
        return text, template.render([{"role": "user", "content": text}])

    assert all(asked == found for asked, found in in_threads(work))
    assert switches() == before
