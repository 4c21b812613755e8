"""docs/architecture.md names modules, packages and symbols that exist."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
#: Where the descriptions of the tree begin.
COLUMN = 30

PACKAGES = {"alarm_models", "alarm_service", "alarm_client"}


def tree_entries() -> Iterator[Path]:
    """Yield the path, without suffix, of every module and package in the tree of the page."""
    folders: dict[int, Path] = {}
    for line in PAGE.split("```")[1].splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        for name in line[:COLUMN].strip().split(", "):
            path = folders.get(indent - 2, ROOT) / name.rstrip("/")
            if name.endswith("/"):
                folders[indent] = path
            yield path


def glossary_symbols() -> list[str]:
    found = re.findall(r"`((?:models|service|client)\.[\w.]+)`", PAGE.split("## Glossary")[1])
    return [f"alarm_{name}" for name in found]


def test_tree_entry_is_a_module_or_package() -> None:
    entries = list(tree_entries())
    assert len(entries) > 50
    assert [
        one for one in entries if not one.is_dir() and not one.with_suffix(".py").is_file()
    ] == []


def test_every_package_of_the_distributions_is_in_the_tree() -> None:
    shown = {one.relative_to(ROOT) for one in tree_entries()}
    packages = {
        file.parent.relative_to(ROOT)
        for package in PACKAGES
        for folder in ROOT.glob(f"*/{package}")
        for file in folder.rglob("__init__.py")
    }
    assert packages - shown == {Path("clients/alarm_client/trainers/files")}


@pytest.mark.parametrize("symbol", glossary_symbols())
def test_glossary_symbol_exists(symbol: str) -> None:
    try:
        importlib.import_module(symbol)
    except ModuleNotFoundError:
        module, _, name = symbol.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
