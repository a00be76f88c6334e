import numpy as np
from llmconv_among_five import AmongFive

from llmconv.testing import try_evaluator


def test_counts_each_token_but_the_first() -> None:
    trial = try_evaluator(AmongFive())
    share = trial.figures["share"]
    assert share.count == sum(len(ids) - 1 for ids, _ in trial.windows)
    ranks = [int((row > row[token]).sum()) for ids, logits in trial.windows for row, token in zip(logits, ids[1:])]
    assert share.value == np.mean([rank < 5 for rank in ranks])


def test_every_token_is_among_all() -> None:
    assert try_evaluator(AmongFive(first=20)).figures["share"].value == 1
