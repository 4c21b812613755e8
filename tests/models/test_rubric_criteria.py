"""The criteria of a sample: of recipes, of public rubric files, and without those left out."""

from typing import Any

import pytest
from pydantic import ValidationError
from tolerance import by_hand

from alarm_models.errors import SampleError
from alarm_models.recipe.specs import RubricSpec
from alarm_models.reward_models.rubric.aggregation import rubric_score
from alarm_models.reward_models.rubric.criteria import Criterion, rubric_of
from alarm_models.types import Sample

ENDPOINT = {"url": "http://judge", "model": "m"}


def spec(**keys: Any) -> RubricSpec:
    return RubricSpec.model_validate({"endpoint": ENDPOINT} | keys)


def sample(rubric: object, **more: Any) -> Sample:
    fields = {"rubric": rubric} | more.pop("fields", {})
    return Sample("p", "c", fields=fields, **more)


def test_own_criteria_follow_those_of_the_recipe() -> None:
    both = rubric_of(
        sample([{"name": "b", "text": "U", "requires": ["a"]}]), spec(criteria={"a": {"text": "T"}})
    )
    assert both.criteria == (Criterion("a", "T", 1), Criterion("b", "U", 1, ("a",)))


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        ([], r"fields\.rubric is empty: send at least one criterion"),
        (None, r"there is no criterion: send fields\.rubric"),
        ("[{", r"fields\.rubric is not valid JSON"),
        (7, r"must be a list of criteria, not 7"),
        ([{"text": "T", "weight": float("nan")}], r"fields\.rubric\[0\]\.weight: .* finite"),
        ([{"text": ""}], r"fields\.rubric\[0\]\.text: "),
        ("  ", r"fields\.rubric\[0\]\.text: write a statement"),
        ("null", "fields.rubric is 'null', which is not a rubric"),
        ("NaN", "which is not a rubric"),
        (
            [{"text": "T", "requires": "a"}],
            r"fields\.rubric\[0\]\.requires must be a list of names",
        ),
        ([{"text": "T", "weight": 1e308}], r"fields\.rubric\[0\]\.weight: .* less than or equal"),
        ([{"text": "T", "name": ["a"]}], r"fields\.rubric\[0\]: its name must be a text"),
        ([{"text": "T", "name": "n" * 1001}], "at most 1000 characters"),
        ([{"text": "T", "weight": 1, "importance": "pitfall"}], "have a negative weight"),
        ([{"text": "T", "weight": 0}], "every criterion has weight 0"),
        (
            [*[{"name": "a", "text": "T"}] * 2, {"text": "U", "requires": ["a"]}],
            r"fields\.rubric\[2\]\.requires: several criteria have the names \['a'\]",
        ),
        ([{"text": "T", "requires": ["z"]}], r"requires \['z'\], unknown names"),
        (
            [
                {"name": "a", "text": "T", "requires": ["b"]},
                {"name": "b", "text": "T", "requires": ["a"]},
            ],
            "`requires` has a cycle",
        ),
    ],
)
def test_rubric_of_sample_that_cannot_be_used_is_refused(rubric: object, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        rubric_of(sample(rubric), spec())
    assert caught.value.code == "invalid_sample"


def test_own_criterion_with_the_name_of_one_of_the_recipe_is_refused() -> None:
    with pytest.raises(SampleError, match=r"\['a'\] are names of criteria of the recipe"):
        rubric_of(sample([{"name": "a", "text": "U"}]), spec(criteria={"a": {"text": "T"}}))


def test_pitfalls_that_are_worded_as_avoided_add_their_weight() -> None:
    rubric = [{"text": "Avoids T", "importance": "pitfall"}, {"text": "Avoids U", "weight": -2}]
    for pitfalls, weights in (("faults", [-0.9, -2]), ("avoided", [0.9, 2])):
        found = rubric_of(sample(rubric), spec(pitfalls=pitfalls)).criteria
        assert [one.weight for one in found] == weights


def test_dropout_leaves_out_the_same_criteria_for_a_group_and_others_at_other_steps() -> None:
    rubric = [{"name": f"n{at}", "text": "T"} for at in range(20)]
    drops = spec(dropout=0.5)

    def names(**more: Any) -> list[str]:
        return [one.name for one in rubric_of(sample(rubric, **more), drops).criteria]

    first = names(group="g", fields={"step": 1})
    assert names(group="g", fields={"step": 1, "other": 2}) == first
    assert names(group="g", fields={"step": 2}) != first
    assert names(group="h", fields={"step": 1}) != first
    assert 5 <= len(first) <= 15
    whole = rubric_of(sample(rubric, group="g", fields={"step": 1}), drops)
    assert {*first} | {*whole.left_out} == {f"n{at}" for at in range(20)}


def test_dropout_keeps_a_criterion_with_a_positive_weight() -> None:
    rubric = [{"name": "good", "text": "T"}, {"name": "bad", "text": "T", "weight": -1}]
    for step in range(20):
        kept = rubric_of(sample(rubric, fields={"step": step}), spec(dropout=0.99)).criteria
        assert "good" in {one.name for one in kept}


A, B, BAD = Criterion("a", "", 2), Criterion("b", "", 1, ("a",)), Criterion("bad", "", -1)


@pytest.mark.parametrize(
    ("criteria", "met", "score"),
    [
        ([A, BAD], {"a": 1, "bad": 0}, 1),
        ([A, BAD], {"a": 1, "bad": 1}, 0.5),
        ([A, BAD], {"a": 0, "bad": 1}, 0),  # clipped
        ([A, B], {"a": 0, "b": 1}, 0),  # b requires a
        ([A, B], {"a": 0.5, "b": 1}, 0.5),  # (2 * 0.5 + 1 * 0.5) / 3
        ([A, Criterion("b", "", 1, ("a", "a"))], {"a": 0.5, "b": 1}, 0.5),  # named twice
        ([A, B], {"b": 1}, 1),  # a has no verdict
        ([BAD], {"bad": 0}, 1),
        ([BAD, Criterion("worse", "", -3)], {"bad": 1, "worse": 0}, 0.75),
    ],
)
def test_rubric_score_is_the_weighted_share(
    criteria: list[Criterion], met: dict[str, float], score: float
) -> None:
    assert rubric_score(criteria, met) == by_hand(score)


def test_rubric_score_without_verdicts_or_with_nan_fails() -> None:
    for met, code in (({"bad": 1.0}, "model_failed"), ({"a": float("nan")}, "non_finite")):
        with pytest.raises(SampleError) as caught:
            rubric_score([A, BAD], met)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint": "x"}, "either a checkpoint or an endpoint, not both"),
        ({"endpoint": None}, "either a checkpoint or an endpoint, not neither"),
        ({"template": "t"}, "Extra inputs"),
        ({"max_tokens": 99}, "max_tokens cannot be used with an endpoint"),
        ({"endpoint": None, "checkpoint": "x", "n": 3}, "n cannot be used with a checkpoint"),
        ({"n": 3}, "3 answers at temperature 0"),
        ({"question": "Q {completion} {criteria}"}, r"does not contain \{mark\}"),
        ({"criteria": {"a": {"text": "T", "requires": ["b"]}}}, r"criteria\.a\.requires names"),
        ({"criteria": {"a": {"text": "T", "weight": 0}}}, "every criterion has weight 0"),
    ],
)
def test_rubric_spec_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**keys)
