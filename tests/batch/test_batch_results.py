"""The loop over a matrix and what it keeps, with conversions that a function stands in for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmconv import Bundle, BundleError, Recipe, Registry
from llmconv.batch import page
from llmconv.batch import run as loop
from llmconv.batch.child import Ended
from llmconv.batch.matrix import Matrix, Member
from llmconv.batch.results import Results
from llmconv.work.folder import locked

OK = Ended(0, 3.0, None)


@pytest.fixture
def members(small_recipe: Path, tmp_path: Path) -> list[Member]:
    matrix = Matrix(recipes=[small_recipe], targets=["Galaxy S23 Ultra", "Galaxy S24", "Galaxy S25"])
    return matrix.members(tmp_path / "out", ["backend.name=onnx", "verify.passes=false"])


class Stand:
    """Converts by copying a bundle, and ends as it was told for each try of a name."""

    def __init__(self, bundle: Bundle, ends: dict[str, list[Ended]], **report: Any) -> None:
        self.bundle, self.ends, self.report = bundle, ends, report
        self.asked: list[str] = []
        self.reused: list[list[str]] = []

    def __call__(self, member: Member, others: Sequence[Path]) -> Ended:
        self.asked.append(member.axes["target"])
        self.reused.append([other.name for other in others])
        queue = self.ends.get(member.axes["target"], [])
        ended = queue.pop(0) if queue else OK
        if ended.code in (0, 1) and not member.folder.exists():
            shutil.copytree(self.bundle.folder, member.folder)
            made = Bundle(member.folder)
            made.write_report({**made.report, **self.report})
        return ended


def run(members: list[Member], stand: Stand) -> Results:
    output = members[0].folder.parent
    registry = Registry.load()
    found = loop.run("night", members, output, stand, lambda _recipe: registry)
    assert json.loads((output / "batch.json").read_text()) == found.model_dump(mode="json")
    return found


def test_what_fails_leaves_the_others_alone_and_is_tried_once_more_at_the_end(
    members: list[Member], small_onnx: Bundle
) -> None:
    broken = Ended(2, 1.0, "no such checkpoint")
    killed = Ended(-9, 1.0, "its process was ended by SIGKILL")
    stand = Stand(small_onnx, {"Galaxy S23 Ultra": [broken, broken], "Galaxy S24": [killed, OK]})
    results = run(members, stand).conversions
    assert stand.asked == ["Galaxy S23 Ultra", "Galaxy S24", "Galaxy S25", "Galaxy S23 Ultra", "Galaxy S24"]
    assert [(r.state, r.tries, r.error) for r in results] == [
        ("failed", 2, "no such checkpoint"),
        ("done", 2, None),
        ("done", 1, None),
    ]
    text = (members[0].folder.parent / page.PAGE).read_text()
    assert "2 of 3 conversions are done, 1 failed." in text
    assert text.count("no such checkpoint") == 1
    assert '<td class="text">Galaxy S24</td>' in text
    assert '<th scope="col">recipe</th>' not in text  # of which there is one
    assert f'<a href="{members[1].name}/report.html">{members[1].name}</a>' in text
    assert f'href="{members[0].name}/report.html"' not in text


def test_what_has_steps_serves_those_that_come_after_it(members: list[Member], small_onnx: Bundle) -> None:
    stand = Stand(small_onnx, {})
    run(members, stand)
    names = [member.name for member in members]
    assert stand.reused == [[], names[:1], names[:2]]


def test_a_proof_that_failed_is_told_and_not_tried_again(members: list[Member], small_onnx: Bundle) -> None:
    proof = [{"name": "a", "passed": passed} for passed in (True, False, None, False)]
    stand = Stand(small_onnx, {"Galaxy S25": [Ended(1, 5.0, "2 of 4 checks failed")]}, proof=proof)
    result = run(members, stand).conversions[2]
    assert stand.asked.count("Galaxy S25") == 1
    assert (result.state, result.error) == ("failed", "2 checks of its proof failed")
    assert result.figures is not None
    assert result.figures.proof == (1, 3)


def test_what_is_done_is_not_asked_for_again(
    members: list[Member], small_onnx: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(members[:2], Stand(small_onnx, {}))
    seen: list[str] = []

    def made_before(recipe: Recipe, _registry: Registry) -> Bundle | None:
        seen.append(recipe.target.name)
        return Bundle(recipe.folder) if recipe.target.name == "Galaxy S24" else None

    monkeypatch.setattr(loop, "made_before", made_before)
    again = Stand(small_onnx, {})
    results = run(members, again)
    assert seen == ["Galaxy S23 Ultra", "Galaxy S24"]  # the third has no bundle
    assert again.asked == ["Galaxy S23 Ultra", "Galaxy S25"]
    assert [(r.state, r.seconds) for r in results.conversions] == [("done", 3.0)] * 3


@pytest.mark.parametrize(("proof", "asked"), [(None, 1), ([{"passed": False}], 1), ([{"passed": True}], 0)])
def test_a_bundle_that_is_to_be_proved_is_done_when_its_proof_holds(
    members: list[Member], small_onnx: Bundle, monkeypatch: pytest.MonkeyPatch, proof: Any, asked: int
) -> None:
    verified = members[0].recipe.verify.model_copy(update={"passes": True})
    member = Member(**{**vars(members[0]), "recipe": members[0].recipe.model_copy(update={"verify": verified})})
    run([member], Stand(small_onnx, {}, **({} if proof is None else {"proof": proof})))
    monkeypatch.setattr(loop, "made_before", lambda recipe, _registry: Bundle(recipe.folder))
    again = Stand(small_onnx, {})
    run([member], again)
    assert len(again.asked) == asked


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1, "matrix": "x", "conversions": [1]}'])
def test_results_that_are_damaged_are_made_anew(members: list[Member], small_onnx: Bundle, text: str) -> None:
    output = members[0].folder.parent
    output.mkdir()
    (output / "batch.json").write_text(text)
    assert [r.state for r in run(members, Stand(small_onnx, {})).conversions] == ["done"] * 3


def test_a_second_batch_on_the_same_output_stops(members: list[Member], small_onnx: Bundle) -> None:
    output = members[0].folder.parent
    output.mkdir()
    with locked(output / "batch"), pytest.raises(BundleError, match="another llmconv works on it"):
        run(members, Stand(small_onnx, {}))


def test_nothing_of_a_message_becomes_markup(members: list[Member], small_onnx: Bundle) -> None:
    evil = Ended(2, 1.0, "<script>alert(1)</script>")
    run(members, Stand(small_onnx, {"Galaxy S25": [evil, evil]}))
    assert "<script>" not in (members[0].folder.parent / page.PAGE).read_text()
