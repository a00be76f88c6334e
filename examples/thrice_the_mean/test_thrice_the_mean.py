import pytest
from llmconv_thrice_the_mean import ThriceTheMean

from llmconv.testing import try_quantizer


def test_clips_what_is_far_and_costs_less_than_holding_it() -> None:
    trial = try_quantizer(ThriceTheMean())
    assert trial.encoded.ints.abs().max() == 8  # -8 is what clipping leaves; the largest number alone would be 7
    assert trial.sqnr > trial.nearest


def test_scale_of_a_row_is_made_of_its_mean() -> None:
    trial = try_quantizer(ThriceTheMean(times=7.0))
    weight = trial.encoded.dequantize()
    assert trial.encoded.scale.tolist() == pytest.approx(weight.abs().mean(dim=1).tolist(), rel=0.3)
