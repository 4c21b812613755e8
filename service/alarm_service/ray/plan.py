"""What a replica is made of, in plain data that goes to another machine: no key goes along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from alarm_models.recipe import Recipe
from alarm_models.specs import NeuralSpec
from alarm_service.catalog import Catalog, ServedModel
from alarm_service.replicas import Load
from alarm_service.settings import Settings

__all__ = ["Plan", "Share", "plans"]

#: The door is the ingress's: a replica takes what that one lets in.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Share:
    """What a model has of the cluster; more than ``replicas`` as tokens wait, to ``most``."""

    replicas: int
    most: int
    queued_tokens: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One model's deployment: a recipe of that model alone, and what its engine is told.

    ``load`` is the seam for stand-in models; it must be importable where replicas run.
    """

    name: str
    recipe: Recipe
    settings: Settings
    share: Share
    load: Load | None = None


def plans(
    catalog: Catalog, settings: Settings, share: Share, generation: str, load: Load | None = None
) -> Mapping[str, Plan]:
    """Plan a deployment for each of the catalog's models that need a device, by its key.

    Deployments of another generation have other names: both may be there at once.
    """
    own = settings.model_copy(
        update={"api_key": (), "api_key_file": None, "max_queued_tokens": _NO_LIMIT}
    )
    return {
        key: Plan(_name(generation, key), _alone(catalog, served), own, share, load)
        for key, served in catalog.models.items()
        if isinstance(served.spec, NeuralSpec)
    }


def _name(generation: str, key: str) -> str:
    return f"alarm-{generation}-{re.sub(r'[^0-9A-Za-z]+', '-', key)}"


def _alone(catalog: Catalog, served: ServedModel) -> Recipe:
    """Return the model's recipe without its other models; never asked for a reward."""
    recipe = catalog.recipes[served.recipe]
    holistic = recipe.holistic.model_copy(update={"model": served.name, "output": None})
    return recipe.model_copy(
        update={"models": {served.name: served.spec}, "holistic": holistic, "aspects": {}}
    )
