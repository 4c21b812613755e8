"""docs/studies.md matches the commands and the library."""

import re
from pathlib import Path

import pytest

from alarm_service.cli.main import main

DOCS = (Path(__file__).parents[1] / "docs" / "studies.md").read_text()
COMMANDS = ("select", "calibrate", "evaluate", "judge")


def test_studies_page_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    told = set(re.findall(r"--[a-z][a-z-]*", DOCS))
    assert told
    assert told <= known


def test_studies_page_library_example_runs() -> None:
    code = re.findall(r"\n\n((?:    .*\n|\n)+)", DOCS.partition("## As a library")[2])[0]
    names: dict[str, object] = {}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    # One prompt's pair agrees; the other's is tied by the aspect.
    assert str(names["found"]).startswith("Agreement(num_pairs=2, num_tied=1, num_against=0")


def test_studies_page_lists_every_library_module() -> None:
    import alarm_models.study

    folder = Path(alarm_models.study.__file__).parent
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert modules == set(re.findall(r"`(\w+)`", DOCS.partition("| module | |")[2]))
