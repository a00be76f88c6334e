"""The host's side: which graph reads which chunk, and what each input holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_graphs import tiny_causal

from llmconv import LlmconvError
from llmconv.decoding import MASKED, Arrays, Decoder, TorchRunner
from llmconv.decoding.decoder import LongText, Tensor, takes_past
from llmconv.encodings import Encoding
from llmconv.errors import ContextFullError
from llmconv.graph import IO, Model, trace
from llmconv.passes import PassManager
from llmconv.testing import random_weights
from llmconv_plugins.passes.kv_cache_io import KVCacheIO

CONTEXT = 8
FLOAT32 = 1e-5  # rounding of attention's sums in another order


@dataclass
class FakeRunner:
    """Remembers its inputs; the key of a token is 10 + its id, its logits are its id and its position."""

    name: str
    ar: int
    context: int = CONTEXT
    last_row: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        past = self.context - self.ar
        found = {
            "ids": Tensor(IO("input_ids"), (1, self.ar)),
            "positions": Tensor(IO("position_ids"), (1, self.ar)),
            "mask": Tensor(IO("attention_mask"), (1, 1, self.ar, self.context)),
            "cos": Tensor(IO("rope_cos"), (1, 1, self.ar, 1)),
            "sin": Tensor(IO("rope_sin"), (1, 1, self.ar, 1)),
        }
        if past:
            found["key_in"] = Tensor(IO("past_key", 0, 0, 3), (1, 1, 1, past))
        return found

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        rows = 1 if self.last_row else self.ar
        return {
            "key_out": Tensor(IO("new_key", 0, 0, 3), (1, 1, 1, self.ar)),
            "logits": Tensor(IO("logits"), (1, rows, 2)),
        }

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        self.seen.append({name: value.copy() for name, value in inputs.items()})  # the cache is written in place
        ids = inputs["ids"].astype(np.float32)
        logits = np.stack([ids[0], inputs["positions"][0]], axis=-1)[None]
        return {"key_out": 10 + ids[None, None], "logits": logits[:, -1:] if self.last_row else logits}


STEP = Encoding(8, 0.5, 128)


class QuantizedRunner(FakeRunner):
    """Has its keys as integers: that of a token is its id."""

    encoding = STEP

    def _quantized(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {n: replace(t, encoding=self.encoding) if t.slot else t for n, t in tensors.items()}

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        return self._quantized(super().inputs)

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self._quantized(super().outputs)

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return super().run(inputs) | {"key_out": inputs["ids"][None, None].astype(np.uint8)}


ANGLES = np.arange(CONTEXT, dtype=np.float32)[:, None]
ROPE = {"rope_cos": ANGLES, "rope_sin": -ANGLES}


def decoder(*runners: FakeRunner) -> Decoder:
    return Decoder(runners, ROPE)


def test_chunks_take_the_largest_graph_and_a_single_token_the_token_graph() -> None:
    prompt, token = FakeRunner("prompt", 3), FakeRunner("token", 1)
    reader = decoder(token, prompt)
    logits = reader.read([5, 6, 7, 8])
    assert (len(prompt.seen), len(token.seen)) == (1, 1)
    assert logits.tolist() == [[5, 0], [6, 1], [7, 2], [8, 3]]
    reader.read([9])
    assert (len(prompt.seen), len(token.seen)) == (1, 2)
    reader.read([1, 2])
    assert (len(prompt.seen), len(token.seen)) == (2, 2)
    assert reader.length == 7


def test_short_chunk_is_padded_on_the_right() -> None:
    prompt = FakeRunner("prompt", 4)
    logits = decoder(prompt).read([5, 6])
    assert prompt.seen[0]["ids"].tolist() == [[5, 6, 0, 0]]
    assert prompt.seen[0]["ids"].dtype == np.int32
    assert prompt.seen[0]["positions"].tolist() == [[0, 1, 2, 3]]
    assert logits.tolist() == [[5, 0], [6, 1]]


def test_padding_never_enters_the_cache() -> None:
    prompt, token = FakeRunner("prompt", 4), FakeRunner("token", 1)
    reader = decoder(prompt, token)
    reader.read([5, 6])
    reader.read([7])
    assert token.seen[0]["key_in"].reshape(-1).tolist() == [15, 16, 0, 0, 0, 0, 0]
    assert token.seen[0]["positions"].tolist() == [[2]]


def test_the_cache_holds_the_integers_of_the_graphs_and_zero_where_it_is_empty() -> None:
    prompt, token = QuantizedRunner("prompt", 4), QuantizedRunner("token", 1)
    reader = decoder(prompt, token)
    reader.read([5, 6])
    reader.read([7])
    found = token.seen[0]["key_in"]
    assert found.dtype == np.uint8
    assert found.reshape(-1).tolist() == [5, 6, 128, 128, 128, 128, 128]
    assert Tensor(IO("past_key", 0, 0, 3), found.shape, STEP).floats(found).reshape(-1)[:3].tolist() == [-61.5, -61, 0]


def test_a_token_moves_nothing_of_the_past() -> None:
    """What the host makes for a token is its mask and small change, not another cache."""
    runner = QuantizedRunner("token", 1)
    reader = decoder(runner)
    reader.read([1, 2])
    before = reader.inputs_for(runner, [3])["key_in"]
    reader.read([3])
    assert reader.inputs_for(runner, [4])["key_in"] is before
    assert before.reshape(-1)[:4].tolist() == [1, 2, 3, 128]


def test_graphs_that_differ_in_their_keys_share_no_cache() -> None:
    other = QuantizedRunner("prompt", 4)
    other.encoding = replace(STEP, scale=0.25)
    for runners in ([other, QuantizedRunner("token", 1)], [QuantizedRunner("prompt", 4), FakeRunner("token", 1)]):
        with pytest.raises(LlmconvError, match="'prompt' and 'token' cannot share a cache: the keys of layer 0"):
            decoder(*runners)


def test_mask_shows_the_past_that_is_filled_and_the_new_causally() -> None:
    prompt = FakeRunner("prompt", 3)
    reader = decoder(prompt)
    reader.read([1, 2])
    reader.read([3, 4])
    first, second = (np.where(s["mask"] == MASKED, 0, 1)[0, 0].tolist() for s in prompt.seen)
    assert first == [[0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert second == [[1, 1, 0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 1, 1]]
    assert set(np.unique(prompt.seen[0]["mask"])) == {0.0, MASKED}


def test_rope_rows_are_those_of_the_positions() -> None:
    prompt = FakeRunner("prompt", 3)
    reader = decoder(prompt)
    reader.read([1, 2])
    reader.read([3])
    assert prompt.seen[1]["cos"].reshape(-1).tolist() == [2, 3, 4]
    assert prompt.seen[1]["sin"].reshape(-1).tolist() == [-2, -3, -4]


def test_positions_stay_within_the_context() -> None:
    """Padding of the last chunk that fits has positions too, for which there are rows of the RoPE table."""
    prompt = FakeRunner("prompt", 3)
    reader = decoder(prompt)
    reader.read([1, 2, 3])
    reader.read([4, 5])
    reader.read([6])
    assert prompt.seen[-1]["positions"].tolist() == [[5, 6, 7]]
    assert prompt.seen[-1]["cos"].reshape(-1).tolist() == [5, 6, 7]


def test_context_is_full_at_its_very_end() -> None:
    reader = decoder(FakeRunner("prompt", 3), FakeRunner("token", 1))
    assert len(reader.read(list(range(CONTEXT)))) == CONTEXT
    with pytest.raises(ContextFullError, match="the context of 8 tokens is full"):
        reader.read([1])
    reader.reset()
    with pytest.raises(ContextFullError):
        reader.read(list(range(CONTEXT + 1)))


def test_prompt_graph_stops_where_its_past_is_full() -> None:
    prompt = FakeRunner("prompt", 3)
    reader = decoder(prompt)
    reader.read([1, 2, 3, 4, 5])
    reader.read([6, 7, 8])  # 5 in the past is all that fits beside 3
    with pytest.raises(ContextFullError):
        reader.read([9])
    other = decoder(FakeRunner("prompt", 3))
    other.read([1, 2, 3, 4, 5, 6])
    with pytest.raises(ContextFullError):
        other.read([7])


def test_near_the_end_the_token_graph_goes_on() -> None:
    prompt, token = FakeRunner("prompt", 3), FakeRunner("token", 1)
    reader = decoder(prompt, token)
    reader.read(list(range(6)))
    reader.read([6, 7])
    assert len(token.seen) == 2


def test_of_graphs_that_read_as_many_the_one_that_sees_least_is_taken() -> None:
    short, long = (FakeRunner("prompt", 2, 4), FakeRunner("token", 1, 4)), (FakeRunner("p", 2), FakeRunner("t", 1))
    reader = decoder(*long, *short)
    logits = reader.read([5, 6, 7, 8, 9])
    assert [len(runner.seen) for runner in (*short, *long)] == [2, 0, 0, 1]
    assert logits.tolist() == [[5, 0], [6, 1], [7, 2], [8, 3], [9, 4]]
    assert long[1].seen[0]["key_in"].reshape(-1).tolist() == [15, 16, 17, 18, 0, 0, 0]
    reader.reset()
    for token in range(CONTEXT):
        reader.read([token])
    assert [len(runner.seen) for runner in (*short, *long)] == [2, 4, 0, 5]
    with pytest.raises(ContextFullError, match="the context of 8 tokens is full"):
        reader.read([1])


def test_graph_without_past_reads_one_chunk_alone() -> None:
    whole = FakeRunner("whole", CONTEXT)
    assert not takes_past(whole)
    reader = decoder(whole)
    reader.read([1, 2])
    with pytest.raises(ContextFullError):
        reader.read([3])
    reader.reset()
    reader.read([3])
    assert len(whole.seen) == 2


def test_reset_forgets() -> None:
    token = FakeRunner("token", 1)
    reader = decoder(token)
    reader.read([5])
    reader.reset()
    reader.read([6])
    assert token.seen[1]["key_in"].sum() == 0
    assert token.seen[1]["positions"].tolist() == [[0]]


def test_one_row_a_chunk_where_a_graph_gives_its_last_alone() -> None:
    assert decoder(FakeRunner("prompt", 2, last_row=True)).read([1, 2, 3, 4]).tolist() == [[2, 1], [4, 3]]


def test_rope_inputs_need_a_table() -> None:
    with pytest.raises(LlmconvError, match="graph 'token' takes RoPE inputs"):
        Decoder([FakeRunner("token", 1)], None).read([1])


def test_unknown_input_and_missing_logits_are_named() -> None:
    class Strange(FakeRunner):
        @property
        def inputs(self) -> Mapping[str, Tensor]:
            return {"h": Tensor(IO("hidden"), (1,))}

    class Silent(FakeRunner):
        @property
        def outputs(self) -> Mapping[str, Tensor]:
            return {}

    with pytest.raises(LlmconvError, match="graph 'strange' has an input of kind hidden"):
        decoder(Strange("strange", 1)).read([1])
    with pytest.raises(LlmconvError, match="graph 'silent' has no logits"):
        decoder(Silent("silent", 1)).read([1])


@pytest.mark.parametrize(
    "names",
    [
        ("prompt",),
        ("token",),
        ("prompt", "token"),
        ("whole",),
        ("prompt4", "prompt"),
        ("token4", "token"),
        ("prompt4", "token4", "prompt", "token"),
    ],
)
def test_real_graphs_agree_with_the_stateless_module(names: tuple[str, ...]) -> None:
    """Five tokens through graphs with a cache, in chunks, against the module that reads all at once."""
    module, tokens = tiny_causal(), [3, 1, 4, 1, 5]
    weights, shapes = (
        random_weights(module),
        {"prompt": (2, 8), "token": (1, 8), "whole": (8, 8), "prompt4": (2, 4), "token4": (1, 4)},
    )
    model = Model({n: trace(module, *shapes[n], n) for n in names}, weights, None)
    PassManager([KVCacheIO()]).run(model)
    runners = [TorchRunner(g, weights) for g in model.graphs.values()]
    tables = max(model.graphs.values(), key=lambda graph: graph.context).host_tables()
    assert tables
    found = Decoder(runners, tables).read(tokens)
    expected = Decoder([TorchRunner(trace(module, 5, 5, "source"), weights)], None).read(tokens)
    assert torch.allclose(torch.from_numpy(found), torch.from_numpy(expected), atol=FLOAT32)


def visible(run: Mapping[str, Any], row: int) -> list[int]:
    """The ids that a run's row sees, past ones first."""
    keys = np.concatenate([run["key_in"].ravel() - 10, run["ids"].ravel()])
    return [int(key) for key, mask in zip(keys, run["mask"].reshape(-1, CONTEXT)[row], strict=True) if mask == 0]


def test_a_long_text_forgets_the_oldest_behind_the_sinks_and_counts_on() -> None:
    prompt, token = FakeRunner("prompt", 3), FakeRunner("token", 1)
    angles = np.arange(20 + 3, dtype=np.float32)[:, None]
    made = Decoder([prompt, token], {"rope_cos": angles, "rope_sin": -angles}, LongText(20, 2))
    made.read(list(range(1, 9)))  # 1 to 3, 4 to 6, and 7 and 8
    assert visible(prompt.seen[-1], 1) == [1, 2, 4, 5, 6, 7, 8]
    for step in range(9, 13):
        assert made.read([step])[-1].tolist() == [step, step - 1]
        first = {9: 6, 10: 6, 11: 6, 12: 7}[step]
        assert visible(token.seen[-1], 0) == [1, 2, *range(first, step + 1)]
        assert token.seen[-1]["cos"].ravel().tolist() == [step - 1]
    assert made.crowded
    made.read(list(range(13, 21)))
    with pytest.raises(ContextFullError, match="the context of 20 tokens is full"):
        made.read([21])
    assert made.length == 20
    assert made.rewind(3) == made.length == 0
