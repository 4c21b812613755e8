"""Examples and documents name existing things and cover every trainer."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from alarm_client import trainers
from alarm_client.trainers.__main__ import BY_URL, WHAT_TO_WRITE, main

CLIENTS = Path(__file__).parents[2] / "clients"
PYTHON = sorted((CLIENTS / "examples").glob("*.py"))
TEXTS = [*sorted((CLIENTS / "examples").glob("*.[st]*")), CLIENTS / "TRAINERS.md"]
MODULES = {path.stem for path in Path(trainers.__file__).parent.glob("*.py")}


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module of ours or something in one, if it needs a trainer."""
    try:
        import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        try:
            return hasattr(import_module(module), name)
        except ModuleNotFoundError as error:
            return not str(error.name).startswith("alarm_client")
    return True


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.stem)
def test_example_imports_exist(path):
    tree = ast.parse(path.read_text())
    ours = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("alarm_client")
    ]
    for node in ours:
        module = import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names), path.name


@pytest.mark.parametrize("path", [*PYTHON, *TEXTS], ids=lambda path: path.name)
def test_documented_dotted_names_exist(path):
    for dotted in re.findall(r"alarm_client\.trainers(?:\.\w+)+", path.read_text()):
        assert exists(dotted), f"{path.name}: {dotted}"


# Not hooks of their own: SkyRL's entry points beside `skyrl`, and an alias.
COMPANIONS = {"skyrl_main", "skyrl_dense", "texts"}
TRAINERS = sorted(name for name in MODULES - COMPANIONS if not name.startswith("_"))


def table_rows(document: str) -> list[list[str]]:
    lines = [line for line in document.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_trainers_list_names_every_module():
    assert sorted(WHAT_TO_WRITE) == TRAINERS


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainer_module_has_a_row_that_says_what_to_write(trainer):
    rows = table_rows((CLIENTS / "TRAINERS.md").read_text())
    word = re.compile(rf"(?<![a-z_]){trainer}(?![a-z])")
    assert any(len(row) == 5 and word.search(row[1]) for row in rows)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainer_module_has_a_test_that_calls_it(trainer):
    tests = Path(__file__).parent
    name = rf"(alarm_client\.trainers\.{trainer}\b|trainers import [^#]*\b{trainer}\b)"
    others = [path for path in tests.glob("test_*.py") if path.name != Path(__file__).name]
    assert any(re.search(name, path.read_text()) for path in others)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainer_module_has_defaults_and_public_names(trainer):
    module = import_module(f"alarm_client.trainers.{trainer}")
    assert module.DEFAULTS.trainer == trainer
    assert "DEFAULTS" in module.__all__


def test_trainer_module_import_loads_no_trainer():
    """Nor torch: what a hook needs is imported when the trainer calls it."""
    heavy = {"torch", "ray", "verl", "trl", "swift", "openrlhf", "slime", "skyrl_gym", "nemo_rl"}
    heavy |= {"areal", "skyrl", "fgrlhf", "transformers", "rllm", "open_instruct", "forge"}
    for name in MODULES:
        tree = ast.parse((Path(trainers.__file__).parent / f"{name}.py").read_text())
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                named = getattr(node, "module", None) or node.names[0].name
                assert named.partition(".")[0] not in heavy, f"{name}: {named}"


def test_trainers_list_ends_with_trainers_by_url(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].rstrip() for line in lines[-len(BY_URL) :]] == list(BY_URL)
    readme = (CLIENTS.parent / "README.md").read_text()
    for trainer, path in BY_URL.items():
        assert f"| {trainer}" in readme, trainer
        assert path.partition("/NAME")[0] in readme, path


def test_readme_names_every_trainer():
    readme = " ".join((CLIENTS.parent / "README.md").read_text().lower().split())
    names = {"alarm_trl": "fork of trl", "fine_grained_rlhf": "finegrainedrlhf"}
    for trainer in [*WHAT_TO_WRITE, "unsloth", "prime-rl"]:
        name = names.get(trainer, trainer)
        assert (
            name in readme or name.replace("_", " ") in readme or name.replace("_", "-") in readme
        )
