"""The making of a generation: what did not change is kept, all else loaded and tried."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
import torch

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.rewards import DirectModel, Model
from alarm_models.sample import Sample, Score
from alarm_models.specs import PythonSpec
from alarm_service.catalog import Catalog, ServedModel
from alarm_service.errors import ServiceError
from alarm_service.generations.generation import Generation
from alarm_service.generations.opening import Awaits, open_models
from alarm_service.generations.succession import close_models
from alarm_service.scheduling.loaded import Loaded
from alarm_service.scheduling.loading import (
    in_daemon_thread,
    require_named_outputs,
    shortest_warm_up_sample,
    warm_up_sample,
)
from alarm_service.scheduling.passage import Passage
from alarm_service.scheduling.replicas import Load, Replicas

__all__ = ["Maker", "Unchanged"]

_log = structlog.get_logger()

#: Returns those of some models that loading would give again as they are; called in a thread.
Unchanged = Callable[[Sequence[Loaded], torch.device], Sequence[Loaded]]


class Maker:
    """Makes generations while another serves."""

    def __init__(
        self,
        replicas: Replicas,
        passage: Passage,
        load: Load,
        unchanged: Unchanged,
        *,
        is_measured: bool,
    ) -> None:
        self._replicas = replicas
        self._passage = passage
        self._load = load
        self._unchanged = unchanged
        self._is_measured = is_measured

    @asynccontextmanager
    async def made(
        self,
        catalog: Catalog,
        before: Generation,
        read_again: Collection[str],
        awaits: Awaits | None = None,
    ) -> AsyncIterator[Generation]:
        """Make the generation of a catalog, for the block to try and to put in place.

        A model that ``before`` has is kept; one of the recipes ``read_again`` only where its files
        are as they were. With ``awaits``, servers that are away are waited for. Where anything
        fails, in the block too, the new models are closed.
        Raises `AlarmModelsError` and `ServiceError`.
        """
        made: list[Model] = []
        try:
            kept = await self._kept(catalog, before, read_again)
            wanted = {key: one for key, one in catalog.models.items() if key not in kept}
            load = partial(
                self._replicas.load, self._load, wanted, made, is_measured=self._is_measured
            )
            models = kept | (await in_daemon_thread(load) if wanted else {})
            await open_models(made, awaits)
            generation = Generation(catalog, {key: models[key] for key in catalog.models})
            await self._warm_up(generation, before)
            yield generation
        except BaseException:
            await close_models(made)
            raise

    async def _kept(
        self, catalog: Catalog, before: Generation, read_again: Collection[str]
    ) -> dict[str, Loaded]:
        found = {key: _found(served, before) for key, served in catalog.models.items()}
        kept = {key: loaded for key, loaded in found.items() if loaded is not None}
        in_doubt = _keys_of(catalog, read_again) & kept.keys()
        if in_doubt:
            doubted = [kept[key] for key in in_doubt]
            device = self._replicas.devices[0]
            same = await in_daemon_thread(partial(self._unchanged, doubted, device))
            same_ids = {id(one.model) for one in same}
            kept = {
                key: loaded
                for key, loaded in kept.items()
                if key not in in_doubt or id(loaded.model) in same_ids
            }
        return kept

    async def _warm_up(self, generation: Generation, before: Generation) -> None:
        known = {id(model) for model in before.replicas}
        for key, loaded in generation.models.items():
            named = generation.catalog.outputs_of(loaded.served)
            if id(loaded.model) in known and not _has_more(named, before, key):
                continue
            await self._first_run(loaded, named)

    async def _first_run(self, loaded: Loaded, named: Mapping[str, str]) -> None:
        outcome = await self._outcome(loaded, warm_up_sample(loaded.served))
        if isinstance(outcome, SampleError) and outcome.code == "too_long":
            # The recipe's limit is small, and a sample of its callers' may well fit.
            outcome = await self._outcome(loaded, shortest_warm_up_sample(loaded.served))
        if isinstance(outcome, SampleError):
            if isinstance(loaded.served.spec, PythonSpec):
                # It was imported; what it reads of its callers' fields nobody knows but they.
                _log.warning(
                    "the function has no score for a made-up sample; it is served all the same",
                    model=loaded.name,
                    error=str(outcome),
                )
                return
            if isinstance(loaded.model, DirectModel) and loaded.model.is_elsewhere:
                # It answered as it was opened; that a judge has no number for this is no fault.
                _log.warning("no score to warm up", model=loaded.name, error=str(outcome))
                return
            raise CheckpointError(f"model {loaded.name!r} cannot score: {outcome}")
        require_named_outputs(named, outcome)

    async def _outcome(self, loaded: Loaded, sample: Sample) -> Score | SampleError:
        (outcome,) = await self._passage.outcomes(loaded, [sample])
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome


def _found(served: ServedModel, before: Generation) -> Loaded | None:
    """Return the model of which recipes said the same, under the name that it has now."""
    for loaded in before.models.values():
        if (loaded.served.spec, loaded.served.fields) == (served.spec, served.fields):
            if loaded.served == served:
                return loaded
            return Loaded(served, loaded.replicas, loaded.budget, loaded.since)
    return None


def _keys_of(catalog: Catalog, recipes: Collection[str]) -> set[str]:
    return {
        catalog.model_of(recipe, name).key
        for recipe in catalog.recipes.values()
        if recipe.name in recipes
        for name in recipe.models
    }


def _has_more(named: Mapping[str, str], before: Generation, key: str) -> bool:
    """Say whether recipes name outputs of a model that they did not name before."""
    served = before.catalog.models.get(key)
    known = {} if served is None else before.catalog.outputs_of(served)
    return not named.items() <= known.items()
