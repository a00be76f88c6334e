"""A bundle as a model of EleutherAI's lm_eval, the extra of that name; MMLU and the rest run as people know them.

with bundle_lm(Bundle("build/smollm2_135m_chat")) as model:
    lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llmconv import Bundle, BundleError, Registry, Sampling
from llmconv.decoding import Decoder, DecoderDialog, Sampler, gives_all_rows, stream_text
from llmconv.evaluation import Subject, log_probabilities

WRITTEN = 256  # tokens of an answer where a task names no limit


class BundleLM(TemplateLM):  # type: ignore[misc]
    """A bundle on a runtime.

    Args:
        decoder: over graphs that give a row of logits for each token.
        subject: the bundle.
    """

    def __init__(self, decoder: Decoder, subject: Subject) -> None:
        super().__init__()
        self._decoder, self._tokenizer, self._config = decoder, subject.described.tokenizer, subject.bundle.config

    @property
    def eot_token_id(self) -> int:
        """What ends a text, and begins one that a task leaves without a beginning."""
        return self._config.eos[0] if self._config.eos else 0

    @property
    def prefix_token_id(self) -> int:
        """What begins a text."""
        return self._tokenizer.begin[0] if self._tokenizer.begin else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Of the bundle's own tokenizer."""
        return "llmconv"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; what begins texts in front, unless it is not wanted."""
        begin = () if add_special_tokens is False else self._tokenizer.begin
        return [*begin, *self._tokenizer.encode_marked(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return [self._score(context, asked) for _, context, asked in tqdm(requests, disable=disable_tqdm)]

    def _score(self, context: list[int], asked: list[int]) -> tuple[float, bool]:
        """The log likelihood of tokens after a context, whose beginning is cut where it is too long."""
        ids = [*context, *asked][-self._decoder.context - 1 :]
        self._decoder.reset()
        rows = log_probabilities(self._decoder.read(ids[:-1]))[-len(asked) :]
        chosen = rows[range(len(asked)), asked]
        return float(chosen.sum()), bool((rows.argmax(axis=1) == asked).all())

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log likelihood of whole texts, window by window, each token once."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self._decoder.context, 1)
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers up to the strings that end them."""
        return [self._answer(*request.args) for request in tqdm(requests, disable=disable_tqdm)]

    def _answer(self, text: str, options: dict[str, Any]) -> str:
        until = [options["until"]] if isinstance(options.get("until"), str) else list(options.get("until", ()))
        limit = int(options.get("max_gen_toks", WRITTEN))
        ids = self.tok_encode(text)[-(self._decoder.context - limit) :]
        self._decoder.reset()
        dialog = DecoderDialog(self._decoder, Sampler(Sampling()), self._config.eos)
        answer = ""
        for piece in stream_text(self._tokenizer, ids, dialog.query(ids, limit)):
            answer += piece
            if ends := [answer.index(end) for end in until if end in answer]:
                return answer[: min(ends)]
        return answer


@contextmanager
def bundle_lm(bundle: Bundle, on: str = "onnxruntime", registry: Registry | None = None) -> Iterator[BundleLM]:
    """A bundle opened for lm_eval.

    Args:
        on: a runtime that gives logits.

    Raises:
        LlmconvError: the runtime cannot run the bundle, or its graphs give the last row of their logits alone.
    """
    subject = Subject(bundle, registry or Registry.load(), lambda _stage, _item: None)
    with subject.runtime(on).open(bundle) as runners:
        if not all(gives_all_rows(runner) for runner in runners):
            raise BundleError(f"{bundle.folder}: gives the last row of its logits alone; it cannot be measured")
        yield BundleLM(subject.decoder(*runners), subject)
