"""What a replica is made of, in plain data that goes to another machine: no key goes along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import HolisticSpec
from alarm_models.specs import NeuralSpec
from alarm_service.catalog import ServedModel
from alarm_service.scheduling.replicas import Load
from alarm_service.settings import Settings

__all__ = ["PREFIX", "Plan", "Share", "plans"]

#: What the names of all models' applications begin with.
PREFIX = "alarm-"

#: The door is the ingress's: a replica takes what that one lets in.
_NO_LIMIT = 1 << 60


#: What stays where requests come in, keys above all: a recipe's `--set` may hold some too.
_THE_INGRESS_S = {
    "api_key": (),
    "api_key_file": None,
    "admin_key": (),
    "admin_key_file": None,
    "recipe": (),
    "set": (),
    "recipe_dir": None,
}


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
    wanted: Mapping[str, ServedModel],
    settings: Settings,
    share: Share,
    generation: str,
    load: Load | None = None,
) -> Mapping[str, Plan]:
    """Plan a deployment for each of some models that needs a device, by its key.

    Deployments of another generation have other names: both may be there at once.
    """
    unlimited = {"max_queued_tokens": _NO_LIMIT, "max_queue_s": 0}
    own = settings.model_copy(update=_THE_INGRESS_S | unlimited)
    return {
        key: Plan(_name(generation, key), _alone(served), own, share, load)
        for key, served in wanted.items()
        if isinstance(served.spec, NeuralSpec)
    }


def _name(generation: str, key: str) -> str:
    return f"{PREFIX}{generation}-{re.sub(r'[^0-9A-Za-z]+', '-', key)}"


def _alone(served: ServedModel) -> Recipe:
    """Return a recipe of one model, which is never asked for a reward.

    It is not validated: a model of segments could not be a recipe's holistic one.
    """
    return Recipe.model_construct(
        name=served.recipe,
        models={served.name: served.spec},
        holistic=HolisticSpec(model=served.name),
        fields={name: field.pattern for name, field in served.fields.items()},
    )
