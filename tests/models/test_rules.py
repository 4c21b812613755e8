"""The rules beyond the paper's four, against numbers a reader can check."""

import math
from dataclasses import replace

import pytest

from alarm_models.combination.all_rules import (
    AspectInput,
    Rule,
    RuleInputs,
    RuleParams,
    aspects_apply,
)
from alarm_models.combination.rewards import apply_rule
from alarm_models.errors import SampleError

#: Threshold 1, W 2, aspects a (weight 1) and b (weight 0.5).
PLAIN = RuleParams(Rule.WEIGHTED_SUM, 1.0, 2.0, 0.0, 1.0, {"a": 1.0, "b": 0.5})


def whole(value: float, level: float | None = None) -> AspectInput:
    """Return an aspect that judges the whole completion, paid on the last of two tokens."""
    return AspectInput((0.0, value), value, value if level is None else level)


def inputs(z: float, **aspects: AspectInput) -> RuleInputs:
    return RuleInputs(z, aspects, 2)


def tokens(rule: Rule, given: RuleInputs, **constants: object) -> list[float]:
    (found,) = apply_rule([given], replace(PLAIN, rule=rule, **constants))  # type: ignore[arg-type]
    assert not isinstance(found, SampleError), found
    return [round(value, 6) for value in found]


@pytest.mark.parametrize(
    ("z", "gate"), [(1.0, 0.5), (1.0 + math.log(3), 0.75), (1.0 - math.log(3), 0.25)]
)
def test_soft_gate_past_the_threshold_scales_aspects_by_the_sigmoid(z: float, gate: float) -> None:
    given = inputs(z, a=AspectInput((1.0, 3.0), 2.0, 2.0))
    assert tokens(Rule.SOFT_GATE, given, temperature=1.0) == [
        gate,
        round(2 * z + 3 * gate, 6),
    ]


def test_soft_gate_with_tiny_temperature_equals_hierarchical() -> None:
    for z in (0.9, 1.1):
        given = inputs(z, a=whole(3.0))
        sharp = tokens(Rule.SOFT_GATE, given, temperature=1e-9)
        assert sharp == tokens(Rule.HIERARCHICAL, inputs(z, **({"a": whole(3.0)} if z > 1 else {})))


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.5, [0, 4 + 1 + 0.5 * 10]),  # equality passes, as at the threshold
        (0.4, [0, 4 + 1]),  # b, behind the closed gate, does not count
    ],
)
def test_cascade_aspect_below_its_minimum_closes_the_gate_behind_it(
    level: float, expected: list[float]
) -> None:
    given = inputs(2.0, a=whole(1.0, level), b=whole(10.0))
    constants = {"order": ("a",), "minimums": {"a": 0.5}}
    assert tokens(Rule.CASCADE, given, **constants) == expected


def test_cascade_below_the_threshold_pays_the_holistic_reward_alone() -> None:
    # Below the threshold no aspect counts, so the rule is given none.
    cascade = {"order": ("a",), "minimums": {"a": 0.5}}
    assert not aspects_apply(0.9, replace(PLAIN, rule=Rule.CASCADE, **cascade))
    assert tokens(Rule.CASCADE, inputs(0.9), **cascade) == [0, 1.8]


def test_veto_aspect_below_its_minimum_pays_the_floor_alone() -> None:
    given = inputs(2.0, a=whole(1.0, level=0.2), b=AspectInput((4.0, 0.0), 4.0, 4.0))
    assert tokens(Rule.VETO, given, floor=-3.0, minimums={"a": 0.5}) == [0, -3]
    assert tokens(Rule.VETO, given, floor=-3.0, minimums={"a": 0.2}) == [2, 5]


def test_veto_aspect_of_weight_zero_still_vetoes() -> None:
    given = inputs(2.0, a=whole(1.0), b=whole(9.0, level=0.0))
    constants = {"floor": -3.0, "weights": {"a": 1.0, "b": 0.0}}
    assert tokens(Rule.VETO, given, minimums={"b": 0.5}, **constants) == [0, -3]
    assert tokens(Rule.VETO, given, minimums={"b": -1}, **constants) == [0, 5]


def test_veto_aspect_that_judged_nothing_passes() -> None:
    given = inputs(2.0, a=AspectInput((0.0, 0.0), None, None))
    assert tokens(Rule.VETO, given, floor=-3.0, minimums={"a": 0.5}) == [0, 4]


def test_product_raises_each_value_to_its_weight() -> None:
    given = inputs(0.0, a=whole(0.25), b=whole(0.16))
    assert tokens(Rule.PRODUCT, given) == [0, 0.5**2 * 0.25 * 0.4]
    assert tokens(Rule.PRODUCT, inputs(0.0, a=whole(0.0))) == [0, 0]


def test_product_negative_value_is_an_error_that_names_the_shaping() -> None:
    (found,) = apply_rule([inputs(0.0, a=whole(-1.0))], replace(PLAIN, rule=Rule.PRODUCT))
    assert isinstance(found, SampleError)
    assert found.code == "non_finite"
    assert 'shaping to "sigmoid"' in found.message


def test_minimum_is_the_least_of_the_weighted_values() -> None:
    assert tokens(Rule.MINIMUM, inputs(3.0, a=whole(5.0), b=whole(8.0))) == [0, 4]
    assert tokens(Rule.MINIMUM, inputs(1.0, a=whole(5.0), b=whole(8.0))) == [0, 2]


def test_par_completion_equal_to_its_reference_pays_half_the_weight() -> None:
    given = replace(inputs(1.7, a=whole(3.0)), reference_z=1.7)
    assert tokens(Rule.PAR, given) == [0, 2 * 0.5 + 3]
    better = replace(inputs(1.7 + math.log(3)), reference_z=1.7)
    assert tokens(Rule.PAR, better) == [0, 1.5]


def test_par_without_a_reference_names_the_field_to_send() -> None:
    (found,) = apply_rule([inputs(1.0)], replace(PLAIN, rule=Rule.PAR))
    assert isinstance(found, SampleError)
    assert "fields.reference" in found.message


def test_log_sigmoid_adds_weighted_log_sigmoids() -> None:
    given = inputs(0.0, a=whole(9.0, level=math.log(3)), b=whole(9.0, level=-math.log(3)))
    wanted = 2 * math.log(0.5) + math.log(0.75) + 0.5 * math.log(0.25)
    assert tokens(Rule.LOG_SIGMOID, given) == [0, round(wanted, 6)]
    assert tokens(Rule.LOG_SIGMOID, inputs(-1000.0)) == [0, -2000]


def failure(rule: Rule, given: RuleInputs, **constants: object) -> SampleError:
    (found,) = apply_rule([given], replace(PLAIN, rule=rule, **constants))  # type: ignore[arg-type]
    assert isinstance(found, SampleError), found
    return found


#: Two criteria and a pitfall.
RUBRIC = {"essential": 5.0, "optional": 1.0, "pitfall": -2.0}


@pytest.mark.parametrize(
    ("met", "expected"),
    [
        ({"essential": 1, "optional": 1, "pitfall": 0}, 1.0),
        ({"essential": 1, "optional": 0.5, "pitfall": 1}, (5 + 0.5 - 2) / 6),
        ({"essential": 0, "optional": 1, "pitfall": 1}, 0.0),  # -1/6, clipped
        ({"essential": 1, "optional": None, "pitfall": 0.5}, (5 - 1) / 5),  # not judged: left out
    ],
)
def test_rubric_is_the_clipped_share_of_the_positive_weights(
    met: dict[str, float | None], expected: float
) -> None:
    given = inputs(9.0, **{name: AspectInput((0, 0), one, one) for name, one in met.items()})
    assert tokens(Rule.RUBRIC, given, weights=RUBRIC) == [0, round(expected, 6)]


def test_rubric_without_a_judged_positive_criterion_is_an_error() -> None:
    given = inputs(9.0, pitfall=whole(0.0), essential=AspectInput((0, 0), None, None))
    assert failure(Rule.RUBRIC, given, weights=RUBRIC).code == "invalid_sample"


def test_rubric_value_of_one_but_for_rounding_is_one() -> None:
    given = inputs(0.0, essential=whole((0.4 - 0.3) / 0.1))  # 1.0000000000000002
    assert tokens(Rule.RUBRIC, given, weights=RUBRIC) == [0, 1.0]


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan])
def test_rubric_value_outside_of_0_and_1_is_an_error_that_names_the_aspect(value: float) -> None:
    found = failure(Rule.RUBRIC, inputs(0.0, essential=whole(value)), weights=RUBRIC)
    assert found.message.startswith("rule `rubric` requires values in [0, 1], but aspect essential")


@pytest.mark.parametrize(("level", "expected"), [(1.0, [0, 4 + 1 + 0.5 * 8]), (0.9, [0, 4 + 1])])
def test_conditioned_aspect_counts_where_the_required_one_reaches_its_level(
    level: float, expected: list[float]
) -> None:
    given = inputs(2.0, a=whole(1.0, level), b=whole(8.0))
    assert tokens(Rule.CONDITIONED, given, requires={"b": {"a": 1.0}}) == expected


def test_conditioned_aspect_may_require_one_of_weight_zero_and_the_holistic_score() -> None:
    given = inputs(2.0, a=whole(1.0, 0.5), b=whole(8.0))
    only_b = {"weights": {"a": 0.0, "b": 0.5}}
    for requires, expected in [
        ({"a": 0.6}, [0, 4]),
        ({"a": 0.5, "holistic": 2.0}, [0, 8]),
        ({"a": 0.5, "holistic": 2.1}, [0, 4]),
    ]:
        assert tokens(Rule.CONDITIONED, given, requires={"b": requires}, **only_b) == expected
    params = replace(PLAIN, rule=Rule.CONDITIONED, requires={"b": {"a": 0.6}}, **only_b)
    assert params.needs_aspect("a")
    assert not replace(params, rule=Rule.WEIGHTED_SUM).needs_aspect("a")


def test_conditioned_requirement_that_judged_nothing_is_met() -> None:
    given = inputs(2.0, a=AspectInput((0.0, 0.0), None, None), b=whole(8.0))
    assert tokens(Rule.CONDITIONED, given, requires={"b": {"a": 1.0}}) == [0, 8]


#: A chain a -> b -> c of prerequisites and a pitfall d below a, and GEAR's q of each by hand.
GRAPH = {"b": {"a": 0.5}, "c": {"a": 0.5, "b": 0.2}, "d": {"a": 0.0}}
WEIGHTS = {"a": 2.0, "b": 1.0, "c": 1.0, "d": -1.0}


def test_gear_reward_is_the_weighted_share_of_what_the_graph_leaves() -> None:
    given = inputs(3.0, a=whole(0.5), b=whole(0.8), c=whole(1.0), d=whole(0.4))
    q_a = 0.5
    q_b = 0.8 * (0.5 + 0.5 * 0.5)  # 0.6
    q_c = 1.0 * (0.5 + 0.5 * 0.5) * (0.6 + 0.4 * 0.2)  # 0.51
    q_d = 0.4 * 0.5
    expected = (2 * q_a + q_b + q_c - q_d) / 4
    graph = {"parents": GRAPH, "weights": WEIGHTS, "holistic_weight": 0.0}
    assert tokens(Rule.GEAR, given, **graph) == [0, round(expected, 6)]


def test_gear_parent_that_judged_nothing_passes_its_own_parents_on() -> None:
    # q_b is its gate, 0.75, and c keeps 0.75 * (0.75 + 0.25 * 0.2) of 1; b's weight is left out.
    nothing = AspectInput((0.0, 0.0), None, None)
    given = inputs(3.0, a=whole(0.5), b=nothing, c=whole(1.0), d=whole(0.0))
    expected = (2 * 0.5 + 0.75 * 0.8) / 3
    graph = {"parents": GRAPH, "weights": WEIGHTS, "holistic_weight": 0.0}
    assert tokens(Rule.GEAR, given, **graph) == [0, round(expected, 6)]


@pytest.mark.parametrize("z", [0.5, 1.0, 1.5])
def test_gear_with_the_holistic_score_as_only_parent_is_hierarchical(z: float) -> None:
    aspects = {"a": AspectInput((3.0, 0.7), 1.85, 1.0), "b": AspectInput((-0.3, 0.1), -0.1, 0.0)}
    params = replace(PLAIN, weights={"a": 0.75, "b": 0.25})
    graph = {"a": {"holistic": 0.0}, "b": {"holistic": 0.0}}
    found = apply_rule([inputs(z, **aspects)], replace(params, rule=Rule.GEAR, parents=graph))
    hierarchical = replace(params, rule=Rule.HIERARCHICAL)
    admitted = aspects if aspects_apply(z, hierarchical) else {}
    assert found == apply_rule([inputs(z, **admitted)], hierarchical)


def test_gear_parent_outside_of_0_and_1_is_an_error() -> None:
    found = failure(Rule.GEAR, inputs(0.0, a=whole(2.0), b=whole(1.0)), parents={"b": {"a": 0.5}})
    assert "aspect a has 2" in found.message


def test_uncertainty_is_the_weighted_mean_less_beta_deviations() -> None:
    # Equal weights: the scores 1, 2 and 6 have mean 3 and deviation sqrt(14 / 3).
    given = inputs(1.0, a=whole(2.0), b=whole(6.0))
    equal = {"weights": {"a": 1.0, "b": 1.0}, "holistic_weight": 1.0}
    expected = 3 - 0.5 * math.sqrt(14 / 3)
    assert tokens(Rule.UNCERTAINTY, given, beta=0.5, **equal) == [0, round(expected, 6)]
    # Weights 3 and 1, without the holistic score: mean 3, deviation sqrt((3 + 9) / 4).
    pair = {"weights": {"a": 3.0, "b": 1.0}, "holistic_weight": 0.0}
    assert tokens(Rule.UNCERTAINTY, given, beta=2.0, **pair) == [0, round(3 - 2 * 3**0.5, 6)]


def test_uncertainty_of_scores_that_disagree_too_much_is_no_reward() -> None:
    given = inputs(0.0, a=whole(1.0), b=whole(5.0))  # mean 3, deviation 2
    pair = {"weights": {"a": 1.0, "b": 1.0}, "holistic_weight": 0.0, "beta": 0.5}
    assert tokens(Rule.UNCERTAINTY, given, max_deviation=2.0, **pair) == [0, 2]
    assert failure(Rule.UNCERTAINTY, given, max_deviation=1.9, **pair).code == "dropped"


def test_uncertainty_of_a_single_score_is_an_error() -> None:
    given = inputs(0.0, a=whole(1.0), b=AspectInput((0.0, 0.0), None, None))
    found = failure(Rule.UNCERTAINTY, given, holistic_weight=0.0, beta=0.5)
    assert (found.code, "has 1: give a weight" in found.message) == ("invalid_sample", True)


def test_capo_gives_each_token_the_outcome_less_the_penalty_of_wrong_steps() -> None:
    # W z is 2; the last two of four tokens are in a wrong step, which weighs 0.5.
    given = RuleInputs(1.0, {"b": AspectInput((0.0, 0.0, -1.0, -1.0), -0.5, -0.5)}, 4)
    assert tokens(Rule.CAPO, given) == [2, 2, 1.5, 1.5]


def test_capo_of_a_sample_without_tokens_is_an_error() -> None:
    found = failure(Rule.CAPO, replace(inputs(1.0), length_is_in_words=True))
    assert "send the sample's token_offsets" in found.message
