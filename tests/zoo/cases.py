"""Test cases of the zoo: a checkpoint, the recipe of a user, and the card's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tolerance import computed

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.specs import ModelSpec
from alarm_models.reward_models.base import HostModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Message, Sample
from zoo.cards import ALL, Card, Sent

_SPEC: TypeAdapter[Any] = TypeAdapter(ModelSpec)


@dataclass(frozen=True)
class Case:
    """One family; ``build`` writes its checkpoint and returns what its card computes."""

    name: str
    build: Callable[[Path], Card]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Sent] = field(default_factory=lambda: ALL)


def parameters(cases: list[Case]) -> list[Any]:
    """Return cases for `pytest.mark.parametrize`; one whose keys are not built yet must fail."""
    return [pytest.param(case, id=case.name, marks=_marks(case.recipe)) for case in cases]


def _marks(recipe: Mapping[str, Any]) -> list[pytest.MarkDecorator]:
    try:
        _SPEC.validate_python({"kind": "sequence", **recipe, "checkpoint": "x"})
    except ValidationError as error:
        lacking = {str(one["loc"][-1]) for one in error.errors()}
        return [pytest.mark.xfail(strict=True, reason=f"recipes lack {sorted(lacking)}")]
    return []


def sample(sent: Sent) -> Sample:
    """Make a sample of what is sent."""
    prompt = sent["prompt"]
    if not isinstance(prompt, str):
        prompt = tuple(Message(one["role"], one["content"]) for one in prompt)
    return Sample(prompt, sent["completion"], fields=sent.get("fields", {}))


def load(folder: Path, recipe: Mapping[str, Any]) -> Any:
    """Load a checkpoint as a recipe's keys say, to be shown thoughts as cards' snippets do."""
    keys = {"kind": "sequence", "thinking": "keep", **recipe, "checkpoint": str(folder)}
    spec = _SPEC.validate_python(keys)
    model = Loader(torch.device("cpu")).load(spec, {})
    assert not isinstance(model, HostModel)
    return model


def scores(model: Any, samples: Mapping[str, Sent]) -> dict[str, float | str]:
    """Return each sample's score, computed in one batch, or its error's message."""
    prepared = dict(zip(samples, model.prepare(list(map(sample, samples.values()))), strict=True))
    features = {name: one for name, one in prepared.items() if isinstance(one, ModelInput)}
    outputs = dict(zip(features, model.forward(list(features.values())), strict=True))
    made: dict[str, float | str] = {}
    for name, one in prepared.items():
        if isinstance(one, SampleError):
            made[name] = one.message
        else:
            made[name] = model.read(one, outputs[name]).value
    return made


def assert_as_card(case: Case, folder: Path) -> None:
    """Fail unless every sample has the card's score, and the scores are not all alike."""
    card = case.build(folder)
    wanted = {name: card(sent) for name, sent in case.samples.items()}
    assert len(set(wanted.values())) > len(wanted) // 2
    got = scores(load(folder, case.recipe), case.samples)
    assert got == {name: computed(value) for name, value in wanted.items()}
