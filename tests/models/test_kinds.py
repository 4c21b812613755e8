"""The registry of kinds: every spec has a module that loads it."""

import sys
from importlib import import_module
from typing import Literal

import pytest
from forking import run_forked
from pydantic import TypeAdapter, ValidationError

from alarm_models.errors import RecipeError
from alarm_models.recipe.specs import (
    KINDS,
    CheckSpec,
    LengthSpec,
    ModelSpec,
    NeuralSpec,
)
from alarm_models.reward_models import registry
from alarm_models.reward_models.base import NeuralRewardModel


@pytest.mark.parametrize("kind", KINDS)
def test_module_of_kind_registers_its_spec(kind: str) -> None:
    spec = KINDS[kind]
    import_module(spec.module)
    registered = registry._NEURAL_KINDS if issubclass(spec, NeuralSpec) else registry._HOST_KINDS
    assert spec in registered


@pytest.mark.parametrize("kind", KINDS)
def test_registered_model_of_neural_kind_is_defined_in_its_module(kind: str) -> None:
    if issubclass(KINDS[kind], NeuralSpec):
        import_module(KINDS[kind].module)
        model = registry._NEURAL_KINDS[KINDS[kind]].build
        assert isinstance(model, type)
        assert issubclass(model, NeuralRewardModel)
        assert model.__module__ == KINDS[kind].module


def test_unknown_kind_names_all_kinds() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ModelSpec).validate_python({"kind": "nope"})
    assert f"expected tags: {', '.join(map(repr, KINDS))}" in str(caught.value)


def test_second_spec_of_a_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="LengthSpec and LengthSpec are both kind 'length'"):
        type(
            "LengthSpec",
            (CheckSpec,),
            {"__annotations__": {"kind": Literal["length"]}, "kind": "length"},
        )
    assert KINDS["length"] is LengthSpec


def test_missing_library_is_named_with_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = KINDS["similarity"]()
    monkeypatch.delitem(sys.modules, spec.module, raising=False)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(RecipeError, match=r"^kind 'similarity' needs the package 'sacrebleu"):
        registry.load_host_model(spec, {})


def test_registry_import_loads_no_kind() -> None:
    modules = sorted({spec.module for spec in KINDS.values()})
    code = (
        "import sys, alarm_models.reward_models.registry\n"
        f"print([name for name in {modules} if name in sys.modules])"
    )
    assert run_forked(code) == (0, "[]\n", "")
