"""Rubrics in the forms of public rubric files, which samples and recipes may have."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tolerance import by_hand, computed

from alarm_models.errors import RecipeError
from alarm_models.recipe.criteria import MAX_CRITERIA, read_rubric
from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.specs import RubricSpec
from alarm_models.reward_models.rubric.aggregation import rubric_score
from alarm_models.reward_models.rubric.criteria import rubric_of
from alarm_models.types import Sample


def read(given: Any) -> list[tuple[str, str, float]]:
    """Return the name, text and weight of each criterion."""
    found = read_rubric(given, "fields.rubric")
    return [(one.name, one.spec.text, one.spec.signed_weight) for one in found]


def tree(weight: float, *sub_tasks: Any, text: str = "T") -> dict[str, Any]:
    return {"id": text, "requirements": text, "weight": weight, "sub_tasks": [*sub_tasks],
            "task_category": None}  # fmt: skip


#: A rubric in each form -> its criteria.
FORMS: dict[str, tuple[Any, list[tuple[str, str, float]]]] = {
    "HealthBench": (
        [
            {"criterion": "Names the dose", "points": 7, "tags": ["level:example"]},
            {"criterion": "Advises to wait", "points": -6, "tags": ["axis:accuracy"]},
        ],
        [("criterion_1", "Names the dose", 7), ("criterion_2", "Advises to wait", -6)],
    ),
    "Rubrics as Rewards": (
        [
            {"title": "Cause", "description": "Essential Criteria: Names the cause", "weight": 5},
            {"title": "Panic", "description": "Pitfall Criteria: Alarms needlessly", "weight": -2},
            {"title": "Calm", "description": "Pitfall Criteria: Stays calm", "weight": 4},
        ],
        [
            ("Cause", "Names the cause", 5),
            ("Panic", "Alarms needlessly", -2),
            ("Calm", "Stays calm", 4),
        ],
    ),
    "Rubrics as Rewards, words alone": (
        [
            {"title": "a", "description": "Important Criteria: T"},
            {"title": "b", "description": "U", "category": "Optional"},
            {"title": "c", "description": "V", "importance": "Pitfall"},
            {"title": "d", "description": "W", "importance": ["high"], "weight": 2},
        ],
        [("a", "T", 0.7), ("b", "U", 0.3), ("c", "V", -0.9), ("d", "W", 2)],
    ),
    "ResearchRubrics": (
        [{"title": "Cites studies", "weight": 0.5, "category": "Accuracy", "row_index": 1}],
        [("criterion_1", "Cites studies", 0.5)],
    ),
    "verifiers": (
        {"criteria": [{"name": "polite", "text": "Is polite", "choices": ["no", "yes"]}]},
        [("polite", "Is polite", 1)],
    ),
    "PaperBench": (
        tree(1, tree(2, tree(1, text="A"), tree(3, text="B")), tree(6, text="C")),
        [("A", "A", 0.0625), ("B", "B", 0.1875), ("C", "C", 0.75)],
    ),
    "DRACO": (
        {
            "id": "task",
            "sections": [
                {"id": "facts", "criteria": [{"id": "f1", "requirement": "T", "weight": 10}]},
                {"id": "harm", "criteria": [{"id": "h1", "requirement": "U", "weight": -50}]},
            ],
        },
        [("f1", "T", 10), ("h1", "U", -50)],
    ),
    "NeMo Gym, gdpval": (
        [{"score": 2, "criterion": "T", "required": None, "rubric_item_id": "r1", "tags": []}],
        [("r1", "T", 2)],
    ),
    "NeMo Gym, inverse_if": (
        [{"id": "C1", "criteria": "Has it two lines?"}],
        [("C1", "Has it two lines?", 1)],
    ),
    "NeMo Gym, multichallenge": (
        [
            {"question": "Is it brief?", "pass_criteria": "YES", "weight": 2},
            {"question": "Is it rude?", "pass_criteria": "NO"},
        ],
        [
            ("criterion_1", "Is it brief?", 2),
            ("criterion_2", "The answer to this question is no: Is it rude?", 1),
        ],
    ),
    "NeMo Gym, finance_agent_v2": (
        [{"operator": "o", "criteria": "T", "modifiers": {"severity": 2.5}}],
        [("criterion_1", "T", 2.5)],
    ),
    "OpenRubrics": (
        "1. Has five items. [Hard Rule]\n\n2. Is clear. [Principle]\n",
        [("criterion_1", "Has five items.", 1), ("criterion_2", "Is clear.", 1)],
    ),
    "OpenRubrics, types first": (
        "[Hard Rule] Has five items.\n[Principle] Is clear.",
        [("criterion_1", "Has five items.", 1), ("criterion_2", "Is clear.", 1)],
    ),
    "criteria by name": (
        {"a": {"text": "T", "weight": 2}, "b": {"text": "U"}},
        [("a", "T", 2), ("b", "U", 1)],
    ),
    "criteria by name, one of them named criteria": (
        {"criteria": {"text": "T"}, "b": {"text": "U"}},
        [("criteria", "T", 1), ("b", "U", 1)],
    ),
    "criteria by name in an object": (
        {"id": "task", "rubric": {"a": {"text": "T"}}, "metadata": {}},
        [("a", "T", 1)],
    ),
    "texts": (["T", "U"], [("criterion_1", "T", 1), ("criterion_2", "U", 1)]),
    "one text": ("Is it\n1. good?", [("criterion_1", "Is it\n1. good?", 1)]),
    "numbers as texts": (
        [{"text": "T", "points": "+2"}, {"text": "U", "points": " -1.5 ", "id": 7}],
        [("criterion_1", "T", 2), ("7", "U", -1.5)],
    ),
    "equal criteria": (
        [{"title": "a", "description": "T"}, {"title": "a", "description": "T"}, "T"],
        [("a", "T", 1), ("a (2)", "T", 1), ("criterion_3", "T", 1)],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_rubric_of_public_files_is_read_as_it_is_and_as_json(form: str) -> None:
    given, criteria = FORMS[form]
    assert read(given) == criteria
    if not isinstance(given, str):
        assert read(json.dumps(given)) == criteria


def test_weights_of_a_tree_give_the_score_that_averages_bottom_up() -> None:
    given = tree(5, tree(2, tree(1), tree(2, tree(1), tree(4))), tree(0), tree(3, tree(7), tree(1)))
    met = [1, 0, 1, 1, 0, 1]

    def averaged(node: dict[str, Any], verdicts: list[int]) -> float:
        if not node["sub_tasks"]:
            return verdicts.pop(0)
        pairs = [(one["weight"], averaged(one, verdicts)) for one in node["sub_tasks"]]
        return sum(w * score for w, score in pairs) / sum(w for w, _ in pairs)

    weights = [weight for _, _, weight in read(given)]
    assert sum(weights) == computed(5)
    found = sum(w * verdict for w, verdict in zip(weights, met, strict=True)) / sum(weights)
    assert found == computed(averaged(given, [*met]))


@pytest.mark.parametrize("met", [*product((0.0, 1.0), repeat=4)])
def test_criteria_that_must_pass_decide_about_all_others(met: tuple[float, ...]) -> None:
    modifiers = [
        {"severity": 3},
        {"severity": 2, "category": "must_pass"},
        {"severity": 1},
        {"severity": 4, "category": "must_pass"},
    ]
    given = [{"criteria": f"T{at}", "modifiers": one} for at, one in enumerate(modifiers)]
    spec = RubricSpec.model_validate({"endpoint": {"url": "http://j", "model": "m"}})
    criteria = rubric_of(Sample("p", "c", fields={"rubric": given}), spec).criteria
    expected = sum(w * m for w, m in zip((3, 2, 1, 4), met, strict=True)) / 10
    if not met[1] or not met[3]:
        expected = 0
    names = [one.name for one in criteria]
    assert rubric_score(criteria, dict(zip(names, met, strict=True))) == by_hand(expected)


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        ([{"criterion": "T", "points": "many"}], r"^fields\.rubric\[0\]\.points must be a number"),
        ([{"text": "T", "weight": True}], r"^fields\.rubric\[0\]\.weight must be a number"),
        ([{"criterion": "T", "points": 1e9}], r"^fields\.rubric\[0\]\.points: .* less than"),
        ([{"criterion": " "}], r"^fields\.rubric\[0\]\.criterion: "),
        ([{"points": 2}], r"^fields\.rubric\[0\] has no text: .*\['points'\]"),
        ({"sections": [{"criteria": [{}]}]}, r"^fields\.rubric\.sections\[0\]\.criteria\[0\] has"),
        ([{"text": "T", "importance": "vital"}], r"\[0\]\.importance: Input should be 'essential'"),
        ([{"text": "T", "choices": ["bad", "fair", "good"]}], r"\[0\]\.choices must be no and yes"),
        ([{"question": "Q", "pass_criteria": "MAYBE"}], r"\[0\]\.pass_criteria must be YES or NO"),
        (
            [{"weight": 2, "criteria": [{"text": "T", "weight": -1}]}],
            r"^fields\.rubric\[0\]\.weight is the weight of a group that has .* remove the weight",
        ),
        (
            [{"points": "nan", "criteria": ["T"]}],
            r"^fields\.rubric\[0\]\.points is the weight of a group: .* 0 to 1e\+06, not nan",
        ),
        (["T"] * (MAX_CRITERIA + 1), "more than 2000 criteria"),
        ("[" * 30 + "]" * 30, r"must be a criterion, an object with a `text`"),
        (
            '{"criteria":[' * 30 + '"T"' + "]}" * 30,
            r"groups are nested more than 20 deep",
        ),
        (
            [
                {
                    "name": "a",
                    "text": "T",
                    "requires": ["b"],
                    "modifiers": {"category": "must_pass"},
                },
                {"name": "b", "text": "U"},
            ],
            r"^fields\.rubric\[0\]\.requires names \['b'\], .* 'a' has the category `must_pass`, "
            r"and each criterion waits for all of that category.* Remove the names, or move",
        ),
    ],
)
def test_rubric_that_cannot_be_read_is_refused_with_its_key(rubric: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rubric(rubric, "fields.rubric")


def recipe_with(criteria: str, folder: Path) -> dict[str, Any]:
    """Return the criteria of a recipe with this TOML value."""
    file = folder / "r.toml"
    file.write_text(
        f'[models.m]\nkind = "rubric"\nendpoint = {{ url = "http://j", model = "m" }}\n'
        f'criteria = {criteria}\n[holistic]\nmodel = "m"\n'
    )
    spec = load_recipe(str(file)).models["m"]
    assert isinstance(spec, RubricSpec)
    return {name: (one.text, one.signed_weight) for name, one in spec.criteria.items()}


def test_recipe_reads_a_list_of_criteria_or_a_file_beside_it(tmp_path: Path) -> None:
    expected = {"a": ("T", 5.0), "criterion_2": ("U", -2.0)}
    listed = '[{ title = "a", description = "Essential Criteria: T", weight = 5 }, ' \
        '{ criterion = "U", points = "-2" }]'  # fmt: skip
    assert recipe_with(listed, tmp_path) == expected
    (tmp_path / "rubric.json").write_text(
        "\ufeff" + json.dumps([{"title": "a", "description": "T", "weight": 5},
                    {"criterion": "U", "points": -2}])
    )  # fmt: skip
    assert recipe_with('"rubric.json"', tmp_path) == expected
    (tmp_path / "rubric.toml").write_text(
        '[[criteria]]\nname = "a"\ntext = "T"\nweight = 5\n[[criteria]]\ntext = "U"\nweight = -2\n'
    )
    assert recipe_with('"./rubric.toml"', tmp_path) == expected
    (tmp_path / "rubric.toml").write_text('[criteria.a]\ntext = "T"\nweight = 5\n')
    assert recipe_with('"rubric.toml"', tmp_path) == {"a": ("T", 5.0)}


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ('"missing.json"', r"criteria names .*missing\.json, which cannot be read"),
        ('"empty.json"', r"empty\.json, .* it has no criteria"),
        ("[]", "criteria is empty"),
        ('"polite"', "a table, a list, or a file ending in"),
        ('[{ text = "T", points = "x" }]', r"criteria\[0\]\.points must be a number"),
        (
            '{ a = { title = "A", criterion = "T", points = 5 } }',
            r"criteria\.a has .* write `text` for `criterion` and `weight` for `points`, and leave "
            r"out `title`, .*; or write `criteria` as a list",
        ),
        (
            '{ a = { text = "T", pass_criteria = "NO" } }',
            r"criteria\.a has `pass_criteria`, .* list",
        ),
        ('{ a = "T" }', r"criteria\.a is a text, .* `criteria\.a = \{ text = \.\.\. \}`"),
        ('{ title = "T", weight = 5 }', "criteria is one criterion without a name: write a list"),
    ],
)
def test_recipe_whose_criteria_cannot_be_read_is_refused(
    criteria: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(RecipeError, match=message):
        recipe_with(criteria, tmp_path)
