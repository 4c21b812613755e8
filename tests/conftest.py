import pytest
import tiny
import transformers
from tiny import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.sequence_classifier("llama", tmp_path_factory.mktemp("llama"))
