import torch
from llmconv_fold_silu import FoldSilu, register_lowerings

from llmconv.graph import aten
from llmconv.testing import try_lowering, try_pass


def test_abs_is_one_node() -> None:
    trial = try_lowering(register_lowerings(), aten.abs.default, torch.linspace(-2, 3, 24).reshape(1, 4, 6))
    assert trial.ops == {"Abs": 1}


def test_silu_is_gone_and_a_second_run_finds_none() -> None:
    trial = try_pass(FoldSilu)
    for name, before in trial.before.items():
        assert (before["silu"], trial.after[name]["silu"]) == (2, 0)
        assert trial.after[name]["abs"] == trial.after[name]["relu"] == 2
    assert not trial.again()
