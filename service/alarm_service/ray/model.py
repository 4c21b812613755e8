"""RayModel: a model on a Ray cluster; loading, calls with retries, and routing."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any
from uuid import uuid4

import ray
import structlog
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from alarm_models.backoff import backoff_s
from alarm_models.cancellation import gather_or_cancel
from alarm_models.errors import CheckpointError, NoRoomError, SampleError
from alarm_models.reward_models.base import HostModel, Model
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample, Score
from alarm_service.engine.devices import ModelLoader
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.model_set import ServedModel, compares_samples
from alarm_service.errors import Broken
from alarm_service.ray.capacity import Demand, shortage, used_by_others
from alarm_service.ray.leases import DeploymentLease
from alarm_service.ray.replica import (
    PREFIX,
    DeploymentConfig,
    ModelInfo,
    ReplicaResources,
    ReplicaScores,
    deployment_configs,
)
from alarm_service.ray.routing import Chunk, choose_replica, chunks, rendezvous_order
from alarm_service.settings import Settings

__all__ = [
    "RayModel",
    "RayModelLoader",
    "SlotRouter",
    "call_cancellable",
    "call_with_retries",
    "connect",
]

_log = structlog.get_logger()

#: The number of attempts, and the first backoff in seconds.
_MAX_CALLS = 6
_PAUSE_S = 0.1


async def call_cancellable(method: Any, *arguments: Any, **fields: Any) -> Any:
    """Await a handle's method; cancellation is propagated to the replica."""
    # In a separate context, since inside a Serve ingress all calls of a request share an id.
    response = Context().run(method.remote, *arguments, **fields)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


async def call_with_retries(
    method: Any,
    samples: Any,
    *,
    fingerprint: str,
    slot: int,
    num_tokens: int,
    caller: Caller = INTERNAL,
) -> ReplicaScores:
    """Score a chunk; retry on another replica if one fails.

    A score depends on its sample only, so retries are safe. Raises `Broken` after several failed
    calls.
    """
    reason = ""
    for number in range(_MAX_CALLS):
        if number:
            await asyncio.sleep(backoff_s(number - 1, first_s=_PAUSE_S))
        fields = {"slot": slot, "num_tokens": num_tokens, "num_passed": number, "caller": caller}
        try:
            answer: ReplicaScores = await call_cancellable(method, samples, **fields)
        except (RayError, RayServeException) as error:
            reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
        else:
            if answer.fingerprint == fingerprint and len(answer.outcomes) == len(samples):
                return answer
            reason = f"a replica has loaded {answer.fingerprint}, the others {fingerprint}"
        _log.warning("replica failed", reason=reason[:500], calls=number + 1)
    raise Broken(f"no replica answered: {reason}"[:500], retry_after_s=5)


class SlotRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types that we could check
    """Routes a slot's calls to the replica that `choose_replica` selects by tokens in flight.

    A selection immediately counts as load, so that the calls of one request are spread out. If the
    selected replica cannot take a call, the others are tried in the slot's order.
    """

    def initialize_state(self, **_: Any) -> None:
        """Start with no calls in flight."""
        #: The replica and the tokens of each call, by Serve's call id.
        self._under_way: dict[str, tuple[ReplicaID, int]] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank the replicas for a call; without a slot all are equal."""
        if pending_request is None or "slot" not in pending_request.kwargs:
            return [candidate_replicas]  # a call about the model, which any replica can answer
        fields = pending_request.kwargs
        call_id = pending_request.metadata.internal_request_id
        self._under_way.pop(call_id, None)  # routed again, since no replica could take it
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = dict.fromkeys(replicas, 0)
        for replica_id, num_tokens in self._under_way.values():
            if replica_id.unique_id in loads:
                loads[replica_id.unique_id] += num_tokens
        slot, num_tokens = fields["slot"], fields["num_tokens"]
        chosen = choose_replica(slot, num_tokens, loads, fields["num_passed"])
        self._under_way[call_id] = (replicas[chosen].replica_id, num_tokens)
        pending_request.future.add_done_callback(partial(self._forget_cancelled, call_id))
        order = dict.fromkeys([chosen, *rendezvous_order(slot, frozenset(replicas))])
        return [[replicas[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Record the replica that took a call, which may differ from the selected one."""
        call_id = pending_request.metadata.internal_request_id
        if call_id in self._under_way:
            self._under_way[call_id] = (replica_id, self._under_way[call_id][1])

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Remove a call that has ended or was rejected by its replica."""
        if self._under_way.get(internal_request_id, (None, 0))[0] == replica_id:
            del self._under_way[internal_request_id]

    def _forget_cancelled(self, call_id: str, routed: asyncio.Future[Any]) -> None:
        if routed.cancelled():
            self._under_way.pop(call_id, None)


#: Maximum tokens sent to a replica in one call: a few batches of work. A model that compares the
#: samples of a prompt gets all of them in one call.
_CHUNK_TOKENS = 16384

#: Seconds between status queries, which take Serve much of a second on a busy machine.
_POLL_S = 1.0

#: How long Serve may take to start the requested replicas before capacity is checked.
_SETTLED_S = 3

#: Seconds between logs of what a pending deployment is waiting for.
_LOG_INTERVAL_S = 30


class RayModel(HostModel):
    """Scores on replicas, whose properties are known once `open` has returned."""

    def __init__(self, plan: DeploymentConfig, lease: DeploymentLease) -> None:
        super().__init__(fingerprint="")
        self.read_token: str | None = None
        self.execution: str | None = None
        self.notes: tuple[str, ...] = ()
        self._plan = plan
        self._lease = lease
        (spec,) = plan.recipe.models.values()
        self._chunk_tokens = sys.maxsize if compares_samples(spec) else _CHUNK_TOKENS
        self._method: Any = None

    async def open(self) -> None:
        """Wait until the deployment has all its replicas; raise `CheckpointError`.

        Raises `NoRoomError` if the cluster has no capacity for them; opening is then retried.
        """
        await self._until_running()
        handle = await asyncio.to_thread(serve.get_app_handle, self._plan.name)
        about: ModelInfo = await call_cancellable(handle.about)
        self._fingerprint, self.limit = about.fingerprint, about.limit
        self.dtype, self.device = about.dtype, about.device
        self.read_token, self.notes = about.read_token, about.notes
        self.execution = about.execution
        self._method = handle.score

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Score samples on behalf of this process."""
        return await self.score_for(INTERNAL, samples)

    async def score_for(
        self, caller: Caller, samples: Sequence[Sample]
    ) -> list[Score | SampleError]:
        """Score samples, each prompt on one replica; raise `Broken` if no replica answers."""
        cut = chunks(samples, self._chunk_tokens)
        outcomes: list[Score | SampleError | None] = [None] * len(samples)

        async def score(chunk: Chunk) -> None:
            answer = await call_with_retries(
                self._method,
                [samples[index] for index in chunk.indices],
                fingerprint=self._fingerprint,
                slot=chunk.slot,
                num_tokens=chunk.num_tokens,
                caller=caller,
            )
            for index, outcome in zip(chunk.indices, answer.outcomes, strict=True):
                outcomes[index] = outcome

        await gather_or_cancel(*map(score, cut))
        return [outcome for outcome in outcomes if outcome is not None]

    async def close(self) -> None:
        """Release the lease; return once the deployment is deleted, if no other ingress leases it.

        Its replicas' memory is free then. The wait is limited by the time that replicas may drain.
        """
        if not await asyncio.to_thread(self._lease.release, self._plan.name):
            return
        async with asyncio.timeout(self._plan.settings.drain_s + _SETTLED_S):
            # Serve tells nobody.
            while self._plan.name in (await asyncio.to_thread(serve.status)).applications:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    async def _until_running(self) -> None:
        began = logged = time.monotonic()
        while True:
            status = await asyncio.to_thread(serve.status)
            application = status.applications.get(self._plan.name)
            state = application.status if application else None
            if state == "RUNNING":
                return
            deployments = application.deployments.values() if application else ()
            messages = [one.message for one in deployments]
            if state in ("DEPLOY_FAILED", "UNHEALTHY"):
                reason = (messages or [""])[0].strip().rpartition("\n")[2]
                raise CheckpointError(f"deployment {self._plan.name} failed: {reason}")
            now = time.monotonic()
            if now - began > _SETTLED_S:
                await self._require_room(status)
            if now - logged > _LOG_INTERVAL_S:
                if state is None:  # the process that was to create it has ended
                    raise CheckpointError(
                        f"deployment {self._plan.name} was not created: restart this server"
                    )
                _log.warning("waiting for a deployment", name=self._plan.name, messages=messages)
                logged = now
            await asyncio.sleep(_POLL_S)

    async def _require_room(self, status: Any) -> None:
        """Raise `NoRoomError` if replicas wait for resources that will not be released."""
        wanted, share = _demand(status), self._plan.share
        nodes, free = await asyncio.to_thread(_resources)
        problem = shortage(wanted, share, nodes)
        if problem is None:
            total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
            problem = used_by_others(wanted, share, total, free)
        if problem is not None:
            raise NoRoomError(problem)


def _resources() -> tuple[list[Mapping[str, float]], Mapping[str, float]]:
    """Return each node's resources, and the cluster's free resources."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return nodes, ray.available_resources()


def _demand(status: Any) -> Demand:
    """Count the running and requested replicas of models of all revisions."""
    deployments = [
        deployment
        for name, application in status.applications.items()
        if name.startswith(PREFIX)
        for deployment in application.deployments.values()
    ]
    states = [deployment.replica_states for deployment in deployments]
    return Demand(
        num_models=len(deployments),
        num_replicas=sum(
            count for one in states for state, count in one.items() if state != "STOPPING"
        ),
    )


class RayModelLoader:
    """Deploys each model that needs a device; checks and remote models stay in this process.

    Requires `connect`. Each load creates new deployments: models are changed by loading and
    swapping in new ones, then closing the old ones. ``revision`` names the first load's
    deployments, which ingresses of one revision share.
    """

    def __init__(
        self, settings: Settings, *, revision: str | None = None, load: ModelLoader | None = None
    ) -> None:
        self._settings = settings
        self._revision = revision
        self._load = load
        #: All leases of this process; None until there is a deployment.
        self._lease: DeploymentLease | None = None

    def __call__(
        self, wanted: Mapping[str, ServedModel], device: torch.device
    ) -> Mapping[str, Model]:
        """Load host models, then start deployments; return before these have replicas."""
        revision, self._revision = self._revision or uuid4().hex[:12], None
        planned = deployment_configs(
            wanted, self._settings, _replica_resources(self._settings), revision, self._load
        )
        loader = Loader(device)
        models: dict[str, Model] = {
            key: loader.load(served.spec, served.fields)
            for key, served in wanted.items()
            if key not in planned
        }
        for key, plan in planned.items():
            self._lease = self._lease or DeploymentLease()
            self._lease.take(plan)
            models[key] = RayModel(plan, self._lease)
        return {key: models[key] for key in wanted}


def connect(settings: Settings, http_options: Mapping[str, Any] | None = None) -> None:
    """Join the cluster at ``ray_address``, or start a local one.

    Without ``http_options`` no proxy is started: requests come through this process. If Serve is
    already running on the cluster, its proxies are not changed.
    """
    for name in ("ray", "ray.serve"):  # they write their own lines
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        ray.init(
            address=settings.ray_address,
            log_to_driver=settings.log_level == "debug",
            configure_logging=False,  # it would write its own lines
            **({} if settings.ray_address else own),
        )
    if http_options is None:
        serve.start(proxy_location="Disabled")
    else:
        serve.start(proxy_location="HeadOnly", http_options=dict(http_options))


def _replica_resources(settings: Settings) -> ReplicaResources:
    gpus = settings.gpus_per_replica
    if gpus is None:
        wants_gpu = settings.device.startswith("cuda") or (
            settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        )
        gpus = float(wants_gpu)
    return ReplicaResources(
        replicas=settings.replicas,
        most=settings.max_replicas or settings.replicas,
        queued_tokens=settings.queued_tokens_per_replica,
        num_cpus=settings.cpus_per_replica,
        num_gpus=gpus,
    )
