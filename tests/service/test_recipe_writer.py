import tomllib
from pathlib import Path

import pytest

from alarm_models.errors import RecipeError
from alarm_models.recipe.loader import load_recipe
from alarm_service.evaluation.recipe_writer import Change, write_recipe

RECIPE = """\
# Why this recipe is as it is.
name = "mine"

[models.rm]
kind = "length"   # not the best judge

[holistic]
model = "rm"

[aspects.brevity]
model = "rm"
weight = 0.0 # to be decided
scale = -1.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    return file


def test_recipe_writer_changes_values_and_keeps_the_rest(file: Path) -> None:
    write_recipe(str(file), [], {"aspects.brevity.weight": Change(1.0, "it agrees")}, file)
    assert file.read_text() == RECIPE.replace("0.0 # to be decided", "1.0 # it agrees")


def test_recipe_writer_adds_missing_keys_and_tables(file: Path) -> None:
    changes = {
        "holistic.mean": Change(0.25, "over 10 completions"),
        "hierarchy.threshold": Change(0.5, "admits 30%"),
    }
    write_recipe(str(file), [], changes, file)
    recipe = load_recipe(str(file))
    assert (recipe.holistic.mean, recipe.hierarchy.threshold) == (0.25, 0.5)
    text = file.read_text()
    assert 'model = "rm"\nmean = 0.25 # over 10 completions\n' in text
    assert "# Why this recipe is as it is." in text
    assert 'kind = "length"   # not the best judge' in text


def test_recipe_writer_writes_settings(file: Path) -> None:
    write_recipe(str(file), ["holistic.weight=3"], {}, file)
    assert load_recipe(str(file)).holistic.weight == 3


def test_recipe_writer_built_in_recipe_has_the_new_file_name(tmp_path: Path) -> None:
    target = tmp_path / "ours.toml"
    write_recipe("mini", [], {"hierarchy.threshold": Change(0.4, "admits 33%")}, target)
    recipe, origin = load_recipe(str(target)), load_recipe("mini")
    assert recipe.name == "ours"
    assert recipe.hierarchy.threshold == 0.4
    # Its weights are found from anywhere.
    assert recipe.models == origin.models
    assert Path(tomllib.loads(target.read_text())["models"]["preference"]["checkpoint"]).is_dir()


def test_recipe_writer_resolves_relative_chat_template(file: Path, tmp_path: Path) -> None:
    (tmp_path / "form.jinja").write_text("{{ messages }}")
    model = 'kind = "sequence"\ncheckpoint = "a/model"\nchat_template = "form.jinja"\n'
    file.write_text(RECIPE.replace('kind = "length"', model))
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "mine.toml"
    write_recipe(str(file), [], {"hierarchy.threshold": Change(0.4, "admits 33%")}, target)
    assert load_recipe(str(target)).models == load_recipe(str(file)).models


def test_recipe_writer_invalid_recipe_is_not_written(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"holistic\.std"):
        write_recipe(str(file), [], {"holistic.std": Change(-1.0, "wrong")}, file)
    assert file.read_text() == RECIPE
    assert list(file.parent.iterdir()) == [file]
