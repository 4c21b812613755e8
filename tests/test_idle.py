"""Serving `mini` does not import libraries that it does not use."""

from forking import run_forked

PROGRAM = """
import sys, torch
from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.engine.model_set import Catalog
from alarm_service.engine.devices import load_models
from alarm_service.settings import Settings
recipe = load_recipe("mini")
create_app([recipe], Settings(device="cpu"))
assert load_models(Catalog([recipe]).models, torch.device("cpu"), max_remembered_bytes=0)
unused = {"harper", "lingua", "pyphen", "sacrebleu"}
print(sorted(unused & set(sys.modules)))
"""


def test_mini_imports_no_library_of_other_kinds() -> None:
    _, out, err = run_forked(PROGRAM)
    assert out.splitlines()[-1:] == ["[]"], err
