from collections.abc import Iterator

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


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.sequence_classifier("llama", tmp_path_factory.mktemp("llama"))
