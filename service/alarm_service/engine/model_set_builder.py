"""Hot reload: builds the next model set while the current one is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import structlog
import torch

from alarm_models.backoff import backoff_s
from alarm_models.errors import CheckpointError, NoRoomError, SampleError, UnreachableError
from alarm_models.modeling.inputs import BatchLayout
from alarm_models.reward_models.base import HostModel, Model
from alarm_models.types import Sample, Score
from alarm_service.engine.devices import (
    DevicePool,
    ModelLoader,
    in_daemon_thread,
    require_named_outputs,
    shortest_warm_up_sample,
    warm_up_group,
    warm_up_sample,
)
from alarm_service.engine.model_set import Catalog, LoadedModel, ModelSet, ServedModel, close_models
from alarm_service.engine.pipeline import ScoringPipeline
from alarm_service.errors import ServiceError
from alarm_service.observability.endpoint_failures import EndpointFailureLog

__all__ = [
    "FindUnchanged",
    "ModelSetBuilder",
    "OnBlocked",
    "open_models",
]

_log = structlog.get_logger()

#: The first and the longest backoff between attempts to open a model.
_FIRST_S, _LONGEST_S = 0.5, 15.0

#: Seconds that a change waits for cluster capacity, as nodes may be added meanwhile.
_CAPACITY_WAIT_S = 120

#: Receives why startup is blocked, and None once it is unblocked.
OnBlocked = Callable[[str | None], None]


async def open_models(models: Iterable[Model], on_blocked: OnBlocked | None) -> None:
    """Open models one after another; raise `CheckpointError`.

    With ``on_blocked``, unreachable servers and full clusters are awaited indefinitely, since
    machines start in any order. Otherwise they are an error, a full cluster after two minutes.
    """
    logged: set[str] = set()
    for model in models:
        if isinstance(model, HostModel):
            await _open(model, on_blocked, logged)


async def _open(model: HostModel, on_blocked: OnBlocked | None, logged: set[str]) -> None:
    began = time.monotonic()
    for attempt in count():
        try:
            await model.open()
        except UnreachableError as error:
            may_soon_fit = (
                isinstance(error, NoRoomError) and time.monotonic() - began < _CAPACITY_WAIT_S
            )
            if on_blocked is None and not may_soon_fit:
                raise
            if on_blocked is not None:
                on_blocked(str(error))
            if str(error) not in logged:  # only once, not at each attempt
                _log.warning("waiting for a model's server or cluster", error=str(error))
                logged.add(str(error))
            await asyncio.sleep(backoff_s(attempt, first_s=_FIRST_S, max_s=_LONGEST_S))
        else:
            if on_blocked is not None:
                on_blocked(None)
            return


#: Returns the models that reloading would not change; called in a thread.
FindUnchanged = Callable[[Sequence[LoadedModel], torch.device], Sequence[LoadedModel]]


class ModelSetBuilder:
    """Builds model sets, reusing models that did not change."""

    def __init__(
        self,
        devices: DevicePool,
        pipeline: ScoringPipeline,
        load: ModelLoader,
        unchanged: FindUnchanged,
        *,
        is_measured: bool,
    ) -> None:
        self._devices = devices
        self._pipeline = pipeline
        self._load = load
        self._unchanged = unchanged
        self._is_measured = is_measured
        self._endpoint_failures = EndpointFailureLog()

    @asynccontextmanager
    async def build(
        self,
        catalog: Catalog,
        before: ModelSet,
        read_again: Collection[str],
        on_blocked: OnBlocked | None = None,
    ) -> AsyncIterator[ModelSet]:
        """Build the model set of a catalog; the block checks it and swaps it in.

        Models of ``before`` are reused; those of the recipes in ``read_again`` only if their files
        did not change. With ``on_blocked``, unreachable servers are awaited. If anything fails,
        including the block, the new models are closed. Raises `AlarmModelsError` and
        `ServiceError`.
        """
        loaded_models: list[Model] = []
        try:
            kept = await self._kept(catalog, before, read_again)
            to_load = {key: one for key, one in catalog.models.items() if key not in kept}
            load = partial(
                self._devices.load_replicas,
                self._load,
                to_load,
                loaded_models,
                is_measured=self._is_measured,
            )
            models = kept | (await in_daemon_thread(load) if to_load else {})
            await open_models(loaded_models, on_blocked)
            model_set = ModelSet(catalog, {key: models[key] for key in catalog.models})
            self._observe_failures(model_set)
            await self._warm_up(model_set, before)
            _tell_prefix_costs(model_set, before)
            yield model_set
        except BaseException:
            await close_models(loaded_models)
            raise

    async def _kept(
        self, catalog: Catalog, before: ModelSet, read_again: Collection[str]
    ) -> dict[str, LoadedModel]:
        found = {key: _unchanged_model(served, before) for key, served in catalog.models.items()}
        kept = {key: loaded for key, loaded in found.items() if loaded is not None}
        reread = _keys_of(catalog, read_again) & kept.keys()
        if reread:
            candidates = [kept[key] for key in reread]
            device = self._devices.devices[0]
            same = await in_daemon_thread(partial(self._unchanged, candidates, device))
            same_ids = {id(one.model) for one in same}
            kept = {
                key: loaded
                for key, loaded in kept.items()
                if key not in reread or id(loaded.model) in same_ids
            }
        return kept

    def _observe_failures(self, model_set: ModelSet) -> None:
        for loaded in model_set.models.values():
            if isinstance(loaded.model, HostModel):
                loaded.model.observe_failures(self._endpoint_failures.observer(loaded.name))

    async def _warm_up(self, model_set: ModelSet, before: ModelSet) -> None:
        known = {id(model) for model in before.replicas}
        for key, loaded in model_set.models.items():
            named = model_set.catalog.outputs_of(loaded.served)
            if id(loaded.model) in known and not _has_more(named, before, key):
                continue
            await self._first_run(loaded, named)

    async def _first_run(self, loaded: LoadedModel, named: Mapping[str, str]) -> None:
        spec = loaded.served.spec
        if not spec.warms_up:
            _require_known_outputs(named, spec.output_names)
            return
        outcome = await self._outcome(loaded, warm_up_sample(loaded.served))
        if isinstance(outcome, SampleError) and outcome.code == "too_long":
            # The recipe's token limit is small, but real samples may fit.
            outcome = await self._outcome(loaded, shortest_warm_up_sample(loaded.served))
        if isinstance(outcome, SampleError):
            if not spec.must_score_warm_up:
                _log.warning(
                    "no score for the warm-up sample; the model is served anyway",
                    model=loaded.name,
                    error=str(outcome),
                )
                return
            if isinstance(loaded.model, HostModel) and loaded.model.is_elsewhere:
                # It was reachable when opened; a judge may have no score for this sample.
                _log.warning(
                    "no score for the warm-up sample", model=loaded.name, error=str(outcome)
                )
                return
            raise CheckpointError(f"model {loaded.name!r} cannot score: {outcome}")
        require_named_outputs(named, outcome)

    async def _outcome(self, loaded: LoadedModel, sample: Sample) -> Score | SampleError:
        outcome, *_ = await self._pipeline.score(loaded, warm_up_group(loaded.served, sample))
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome


def _require_known_outputs(named: Mapping[str, str], known: frozenset[str] | None) -> None:
    """Raise `RecipeError` if recipes use an output that is not among the known ones."""
    if known is not None:
        outputs = dict.fromkeys(sorted(known), 0.0)
        require_named_outputs(named, Score(None, None, 0, False, outputs=outputs))


def _tell_prefix_costs(model_set: ModelSet, before: ModelSet) -> None:
    """Log which new recipes score prefixes with a model that computes each of them in full."""
    for recipe in model_set.catalog.recipes.values():
        if before.models and before.catalog.recipes.get(recipe.name) == recipe:
            continue
        for name in recipe.prefix_segmenters:
            loaded = model_set.model_of(recipe, name)
            cost = getattr(loaded.model, "cost", None)  # a model elsewhere does not say
            if cost not in (None, BatchLayout.PREFIX_SHARED):
                _log.warning(
                    'dense = "prefix" computes every prefix of a completion in full with this '
                    "model, which shares no prefixes: it costs up to one more pass a segment",
                    recipe=recipe.name,
                    model=loaded.name,
                )


def _unchanged_model(served: ServedModel, before: ModelSet) -> LoadedModel | None:
    """Return the loaded model with the same spec, under its current name."""
    for loaded in before.models.values():
        if (loaded.served.spec, loaded.served.fields) == (served.spec, served.fields):
            if loaded.served == served:
                return loaded
            return LoadedModel(served, loaded.replicas, loaded.budget, loaded.since)
    return None


def _keys_of(catalog: Catalog, recipes: Collection[str]) -> set[str]:
    return {
        catalog.model_of(recipe, name).key
        for recipe in catalog.recipes.values()
        if recipe.name in recipes
        for name in recipe.models
    }


def _has_more(named: Mapping[str, str], before: ModelSet, key: str) -> bool:
    """Return whether recipes use further outputs of a model than before."""
    served = before.catalog.models.get(key)
    known = {} if served is None else before.catalog.outputs_of(served)
    return not named.items() <= known.items()
