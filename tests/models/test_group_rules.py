"""The rules that compare the samples of one prompt, against numpy."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from tolerance import by_hand

from alarm_models.combination.all_rules import AspectInput, Rule, RuleInputs, RuleParams
from alarm_models.combination.rewards import apply_rule, validate_groups
from alarm_models.errors import RecipeError, SampleError

PLAIN = RuleParams(Rule.WEIGHTED_SUM, 1.0, 2.0, 0.0, 1.0, {"a": 1.0, "b": 0.5})
WEIGHTS = np.array([2.0, 1.0, 0.5])
GROUPS = ("x", "x", "x", "y", "y", "x")


def batch(seed: int) -> tuple[list[RuleInputs], np.ndarray]:
    """Return samples of one to three tokens, and their components."""
    chance = np.random.default_rng(seed)
    samples, components = [], []
    for group in GROUPS:
        length = int(chance.integers(1, 4))
        a, b = chance.normal(size=(2, length)) * [[1.0], [40.0]]
        z = float(chance.normal())
        aspects: Mapping[str, AspectInput] = {
            "a": AspectInput(a.tolist(), None, None),
            "b": AspectInput(b.tolist(), None, None),
        }
        samples.append(RuleInputs(z, aspects, length, group=group))
        components.append([z, a.sum(), b.sum()])
    return samples, np.array(components)


def normalized_within_groups(components: np.ndarray) -> np.ndarray:
    wanted = np.empty(len(GROUPS))
    for group in set(GROUPS):
        own = [index for index, name in enumerate(GROUPS) if name == group]
        rows = components[own]
        scaled = (rows - rows.mean(0)) / (rows.std(0, ddof=1) + 1e-4)
        wanted[own] = scaled @ WEIGHTS
    return wanted


def test_mo_grpo_normalises_each_component_within_its_group() -> None:
    samples, components = batch(0)
    found = apply_rule(samples, replace(PLAIN, rule=Rule.MO_GRPO))
    totals = [sum(one) for one in found if not isinstance(one, SampleError)]
    assert totals == by_hand(normalized_within_groups(components).tolist())
    lengths = [len(one) for one in found if not isinstance(one, SampleError)]
    assert lengths == [one.num_tokens for one in samples]


def test_gdpo_normalises_the_sums_over_the_request() -> None:
    samples, components = batch(1)
    found = apply_rule(samples, replace(PLAIN, rule=Rule.GDPO))
    sums = normalized_within_groups(components)
    wanted = (sums - sums.mean()) / (sums.std(ddof=1) + 1e-4)
    totals = [sum(one) for one in found if not isinstance(one, SampleError)]
    assert totals == by_hand(wanted.tolist())


def test_mo_grpo_keeps_an_aspect_on_its_tokens() -> None:
    silent = RuleParams(Rule.MO_GRPO, 0, 0.0, 0, 1, {"a": 1.0})
    samples = [
        RuleInputs(0.0, {"a": AspectInput((6.0, 0.0, 0.0), None, None)}, 3, group="x"),
        RuleInputs(0.0, {"a": AspectInput((2.0, 0.0), None, None)}, 2, group="x"),
    ]
    std = 8**0.5 + 1e-4
    found = apply_rule(samples, silent)
    assert found == [by_hand((6 / std, 0, -4 / std)), by_hand((2 / std, -4 / std))]


def test_mo_grpo_component_without_variance_adds_nothing() -> None:
    same = AspectInput((0.0, 1.0), 1.0, 1.0)
    samples = [RuleInputs(3.0, {"a": same, "b": same}, 2, group="x")] * 4
    assert apply_rule(samples, replace(PLAIN, rule=Rule.MO_GRPO)) == [(0, 0)] * 4


@pytest.mark.parametrize(
    ("groups", "size", "told"),
    [
        ([None, "x", "x"], None, "send `group` with each sample"),
        (["x", "y", "x"], None, "group 'y' has only one: send all samples of a group"),
        (["x", "x", "y", "y", "y"], 3, "hierarchy.group_size 3, but group 'x' has 2 samples"),
    ],
)
def test_validate_groups_names_what_a_group_rule_cannot_compare(
    groups: list[str | None], size: int | None, told: str
) -> None:
    hierarchy = replace(PLAIN, rule=Rule.GDPO, group_size=size)
    found = validate_groups(groups, hierarchy)
    assert {fault is None for fault in found} == {True, False}
    for fault in found:
        assert fault is None or told in fault.message


def test_validate_groups_sample_rule_needs_no_groups() -> None:
    assert validate_groups([None, "x"], PLAIN) == [None, None]


def test_mo_grpo_sample_left_alone_in_its_group_is_an_error() -> None:
    samples, _ = batch(2)
    (*_, alone) = apply_rule(samples[:3] + samples[4:5], replace(PLAIN, rule=Rule.MO_GRPO))
    assert isinstance(alone, SampleError)


def based(*rewards: float, lengths: tuple[int, ...] = (), **parts: object) -> list[RuleInputs]:
    """Return samples of one group whose reward is that of aspect `a` alone."""
    given = lengths or (1,) * len(rewards)
    return [
        RuleInputs(
            0.0,
            {"a": AspectInput((one, 0.0), one, one)},
            2,
            group="x",
            length=length,
            **parts,  # type: ignore[arg-type]
        )
        for one, length in zip(rewards, given, strict=True)
    ]


#: Rewards of aspect `a`, with the length penalty.
GR3 = RuleParams(Rule.GR3, 0, 1.0, 0, 1, {"a": 1.0}, base="aspect_only", length_penalty=0.5)


def test_gr3_divides_by_one_plus_alpha_times_the_relative_length() -> None:
    # The mean length is 200.
    found = apply_rule(based(1.0, 1.0, 0.5, lengths=(100, 200, 300)), GR3)
    assert found == [(1 / 1.25, 0), (1 / 1.5, 0), (0.5 / 1.75, 0)]


def test_gr3_negative_reward_is_an_error_and_does_not_count_for_its_group() -> None:
    found = apply_rule(based(-1.0, 1.0, 1.0, lengths=(800, 100, 300)), GR3)
    assert isinstance(found[0], SampleError)
    assert found[1:] == [(1 / 1.25, 0), (1 / 1.75, 0)]
    _, alone = apply_rule(based(-1.0, 1.0), GR3)
    assert isinstance(alone, SampleError)


def test_gr3_reward_of_zero_but_for_rounding_is_no_error() -> None:
    found, _ = apply_rule(based(0.3 - 0.1 - 0.2, 1.0), GR3)
    assert found == by_hand((0.0, 0.0))


def test_gr3_lengths_in_tokens_and_in_words_are_not_compared() -> None:
    mixed = based(1.0, lengths=(100,)) + based(1.0, lengths=(7,), length_is_in_words=True)
    for found in apply_rule(mixed, GR3):
        assert isinstance(found, SampleError)
        assert "send token_offsets with all samples of a group" in found.message


#: Advantages of aspect `a`; a length counts up to half of the mean.
QGLAS = RuleParams(
    Rule.QGLAS, 0, 1.0, 0, 1, {"a": 1.0}, base="aspect_only", length_weight=0.4, length_cap=0.5
)


def test_qglas_of_the_better_samples_the_shorter_gets_more() -> None:
    # Mean 1.5, unbiased deviation sqrt(11 / 3). The better two deviate by 1 from their mean, all by
    # sqrt(11 / 4); the mean length of the better two is 30.
    found = apply_rule(based(0.0, 0.0, 2.0, 4.0, lengths=(1, 10, 20, 40)), QGLAS)
    sigma, deviation = (11 / 3) ** 0.5 + 1e-4, (11 / 4) ** 0.5
    weight = deviation / sigma * 0.4 * (1 - 1 / deviation)
    wanted = np.array([-1.5, -1.5, 0.5, 2.5]) / sigma + [0, 0, weight * (10 / 30) / 0.5, 0]
    assert [sum(one) for one in found] == by_hand(wanted.tolist())
    least = apply_rule(based(0.0, 2.0, lengths=(1, 1)), replace(QGLAS, least_length_weight=0.4))
    assert least == apply_rule(based(0.0, 2.0, lengths=(9, 9)), QGLAS)


def test_qglas_advantages_keep_their_sign_at_any_length() -> None:
    chance = np.random.default_rng(0)
    for _ in range(50):
        rewards = chance.normal(size=6)
        lengths = tuple(chance.integers(0, 500, size=6).tolist())
        rule = replace(QGLAS, length_weight=5.0, least_length_weight=1.0)
        found = np.array([sum(one) for one in apply_rule(based(*rewards, lengths=lengths), rule)])
        assert (np.sign(found) == np.sign(rewards - rewards.mean())).all()


def test_qglas_least_weight_above_the_weight_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"least_length_weight 0\.5 must be at most .* 0\.4"):
        QGLAS.definition.validate(replace(QGLAS, least_length_weight=0.5))


def test_qglas_equal_rewards_are_no_advantage() -> None:
    found = apply_rule(based(2.0, 2.0, lengths=(1, 100)), QGLAS)
    assert [sum(one) for one in found] == [0, 0]


def test_rule_with_a_base_gives_it_only_the_aspects_that_count() -> None:
    hierarchical = replace(GR3, base="hierarchical", threshold=1.0)
    assert hierarchical.definition.aspects == "when admitted"
    assert not replace(GR3, base="rubric").definition.uses_holistic
    assert apply_rule(based(1.0, 1.0), hierarchical) == [(0, 0), (0, 0)]


def test_dvao_weighs_components_by_their_variation_in_the_group() -> None:
    samples, components = batch(3)
    found = apply_rule(samples, replace(PLAIN, rule=Rule.DVAO))
    wanted = np.empty(len(GROUPS))
    for group in set(GROUPS):
        own = [index for index, name in enumerate(GROUPS) if name == group]
        rows = components[own]
        shares = WEIGHTS * rows.std(0) / (WEIGHTS * rows.std(0)).sum()
        wanted[own] = (rows - rows.mean(0)) / (rows.std(0) + 1e-4) @ shares
    totals = [sum(one) for one in found if not isinstance(one, SampleError)]
    assert totals == by_hand(wanted.tolist())


def test_dvao_of_a_group_that_agrees_is_zero_and_of_two_components_is_checked_by_hand() -> None:
    same = AspectInput((0.0, 1.0), 1.0, 1.0)
    agreed = [RuleInputs(3.0, {"a": same, "b": same}, 2, group="x")] * 2
    assert apply_rule(agreed, replace(PLAIN, rule=Rule.DVAO)) == [(0, 0)] * 2
    # z varies by 1 (weight 1), `a` by 3 (weight 1): shares 1/4 and 3/4.
    pair = [
        RuleInputs(z, {"a": AspectInput((a, 0.0), a, a)}, 2, group="x")
        for z, a in [(0.0, 6.0), (2.0, 0.0)]
    ]
    first, second = apply_rule(pair, RuleParams(Rule.DVAO, 0, 1.0, 0, 1, {"a": 1.0}))
    assert not isinstance(first, SampleError)
    assert not isinstance(second, SampleError)
    wanted = -1 / (1 + 1e-4) / 4 + 3 / (3 + 1e-4) * 3 / 4
    assert [sum(first), sum(second)] == by_hand([wanted, -wanted])


def test_dvao_overflow_is_no_number() -> None:
    pair = [RuleInputs(z, {}, 1, group="x") for z in (1e308, -1e308)]
    found = apply_rule(pair, RuleParams(Rule.DVAO, 0, 1e10, 0, 1, {}))
    assert not any(np.isfinite(one).all() for one in found if not isinstance(one, SampleError))


#: Groups in which half of the samples must reach 0.5.
DRO = RuleParams(
    Rule.DRO, 0, 1.0, 0, 1, {"a": 1.0}, base="aspect_only", minimums={"a": 0.5}, pass_share=0.5
)


def test_dro_keeps_all_rewards_of_a_group_that_passes_and_drops_one_that_does_not() -> None:
    kept = based(0.9, 0.1)
    dropped = [replace(one, group="y") for one in based(0.9, 0.1, 0.2)]
    found = apply_rule(kept + dropped, DRO)
    assert found[:2] == [(0.9, 0), (0.1, 0)]
    for one in found[2:]:
        assert isinstance(one, SampleError)
        assert one.code == "dropped"
        assert "1 of 3 samples of group 'y' reach hierarchy.minimums" in one.message


def test_dro_sample_without_a_reward_does_not_count_for_its_group() -> None:
    # By the base `rubric` 1.5 is no reward; of the other two, one passes.
    found = apply_rule(based(0.9, 0.1, 1.5), replace(DRO, base="rubric"))
    assert isinstance(found[2], SampleError)
    assert found[:2] == [(0, 0.9), (0, 0.1)]
