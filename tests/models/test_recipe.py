from pathlib import Path

import pytest

from alarm_models.combination.rules import Rule
from alarm_models.errors import RecipeError
from alarm_models.recipe.loader import built_in_names, load_recipe, load_recipes
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.recipe.specs import RemoteSpec, SequenceSpec

EXAMPLE = """
name = "example"
[models.rm]
kind = "sequence"
checkpoint = "some/model"
template = "Human: {prompt}\\nAssistant: {completion}"
dtype = "float32"
[holistic]
model = "rm"
weight = 1.0
mean = 0.0
std = 1.0
[hierarchy]
rule = "holistic_only"
threshold = 0.0
"""


def written(text: str, folder: Path, name: str = "recipe.toml") -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def test_the_example_of_the_contract_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(written(EXAMPLE, tmp_path))
    assert recipe.name == "example"
    assert recipe.hierarchy.rule is Rule.HOLISTIC_ONLY


def test_a_recipe_without_a_name_has_its_files(tmp_path: Path) -> None:
    text = EXAMPLE.replace('name = "example"', "")
    assert load_recipe(written(text, tmp_path, "mine.toml")).name == "mine"


def test_the_long_form_recipe_has_the_papers_constants() -> None:
    recipe = load_recipe("long-form-qa")
    hierarchy = recipe.rule_params(Overrides())
    assert hierarchy.rule is Rule.HIERARCHICAL
    assert (hierarchy.threshold, hierarchy.holistic_weight) == (0.6, 5.0)
    assert (hierarchy.mean, hierarchy.std) == (-4.896130742253484, 3.0595760500526468)
    assert hierarchy.weights == {"relevance": 0, "factuality": 1, "completeness": 0}


def test_the_translation_recipe_has_the_papers_constants() -> None:
    recipe = load_recipe("translation")
    hierarchy = recipe.rule_params(Overrides())
    assert hierarchy.rule is Rule.HIERARCHICAL
    assert (hierarchy.threshold, hierarchy.holistic_weight) == (0.5, 3.0)
    assert (hierarchy.mean, hierarchy.std) == (-2.34417221913525, 2.946283030347152)
    assert hierarchy.weights == {"grammar": 1, "readability": 0, "language": 0}


def test_a_grammar_models_rewards_land_on_every_token_unless_the_aspect_says_otherwise() -> None:
    table = load_recipe("translation").model_dump(mode="json")
    for said, placement in ((None, "tokens"), ("segment-ends", "segment-ends")):
        table["aspects"]["grammar"]["placement"] = said
        rule = Recipe.model_validate(table).aspect_rule("grammar", None)
        assert rule.placement == placement


def test_a_functions_folder_is_found_beside_its_recipe(tmp_path: Path) -> None:
    model = '[models.mine]\nkind = "python"\nfunction = "mine:reward"\npath = "./functions"\n'
    recipe = load_recipe(written(EXAMPLE + model, tmp_path))
    assert getattr(recipe.models["mine"], "path", None) == str(tmp_path / "functions")


@pytest.mark.parametrize("name", built_in_names())
def test_every_built_in_recipe_can_be_read(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("setting", "value"),
    [("holistic.mean=0.5", 0.5), ("holistic.mean=-4", -4.0)],
)
def test_set_overrides_a_number(setting: str, value: float, tmp_path: Path) -> None:
    assert load_recipe(written(EXAMPLE, tmp_path), [setting]).holistic.mean == value


def test_set_takes_text_without_quotes(tmp_path: Path) -> None:
    recipe = load_recipe(written(EXAMPLE, tmp_path), ["models.rm.checkpoint=/a/b c"])
    spec = recipe.models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.checkpoint == "/a/b c"


def test_set_counts_for_the_recipes_that_have_the_table(tmp_path: Path) -> None:
    file = written(EXAMPLE, tmp_path)
    example, paper = load_recipes([file, "long-form-qa"], ["aspects.relevance.weight=2"])
    assert not example.aspects
    assert paper.aspects["relevance"].weight == 2


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("models.other.checkpoint=x", "models.other"),
        ("holistic.mean", "KEY=VALUE"),
        ("holistic.meen=1", "holistic.meen"),
        ("holistic.std=0", "holistic.std"),
        ("hierarchy.rule=best", "hierarchy.rule"),
        ("holistic.model=nobody", "holistic.model"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(setting: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(written(EXAMPLE, tmp_path), [setting])


@pytest.mark.parametrize(
    ("hierarchy", "told"),
    [
        ('rule = "soft_gate"', "hierarchy.temperature"),
        ('rule = "veto"\nminimums = { fit = 0.5 }', "hierarchy.floor"),
        ('rule = "veto"\nfloor = -1', "hierarchy.minimums"),
        ('rule = "cascade"', "hierarchy.order and hierarchy.minimums"),
        ('rule = "cascade"\norder = ["wit"]\nminimums = { fit = 0.5 }', r"\['wit'\]"),
        ('rule = "soft_gate"\ntemperature = 0', "hierarchy.temperature"),
        ('rule = "mo_grpo"\ngroup_size = 1', "hierarchy.group_size"),
        ('rule = "best"', "'hierarchical', .*'log_sigmoid', 'gdpo' or 'mo_grpo'"),
    ],
)
def test_a_rule_without_its_constants_is_refused_by_their_keys(
    hierarchy: str, told: str, tmp_path: Path
) -> None:
    table, _ = EXAMPLE.split("[hierarchy]")
    text = f'{table}[aspects.fit]\nmodel = "rm"\n[hierarchy]\n{hierarchy}\n'
    with pytest.raises(RecipeError, match=told):
        load_recipe(written(text, tmp_path))


def test_a_holistic_model_of_several_numbers_wants_one_named(tmp_path: Path) -> None:
    text = EXAMPLE.replace('kind = "sequence"', 'kind = "multi-objective"')
    with pytest.raises(RecipeError, match=r"name one in holistic\.output"):
        load_recipe(written(text, tmp_path))
    assert load_recipe(written(text, tmp_path), ["holistic.output=wit"]).holistic.output == "wit"


def test_a_recipe_that_is_nowhere_names_the_built_in_ones() -> None:
    with pytest.raises(RecipeError, match="long-form-qa"):
        load_recipe("no-such-recipe")


def test_a_checkpoint_beside_the_recipe_is_found_from_anywhere(tmp_path: Path) -> None:
    text = EXAMPLE.replace("some/model", "./weights")
    spec = load_recipe(written(text, tmp_path)).models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.checkpoint == str(tmp_path / "weights")


def test_an_adapter_and_a_tokenizer_beside_the_recipe_are_found_from_anywhere(
    tmp_path: Path,
) -> None:
    text = EXAMPLE.replace(
        'dtype = "float32"', 'adapter = "./lora"\ntokenizer = "../tokens"\nrevision = "v2"'
    )
    spec = load_recipe(written(text, tmp_path)).models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.adapter == str(tmp_path / "lora")
    assert spec.tokenizer == str(tmp_path.parent / "tokens")


def test_a_table_may_be_set_as_one_value(tmp_path: Path) -> None:
    turns = 'models.rm.turns={ user = "U: {}", assistant = "A: {}", separator = "\\n" }'
    spec = load_recipe(written(EXAMPLE, tmp_path), [turns]).models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.turns is not None
    assert (spec.turns.user, spec.turns.separator) == ("U: {}", "\n")


def test_a_weight_of_no_aspect_is_refused() -> None:
    with pytest.raises(RecipeError, match="grammar"):
        load_recipe("long-form-qa").rule_params(Overrides(weights={"grammar": 1.0}))


def test_the_fingerprint_covers_constants_and_overrides(tmp_path: Path) -> None:
    file = written(EXAMPLE, tmp_path)
    plain, moved = load_recipe(file), load_recipe(file, ["holistic.mean=1"])
    models = {"rm": "abc"}
    prints = {
        plain.fingerprint(models, Overrides()),
        moved.fingerprint(models, Overrides()),
        plain.fingerprint(models, Overrides(threshold=1.0)),
        plain.fingerprint({"rm": "abd"}, Overrides()),
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "setting", ["models.jugde.api_key=sesame", "models..api_key=sesame", "=sesame", "sesame"]
)
def test_setting_that_fits_nowhere_is_told_without_its_value(setting: str) -> None:
    with pytest.raises(RecipeError, match="--set") as told:
        load_recipe("mini", [setting])
    assert "sesame" not in str(told.value)


def test_key_of_digits_is_set_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    file.write_text(
        '[models.judge]\nkind = "remote"\napi = "alarm"\nurl = "http://host"\n'
        '[holistic]\nmodel = "judge"\n'
    )
    for text, key in (("0012345", "0012345"), ("1e5", "1e5"), ("true", "true"), ('"a b"', "a b")):
        spec = load_recipe(str(file), [f"models.judge.api_key={text}"]).models["judge"]
        assert isinstance(spec, RemoteSpec)
        assert spec.api_key is not None
        assert spec.api_key.get_secret_value() == key
