"""Declarations of rules are used by recipes, requests and rewards."""

import dataclasses
import math
from typing import Any

import pytest

from alarm_models.combination.all_rules import AspectInput, Rule, RuleParams, apply_rule
from alarm_models.combination.rule_registry import (
    CONSTANTS,
    RULES,
    RuleDefinition,
    RuleInputs,
    sample_rule,
)
from alarm_models.errors import RecipeError, SampleError
from alarm_models.recipe.schema import HierarchySpec, Overrides, Recipe

ALL = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)


def examples(rule: RuleDefinition) -> dict[str, Any]:
    """Return a value of each constant that the rule uses."""
    return {name: CONSTANTS[name].example for name in rule.constants if name != "threshold"}


def depends(**aspects: object) -> Recipe:
    """Return a recipe of aspects a, b and c with these keys."""
    tables = {name: {"model": "m"} | dict(aspects.get(name, {})) for name in "abc"}  # type: ignore[call-overload]
    models = {"m": {"kind": "length"}}
    return Recipe.model_validate(
        {"name": "r", "models": models, "holistic": {"model": "m"}, "aspects": tables}
    )


def recipe(**hierarchy: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "models": {"m": {"kind": "length"}},
            "holistic": {"model": "m"},
            "aspects": {"a": {"model": "m"}, "b": {"model": "m"}},
            "hierarchy": hierarchy,
        }
    )


def test_rule_enum_has_the_registered_names_with_group_rules_last() -> None:
    assert sorted(Rule) == sorted(RULES)
    assert [RULES[rule].compares_groups for rule in Rule] == sorted(
        rule.compares_groups for rule in RULES.values()
    )
    assert Rule["SOFT_GATE"] == "soft_gate"


def test_hierarchy_table_has_the_constants_of_the_registry_in_order() -> None:
    assert list(HierarchySpec.model_fields) == ["rule", "threshold", *CONSTANTS]
    for name, constant in CONSTANTS.items():
        assert HierarchySpec.model_fields[name].description == constant.description


@pytest.mark.parametrize("constant", CONSTANTS)
def test_constant_is_used_by_some_rule(constant: str) -> None:
    assert any(constant in rule.constants for rule in RULES.values())


@ALL
def test_rule_in_a_recipe_without_its_constants_is_refused_by_name(rule: RuleDefinition) -> None:
    given = examples(rule)
    assert recipe(rule=rule.name, **given).hierarchy.rule == rule.name
    for name in rule.requires:
        with pytest.raises(ValueError, match=f"rule `{rule.name}` requires hierarchy.{name}"):
            recipe(rule=rule.name, **{key: one for key, one in given.items() if key != name})


@ALL
def test_rule_in_overrides_without_its_constants_is_refused_by_name(rule: RuleDefinition) -> None:
    overrides = Overrides(rule=Rule(rule.name))
    if rule.requires:
        with pytest.raises(RecipeError, match=f"hierarchy.{rule.requires[0]}"):
            recipe().rule_params(overrides)
    else:
        assert recipe().rule_params(overrides).rule == rule.name


@ALL
def test_rule_rewards_every_token_of_a_group_with_finite_numbers(rule: RuleDefinition) -> None:
    params = dataclasses.replace(
        RuleParams(rule.name, 0.0, 1.0, 0.0, 1.0, {"a": 1.0, "b": 0.0}),
        **examples(rule),
    )
    samples = [
        RuleInputs(z, {"a": AspectInput((0.5, z), 0.5, 0.5)}, 2, reference_z=0.0, group="g")
        for z in (1.0, 2.0)
    ]
    found = apply_rule(samples, params)
    assert len(found) == 2
    for tokens in found:
        assert not isinstance(tokens, SampleError), tokens
        assert len(tokens) == 2
        assert all(map(math.isfinite, tokens))


@pytest.mark.parametrize("rule", ["rubric", "gear"])
def test_rule_that_divides_by_positive_weights_without_any_is_refused(rule: str) -> None:
    with pytest.raises(RecipeError, match="set the weight of an aspect above 0"):
        recipe().rule_params(Overrides(rule=Rule(rule), weights={"a": -1, "b": 0}))


@pytest.mark.parametrize("rule", ["uncertainty", "dvao"])
def test_rule_that_needs_weights_of_one_sign_refuses_negative_ones(rule: str) -> None:
    given = recipe(rule=rule, **examples(RULES[rule]))
    with pytest.raises(RecipeError, match=r"negative weights: set aspects\.b\.weight to 0 or more"):
        given.rule_params(Overrides(weights={"b": -1}))


def test_rule_with_a_base_needs_what_the_base_needs() -> None:
    with pytest.raises(ValueError, match=r"hierarchy\.base is 'gdpo': use one of `hierarchical`"):
        recipe(rule="gr3", length_penalty=0.5, base="gdpo")
    with pytest.raises(
        ValueError, match=r"rule `gr3` requires hierarchy\.floor and hierarchy\.min"
    ):
        recipe(rule="gr3", length_penalty=0.5, base="veto")
    given = recipe(rule="gr3", length_penalty=0.5, base="rubric")
    with pytest.raises(RecipeError, match=r"rule `rubric` divides by the sum"):
        given.rule_params(Overrides(weights={"a": 0, "b": 0}))
    assert (
        recipe(rule="gr3", length_penalty=0.5, base="par")
        .rule_params(Overrides())
        .definition.needs_reference
    )


@pytest.mark.parametrize(
    ("aspects", "told"),
    [
        (
            {"a": {"parents": {"x": 0.5}}},
            r"aspects\.a\.parents names \['x'\], which are not aspects",
        ),
        ({"a": {"requires": {"x": 0.5}}}, r"aspects\.a\.requires names \['x'\]"),
        ({"a": {"requires": {"a": 0.5}}}, r"aspects\.a\.requires names the aspect itself"),
        (
            {"a": {"parents": {"b": 1.5}}},
            r"aspects\.a\.parents\.b is 1\.5: set a lambda from 0 to 1",
        ),
        (
            {"a": {"parents": {"b": 0}}, "b": {"parents": {"c": 0}}, "c": {"parents": {"a": 0}}},
            r"aspects\.\*\.parents have a cycle, '[abc] -> [abc] -> [abc] -> [abc]'",
        ),
    ],
)
def test_aspect_that_depends_on_what_it_cannot_is_refused_by_key(
    aspects: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        depends(**aspects)


def test_aspects_dependencies_reach_the_rule_and_leave_old_fingerprints() -> None:
    given = depends(b={"parents": {"a": 0.2}, "requires": {"holistic": 1}})
    params = given.rule_params(Overrides())
    assert (params.parents, params.requires) == ({"b": {"a": 0.2}}, {"b": {"holistic": 1}})
    assert given.fingerprint({}, Overrides()) != depends().fingerprint({}, Overrides())
    empty = depends(b={"parents": {}, "requires": {}})
    assert empty.fingerprint({}, Overrides()) == depends().fingerprint({}, Overrides())


def test_rule_of_a_known_name_cannot_be_registered_again() -> None:
    register = sample_rule("veto", summary="", reward="", source="")
    with pytest.raises(ValueError, match="there are two rules named 'veto'"):
        register(lambda inputs, params: ())


def test_rule_with_an_undeclared_constant_cannot_be_registered() -> None:
    register = sample_rule("new", summary="", reward="", source="", requires=("alpha",))
    with pytest.raises(ValueError, match=r"rule 'new' uses \['alpha'\]"):
        register(lambda inputs, params: ())
    assert "new" not in RULES
