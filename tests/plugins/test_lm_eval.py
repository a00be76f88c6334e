"""A bundle as a model of lm_eval, on a task of two local questions, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmconv import Bundle, Registry
from llmconv.evaluation import Subject, log_probabilities

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
FLOAT32 = 1e-5  # of a sum of log probabilities
QUESTIONS = [
    {"question": "Return the number of", "choices": ["bytes", "elephants"], "answer": 0},
    {"question": "Raise an", "choices": ["umbrella", "exception"], "answer": 1},
]
TASK = """
task: two_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def subject(small_bundle: Bundle) -> Subject:
    return Subject(small_bundle, Registry.load(), lambda _stage, _item: None)


def test_likelihoods_are_those_of_the_logits(small_bundle: Bundle, subject: Subject) -> None:
    from lm_eval.api.instance import Instance

    from llmconv_plugins.evaluators.lm_eval import bundle_lm

    with bundle_lm(small_bundle, "torch") as model:
        context, asked = "Return the", " number of bytes"
        request = Instance("loglikelihood", {}, (context, asked), 0)
        ((found, greedy),) = model.loglikelihood([request], disable_tqdm=True)
        whole, begun = model.tok_encode(context + asked), model.tok_encode(context)
    with subject.runtime("torch").open(small_bundle) as runners:
        rows = log_probabilities(subject.decoder(*runners).read(whole[:-1]))[len(begun) - 1 :]
    chosen = rows[np.arange(len(rows)), whole[len(begun) :]]
    assert found == pytest.approx(float(chosen.sum()), rel=FLOAT32)
    assert greedy == bool((rows.argmax(axis=1) == whole[len(begun) :]).all())


def test_answers_end_at_the_string_that_a_task_names(small_bundle: Bundle) -> None:
    from lm_eval.api.instance import Instance

    from llmconv_plugins.evaluators.lm_eval import bundle_lm

    def asked(options: dict[str, object]) -> str:
        request = Instance("generate_until", {}, ("Return the", options), 0)
        return str(model.generate_until([request], disable_tqdm=True)[0])

    with bundle_lm(small_bundle, "torch") as model:
        whole = asked({"max_gen_toks": 12})
        end = whole[len(whole) // 2]
        assert asked({"max_gen_toks": 12, "until": [end]}) == whole[: whole.index(end)]


@pytest.mark.filterwarnings("ignore")  # of lm_eval and datasets
def test_a_task_of_a_local_file_runs(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    from llmconv_plugins.evaluators.lm_eval import bundle_lm

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "two_questions.yaml").write_text(TASK.format(data=tmp_path / "data.json"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with bundle_lm(small_bundle, "torch") as model:
        found = lm_eval.simple_evaluate(model=model, tasks=["two_questions"], task_manager=tasks)
    assert found is not None
    assert found["results"]["two_questions"]["acc,none"] in (0.0, 0.5, 1.0)
    assert found["n-samples"]["two_questions"]["effective"] == len(QUESTIONS)
