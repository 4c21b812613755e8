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


def test_the_aspect_that_agrees_is_chosen_and_says_why() -> None:
    found = select({"coin": COIN, "good": GOOD}, ["coin", "good"], 1)
    assert found.chosen == ("good",)
    assert found.findings["good"].verdict is Verdict.CHOSEN
    assert "only 30.0% [" in found.findings["good"].reason
    assert "its tau-b of 0.40 is the highest of the aspects" in found.findings["good"].reason
    assert found.findings["coin"].verdict is Verdict.UNCLEAR
    assert "not distinguishable from chance" in found.findings["coin"].reason


def test_ties_alone_make_no_choice_and_the_paper_s_figure_is_said_to_mislead() -> None:
    found = select({"good": GOOD, "coarse": COARSE}, ["good", "coarse"], 2)
    assert found.by_paper == "coarse"  # 39 of 400 disagree: 9.75%, the lowest
    assert found.chosen == ("good",)
    assert found.findings["coarse"].caution == (
        "the paper's 9.8% counts 80.0% of ties as agreement; "
        "an unrelated aspect with as many ties would score 10.0%"
    )
    assert found.findings["good"].caution is None


def test_an_aspect_that_goes_against_the_reference_is_told_so() -> None:
    found = select({"against": AGAINST}, ["against"], 1)
    assert found.chosen == ()
    assert found.findings["against"].verdict is Verdict.OPPOSES


def test_a_baseline_is_judged_and_never_chosen() -> None:
    found = select({"length": GOOD}, [], 1)
    assert found.chosen == ()
    assert found.by_paper is None
    assert "but is not chosen" in found.findings["length"].reason


@pytest.mark.parametrize(("most", "chosen"), [(0, ()), (1, ("a",)), (2, ("a", "b"))])
def test_no_more_are_chosen_than_asked_for(most: int, chosen: tuple[str, ...]) -> None:
    better = judged(300, 100)
    found = select({"b": GOOD, "a": better}, ["a", "b"], most)
    assert found.chosen == chosen
    assert all(one.reason for one in found.findings.values())


def test_an_aspect_that_decides_nothing_is_silent() -> None:
    found = select({"flat": judged(0, 0)}, ["flat"], 1)
    assert found.findings["flat"].verdict is Verdict.SILENT
    assert found.findings["flat"].caution is None
