"""The holistic model of `mini` ranks right answers over wrong ones to questions not trained on.

The questions and passages were written for these tests. The model card has the figures on questions
that were held out from training.
"""

import pytest
import torch
from scoring import score

from alarm_models.recipe.loader import load_recipe
from alarm_models.reward_models.base import HostModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample

pytestmark = pytest.mark.numeric

EMMA = (
    "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel written by "
    "English author Jane Austen. It was first published in December 1815 in London. wikipage: "
    "Oliver Twist text: Oliver Twist is a novel written by Charles Dickens. It appeared in 1838."
)
TOWER = (
    "question: When was the Eiffel Tower opened? context: wikipage: Eiffel Tower text: The Eiffel "
    "Tower was built by the company of Gustave Eiffel for the World's Fair in Paris. It opened to "
    "the public on 15 May 1889. wikipage: Tokyo Tower text: The Tokyo Tower opened in 1958."
)
MARS = (
    "question: How many moons does Mars have? context: wikipage: Mars text: Mars has two moons, "
    "Phobos and Deimos, which were discovered in 1877 by the American astronomer Asaph Hall. "
    "wikipage: Jupiter text: Jupiter has 95 known moons. Galileo Galilei saw four in 1610."
)
RHINE = (
    "question: Where does the Rhine begin? context: wikipage: Rhine text: The Rhine begins in the "
    "Swiss canton of Graubünden in the Alps. It flows to the North Sea in the Netherlands. "
    "wikipage: Danube text: The Danube begins in the Black Forest in Germany."
)

#: A short and a long right answer to each question.
RIGHT = {
    EMMA: (
        "Emma was written by Jane Austen.",
        "Emma is a novel written by English author Jane Austen. It was first published in December "
        "1815 in London.",
    ),
    TOWER: (
        "It opened on 15 May 1889.",
        "The Eiffel Tower was built for the World's Fair in Paris. It opened to the public on 15 "
        "May 1889.",
    ),
    MARS: (
        "Mars has two moons.",
        "Mars has two moons, Phobos and Deimos. They were discovered in 1877 by Asaph Hall.",
    ),
    RHINE: (
        "The Rhine begins in the Swiss canton of Graubünden.",
        "The Rhine begins in the Swiss canton of Graubünden in the Alps. It flows north.",
    ),
}

#: Replacements that make an answer wrong, by prompt: names or numbers that the passages have.
SWAPPED = {
    EMMA: ("Jane Austen", "Charles Dickens"),
    TOWER: ("1889", "1958"),
    MARS: ("two", "95"),
    RHINE: ("Swiss canton of Graubünden", "Black Forest"),
}


def faults(prompt: str, right: str) -> dict[str, str]:
    """Return a wrong version of a right answer of each kind."""
    old, new = SWAPPED[prompt]
    question = prompt.removeprefix("question: ").split(" context:")[0]
    return {
        "empty": "",
        "refusal": "I am unable to answer this.",
        "question again": question,
        "off topic": next(one for key, (one, _) in RIGHT.items() if key != prompt),
        "repetitive": f"{right} {right} {right}",
        "numbered": f"1. 2. 3. {right}",
        "cut off": " ".join(right.split()[:-2]),
        "swapped": right.replace(old, new),
    }


@pytest.fixture(scope="module")
def wins() -> dict[str, list[bool]]:
    """Whether the right answer scores higher, for each kind and right answer."""
    recipe = load_recipe("mini")
    model = Loader(torch.device("cpu")).load(recipe.models["preference"], recipe.field_patterns)
    assert not isinstance(model, HostModel)
    found: dict[str, list[bool]] = {}
    for prompt, answers in RIGHT.items():
        for right in answers:
            wrong = faults(prompt, right)
            first, *rest = score(model, [Sample(prompt, one) for one in (right, *wrong.values())])
            for kind, one in zip(wrong, rest, strict=True):
                assert first.value is not None
                assert one.value is not None
                found.setdefault(kind, []).append(first.value > one.value)
    return found


@pytest.mark.parametrize("kind", ["empty", "refusal", "question again", "repetitive", "numbered"])
def test_mini_ranks_right_answers_over_those_of_a_kind(
    kind: str, wins: dict[str, list[bool]]
) -> None:
    assert wins[kind] == [True] * 8


@pytest.mark.parametrize("kind", ["off topic", "cut off", "swapped"])
def test_mini_ranks_most_right_answers_over_those_of_a_kind(
    kind: str, wins: dict[str, list[bool]]
) -> None:
    assert sum(wins[kind]) >= 7
