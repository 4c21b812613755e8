import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from alarm_models.process_tuning import gc_frozen_imports

with gc_frozen_imports():
    import tiny
    import transformers
    from tiny import Checkpoint


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector from what modules and collected tests leave."""
    with gc_frozen_imports():
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped because there is no browser, and why."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "test_page_browser" in report.nodeid
    ]
    if skipped:
        why = str(skipped[0].longrepr[2]).removeprefix("Skipped: ")
        number = len(skipped)
        terminalreporter.write_line(f"skipped in a browser: {number} tests of the page ({why})")


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.sequence_classifier("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of ``models/training``, which is no package, by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "models" / "training"))
    return importlib.import_module
