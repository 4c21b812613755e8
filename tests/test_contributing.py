"""Rules, kinds, families, trainers, routes and metrics have what CONTRIBUTING.md asks for."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
from fastapi.routing import APIRoute

from alarm_client import trainers
from alarm_client.trainers.__main__ import WHAT_TO_WRITE
from alarm_models.combination.rule_registry import RULES
from alarm_models.modeling.families import Family, families
from alarm_models.recipe.specs import ModelSpec
from alarm_service.api.app import API_ROUTES
from alarm_service.schemas import SampleErrorOut

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TESTS = {
    path: path.read_text("utf-8")
    for path in (ROOT / "tests").rglob("test_*.py")
    if path != Path(__file__)
}

#: The specs of the kinds that a recipe may name.
SPECS = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(ModelSpec)[0])}


def generator() -> ModuleType:
    """Import docs/generate.py, which is in no package."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return import_module("generate")
    finally:
        sys.path.pop(0)


GENERATE = generator()


def is_tested(pattern: str, folder: str = "") -> bool:
    """Say whether a test of that folder has the pattern."""
    tests = (text for path, text in TESTS.items() if folder in path.as_posix())
    return any(re.search(pattern, text) for text in tests)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./-]+/[\w.-]+)`", CONTRIBUTING))))
def test_path_named_in_contributing_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("table", GENERATE.TABLES)
def test_table_of_the_docs_is_what_the_code_says(table: str) -> None:
    file, _ = GENERATE.TABLES[table]
    page = (ROOT / "docs" / file).read_text("utf-8")
    assert GENERATE.with_table(table, page) == page, f"docs/{file} is out of date: run `make docs`"


def test_docs_list_the_error_codes_of_samples() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert set(listed) == set(get_args(SampleErrorOut.model_fields["code"].annotation))


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_a_test(rule: str) -> None:
    assert is_tested(rf"Rule\.{rule.upper()}\b", "tests/models/")


@pytest.mark.parametrize("kind", SPECS)
def test_kind_has_a_row_or_a_section_of_the_docs(kind: str) -> None:
    files = ("docs/kinds.md", "docs/checks.md", "README.md")
    pages = "\n".join((ROOT / file).read_text("utf-8") for file in files)
    assert re.search(rf"^(\| `{kind}` \||## `{kind}`$)", pages, re.MULTILINE)


@pytest.mark.parametrize("kind", SPECS)
def test_kind_has_a_test(kind: str) -> None:
    named = rf"""\b{SPECS[kind].__name__}\b|\bkind"?( =|:) "{kind}"|kind="{kind}\""""
    assert is_tested(named, "tests/models/")


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_family_names_a_test_that_is_there(family: Family) -> None:
    if family.test is not None:
        assert any(ROOT / "tests" / folder / family.test in TESTS for folder in ("zoo", "models"))
    assert family.test is not None or not family.recipe or family.name in UNCOMPARED


#: Families that were not compared with their cards: their texts are the users' own.
UNCOMPARED = {
    "FineGrainedRLHF completeness",
    "value head beside a base called transformer",
    "value head beside a base called transformer, with a chat template",
    "OpenRLHF of older versions",
    "sequence classifier of several labels",
}


#: Modules that trainers' own modules are parts of, or that keep an old path.
HELPERS = {"skyrl_dense", "skyrl_main", "texts"}


@pytest.mark.parametrize(
    "module",
    sorted(
        path.stem
        for path in Path(trainers.__file__).parent.glob("[!_]*.py")
        if path.stem not in HELPERS
    ),
)
def test_trainer_has_a_line_to_write_a_row_and_a_test(module: str) -> None:
    assert module in WHAT_TO_WRITE
    assert re.search(
        rf"\|.*\b{module}(\b|_)", (ROOT / "clients" / "TRAINERS.md").read_text("utf-8")
    )
    assert is_tested(rf"\b{module}\b", "tests/clients/test_trainer_")


@pytest.mark.parametrize("route", API_ROUTES, ids=lambda route: route.path)
def test_route_is_described_and_has_a_test(route: APIRoute) -> None:
    assert route.include_in_schema
    assert route.description
    assert is_tested(re.escape(route.path.partition("{")[0]), "tests/service/")


@pytest.mark.parametrize(
    "metric", re.findall(r"^\| `alarm_(\w+?)(?:_total)?` ", GENERATE.metrics(), re.MULTILINE)
)
def test_metric_has_a_test(metric: str) -> None:
    assert is_tested(rf"{metric}(_total|_sum|_count|_bucket)?\b", "tests/")
