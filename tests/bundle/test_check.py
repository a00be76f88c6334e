"""One line of a proof."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmconv.bundle.check import Check, at_least, at_most


@pytest.mark.parametrize("passed", [np.bool_(True), np.bool_(False), True, False, None])
def test_whether_it_passed_is_pythons_own(passed: bool | None) -> None:
    check = Check(2, "logits", "0.1", "≤ 1", passed)
    assert check.passed is (None if passed is None else bool(passed))
    assert json.loads(json.dumps(check.to_dict()))["passed"] == check.passed


def test_bounds_of_numpys_numbers() -> None:
    assert at_most(1, "error", np.float32(0.5), 1.0).passed is True
    assert at_most(1, "error", np.float32("nan"), 1.0).passed is False
    assert at_least(3, "ratio", np.float64(20.0), 30.0).passed is False
