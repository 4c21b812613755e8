import numpy as np
import pytest

from alarm_models.study.agreement import Agreement, agreement
from alarm_models.study.bootstrap import Resampling
from alarm_models.study.pairs import pairs_within, preferences
from alarm_models.study.selection import Verdict, select

PAIRS = pairs_within([index // 2 for index in range(800)])
HOLISTIC = [1.0, 0.0] * 400


def judged(num_for: int, num_against: int) -> Agreement:
    """An aspect that agrees on so many of 400 pairs, disagrees on others and ties the rest."""
    outcomes = np.zeros(400)
    outcomes[:num_for] = 1
    outcomes[num_for : num_for + num_against] = -1
    return agreement(preferences(HOLISTIC, PAIRS), outcomes, PAIRS, Resampling(num_draws=500))


GOOD, COARSE, COIN, AGAINST = judged(280, 120), judged(41, 39), judged(200, 200), judged(120, 280)


def test_selection_chooses_the_agreeing_aspect_with_its_reason() -> None:
    found = select({"coin": COIN, "good": GOOD}, ["coin", "good"], 1)
    assert found.chosen == ("good",)
    assert found.findings["good"].verdict is Verdict.CHOSEN
    assert "only 30.0% [" in found.findings["good"].reason
    assert "its tau-b of 0.40 is the highest of those that agree" in found.findings["good"].reason
    assert found.findings["coin"].verdict is Verdict.UNCLEAR
    assert "not distinguishable from chance" in found.findings["coin"].reason


def test_selection_by_ties_alone_chooses_none_and_warns() -> None:
    found = select({"good": GOOD, "coarse": COARSE}, ["good", "coarse"], 2)
    assert found.by_paper == "coarse"  # 39 of 400 disagree: 9.75%, the lowest
    assert found.chosen == ("good",)
    assert found.findings["coarse"].caution == (
        "the paper's 9.8% counts 80.0% of ties as agreement; "
        "an unrelated aspect with as many ties would score 10.0%"
    )
    assert found.findings["good"].caution is None


def test_selection_reports_an_aspect_against_the_reference() -> None:
    found = select({"against": AGAINST}, ["against"], 1)
    assert found.chosen == ()
    assert found.findings["against"].verdict is Verdict.OPPOSES


def test_selection_never_chooses_a_baseline() -> None:
    found = select({"length": GOOD}, [], 1)
    assert found.chosen == ()
    assert found.by_paper is None
    assert "but is not chosen" in found.findings["length"].reason


@pytest.mark.parametrize(("most", "chosen"), [(0, ()), (1, ("a",)), (2, ("a", "b"))])
def test_selection_chooses_at_most_the_number_asked_for(most: int, chosen: tuple[str, ...]) -> None:
    better = judged(300, 100)
    found = select({"b": GOOD, "a": better}, ["a", "b"], most)
    assert found.chosen == chosen
    assert all(one.reason for one in found.findings.values())


def test_selection_reports_an_aspect_that_decides_nothing() -> None:
    found = select({"flat": judged(0, 0)}, ["flat"], 1)
    assert found.findings["flat"].verdict is Verdict.SILENT
    assert found.findings["flat"].caution is None


@pytest.mark.parametrize(("num_prompts", "verdict"), [(5, "unclear"), (6, "chosen")])
def test_selection_needs_six_prompts_to_tell_from_chance(num_prompts: int, verdict: str) -> None:
    # All prompts agree: by chance, five do so in the same direction in 1 of 16 cases.
    pairs = pairs_within([index // 2 for index in range(2 * num_prompts)])
    agreed = preferences([1.0, 0.0] * num_prompts, pairs)
    one = agreement(agreed, agreed, pairs, Resampling(num_draws=200))
    found = select({"good": one}, ["good"], 1).findings["good"]
    assert found.verdict == verdict
    assert ("too few prompts to tell from chance" in found.reason) == (verdict == "unclear")
