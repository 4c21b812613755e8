from pathlib import Path

import pytest

from alarm_models.combination.all_rules import Rule
from alarm_models.errors import RecipeError
from alarm_models.recipe.loader import built_in_names, load_recipe, load_recipes
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.recipe.specs import RemoteSpec, RubricSpec, SequenceSpec

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


def test_recipe_example_of_the_contract_is_valid(tmp_path: Path) -> None:
    recipe = load_recipe(written(EXAMPLE, tmp_path))
    assert recipe.name == "example"
    assert recipe.hierarchy.rule is Rule.HOLISTIC_ONLY


def test_recipe_without_name_uses_file_name(tmp_path: Path) -> None:
    text = EXAMPLE.replace('name = "example"', "")
    assert load_recipe(written(text, tmp_path, "mine.toml")).name == "mine"


def test_recipe_long_form_qa_has_constants_of_the_paper() -> None:
    recipe = load_recipe("long-form-qa")
    hierarchy = recipe.rule_params(Overrides())
    assert hierarchy.rule is Rule.HIERARCHICAL
    assert (hierarchy.threshold, hierarchy.holistic_weight) == (0.6, 5.0)
    assert (hierarchy.mean, hierarchy.std) == (-4.896130742253484, 3.0595760500526468)
    assert hierarchy.weights == {"relevance": 0, "factuality": 1, "completeness": 0}


def test_recipe_translation_has_constants_of_the_paper() -> None:
    recipe = load_recipe("translation")
    hierarchy = recipe.rule_params(Overrides())
    assert hierarchy.rule is Rule.HIERARCHICAL
    assert (hierarchy.threshold, hierarchy.holistic_weight) == (0.5, 3.0)
    assert (hierarchy.mean, hierarchy.std) == (-2.34417221913525, 2.946283030347152)
    assert hierarchy.weights == {"grammar": 1, "readability": 0, "language": 0}


def test_grammar_placement_defaults_to_every_token() -> None:
    table = load_recipe("translation").model_dump(mode="json")
    for said, placement in ((None, "tokens"), ("segment-ends", "segment-ends")):
        table["aspects"]["grammar"]["placement"] = said
        rule = Recipe.model_validate(table).aspect_rule("grammar", None)
        assert rule.placement == placement


@pytest.mark.parametrize("kind", ["comet", "steps"])
def test_tokens_placement_of_graded_segments_is_refused(kind: str, tmp_path: Path) -> None:
    aspect = f'[models.m]\nkind = "{kind}"\ncheckpoint = "m"\n[aspects.a]\nmodel = "m"\n'
    load_recipe(written(f'{EXAMPLE}{aspect}placement = "segment-ends"\n', tmp_path))
    told = f'aspects.a.placement is "tokens", .* kind `{kind}` have scores: remove'
    with pytest.raises(RecipeError, match=told):
        load_recipe(written(f'{EXAMPLE}{aspect}placement = "tokens"\n', tmp_path))


def test_python_path_is_relative_to_recipe_file(tmp_path: Path) -> None:
    model = '[models.mine]\nkind = "python"\nfunction = "mine:reward"\npath = "./functions"\n'
    recipe = load_recipe(written(EXAMPLE + model, tmp_path))
    assert getattr(recipe.models["mine"], "path", None) == str(tmp_path / "functions")


@pytest.mark.parametrize("name", built_in_names())
def test_built_in_recipes_are_valid(name: str) -> None:
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


def test_set_applies_to_recipes_that_have_the_table(tmp_path: Path) -> None:
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
def test_recipe_with_invalid_value_is_refused_by_key(
    setting: str, told: str, tmp_path: Path
) -> None:
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
        ('rule = "best"', "Input should be 'hierarchical', 'weighted_sum', "),
    ],
)
def test_rule_without_required_constants_is_refused_by_key(
    hierarchy: str, told: str, tmp_path: Path
) -> None:
    table, _ = EXAMPLE.split("[hierarchy]")
    text = f'{table}[aspects.fit]\nmodel = "rm"\n[hierarchy]\n{hierarchy}\n'
    with pytest.raises(RecipeError, match=told):
        load_recipe(written(text, tmp_path))


def test_holistic_model_with_several_outputs_requires_output(tmp_path: Path) -> None:
    text = EXAMPLE.replace('kind = "sequence"', 'kind = "multi-objective"')
    with pytest.raises(RecipeError, match=r"name one in holistic\.output"):
        load_recipe(written(text, tmp_path))
    assert load_recipe(written(text, tmp_path), ["holistic.output=wit"]).holistic.output == "wit"


def test_unknown_recipe_error_lists_built_in_recipes() -> None:
    with pytest.raises(RecipeError, match="long-form-qa"):
        load_recipe("no-such-recipe")


def test_checkpoint_path_is_relative_to_recipe_file(tmp_path: Path) -> None:
    text = EXAMPLE.replace("some/model", "./weights")
    spec = load_recipe(written(text, tmp_path)).models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.checkpoint == str(tmp_path / "weights")


def test_adapter_and_tokenizer_paths_are_relative_to_recipe_file(
    tmp_path: Path,
) -> None:
    text = EXAMPLE.replace(
        'dtype = "float32"', 'adapter = "./lora"\ntokenizer = "../tokens"\nrevision = "v2"'
    )
    spec = load_recipe(written(text, tmp_path)).models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.adapter == str(tmp_path / "lora")
    assert spec.tokenizer == str(tmp_path.parent / "tokens")


def test_set_with_inline_table_sets_all_its_keys(tmp_path: Path) -> None:
    turns = 'models.rm.turns={ user = "U: {}", assistant = "A: {}", separator = "\\n" }'
    spec = load_recipe(written(EXAMPLE, tmp_path), [turns]).models["rm"]
    assert isinstance(spec, SequenceSpec)
    assert spec.turns is not None
    assert (spec.turns.user, spec.turns.separator) == ("U: {}", "\n")


def test_weight_of_unknown_aspect_is_refused() -> None:
    with pytest.raises(RecipeError, match="grammar"):
        load_recipe("long-form-qa").rule_params(Overrides(weights={"grammar": 1.0}))


def test_recipe_fingerprint_covers_constants_and_overrides(tmp_path: Path) -> None:
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
    "setting",
    [
        "models.jugde.api_key=sesame", "models..api_key=sesame", "=sesame", "sesame",
        "models.jugde.endpoint.apikey=sesame", "models.jugde.api_key.x=sesame",
        "models.preference.api_key sesame",
    ],
)  # fmt: skip
def test_set_with_unknown_key_error_hides_the_value(setting: str) -> None:
    with pytest.raises(RecipeError, match="--set") as told:
        load_recipe("mini", [setting])
    assert "sesame" not in str(told.value)


def test_set_reaches_tables_in_a_model(tmp_path: Path) -> None:
    file = tmp_path / "rubric.toml"
    file.write_text(
        '[models.r]\nkind = "rubric"\ncriteria = ["It is short."]\n'
        '[models.r.endpoint]\nurl = "http://host/v1"\nmodel = "j"\n[holistic]\nmodel = "r"\n'
    )
    settings = ["models.r.endpoint.max_retries=7", "models.r.endpoint.budget.requests=9"]
    spec = load_recipe(str(file), settings).models["r"]
    assert isinstance(spec, RubricSpec)
    assert spec.endpoint is not None
    assert spec.endpoint.max_retries == 7
    assert spec.endpoint.budget is not None
    assert spec.endpoint.budget.requests == 9


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


DENSE = 'dense = "prefix"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (EXAMPLE.replace("weight = 1.0\n", 'segmenter = "steps"\n'), r"holistic.dense = .prefix"),
        (EXAMPLE.replace("weight = 1.0\n", 'dense = "suffix"\n'), "holistic.dense"),
        (
            EXAMPLE.replace("weight = 1.0\n", DENSE) + '[models.n]\nkind = "length"\n'
            f'[aspects.a]\nmodel = "n"\n{DENSE}',
            "aspects.a.dense requires a model of kind `sequence` or `multi-objective`",
        ),
        (
            f'{EXAMPLE}[aspects.a]\nmodel = "rm"\nplacement = "segment-ends"\n{DENSE}',
            "aspects.a has both dense and placement",
        ),
        (
            EXAMPLE.replace("weight = 1.0\n", DENSE)
            + f'[aspects.a]\nmodel = "rm"\nsegmenter = "steps"\n{DENSE}',
            "use the same model 'rm' with different segmenters, sentences and steps",
        ),
        (
            EXAMPLE.replace("weight = 1.0\n", DENSE).replace("holistic_only", "minimum"),
            "adds up the holistic reward, and `minimum` does not",
        ),
    ],
)
def test_dense_that_has_no_meaning_is_refused_with_what_to_write(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(written(text, tmp_path))


def test_dense_changes_the_fingerprint_of_a_recipe_that_has_it(tmp_path: Path) -> None:
    texts = (EXAMPLE, EXAMPLE.replace("weight = 1.0\n", DENSE))
    plain, dense = (
        load_recipe(written(text, tmp_path)).fingerprint({}, Overrides()) for text in texts
    )
    assert plain != dense
