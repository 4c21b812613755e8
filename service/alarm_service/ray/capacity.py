"""Cluster capacity: whether the requested replicas fit, and which options to set if not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alarm_service.ray.replica import ReplicaResources

__all__ = ["Demand", "max_replicas", "num_that_fit", "shortage", "used_by_others"]

#: Ray's names of a node's resources.
_CPU, _GPU = "CPU", "GPU"


@dataclass(frozen=True, slots=True)
class Demand:
    """The replicas of all models on the cluster, running or not."""

    num_models: int
    num_replicas: int


def shortage(
    wanted: Demand, share: ReplicaResources, nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """Return why the replicas do not all fit, and what to set, as a sentence; None if they do.

    ``nodes`` are the resources of each node of the cluster, used or not.
    """
    fitting = num_that_fit(share, nodes)
    if wanted.num_replicas <= fitting:
        return None
    return (
        f"{_replicas(wanted, share)}, and the cluster of {_describe_nodes(nodes)} has capacity for "
        f"{fitting}: {_remedy(wanted, share, nodes, fitting)}"
    )


def used_by_others(
    wanted: Demand, share: ReplicaResources, total: Mapping[str, float], free: Mapping[str, float]
) -> str | None:
    """Return a sentence if others use the resources that replicas need; None if not.

    ``total`` and ``free`` are the cluster's resources. Usage beyond the requirements of the
    replicas is attributed to others.
    """
    for name, part in ((_CPU, share.num_cpus), (_GPU, share.num_gpus)):
        used = total.get(name, 0) - free.get(name, 0)
        if (
            part > 0
            and free.get(name, 0) + 1e-4 < part
            and used > wanted.num_replicas * part + 1e-4
        ):
            return (
                f"{_replicas(wanted, share)}, and others use the cluster: of "
                f"{_counted(total.get(name, 0), name)} {free.get(name, 0):g} are free: free some, "
                "or add nodes"
            )
    return None


def max_replicas(config: Any) -> int:
    """Return how many replicas a deployment may have, by Serve's `DeploymentConfig`."""
    autoscaling = getattr(config, "autoscaling_config", None)
    if autoscaling is not None:
        return int(autoscaling.max_replicas)
    return int(getattr(config, "num_replicas", None) or 1)


def num_that_fit(share: ReplicaResources, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many replicas fit, each whole on one node."""
    return sum(_on_node(share.num_cpus, share.num_gpus, node) for node in nodes)


def _on_node(num_cpus: float, num_gpus: float, node: Mapping[str, float]) -> int:
    counts = [
        node.get(name, 0) / part for name, part in ((_CPU, num_cpus), (_GPU, num_gpus)) if part > 0
    ]
    # Ray counts resources in ten thousandths.
    return math.floor(min(counts) + 1e-4) if counts else 1 << 30


def _remedy(
    wanted: Demand, share: ReplicaResources, nodes: Sequence[Mapping[str, float]], fitting: int
) -> str:
    remedies = []
    per_model = fitting // max(1, wanted.num_models)
    if per_model:
        remedies.append(f"--replicas {per_model}")
    parts = (
        ("--cpus-per-replica", _CPU, share.num_cpus),
        ("--gpus-per-replica", _GPU, share.num_gpus),
    )
    # If one resource is short, lowering its option suffices; if two are, both.
    short = [
        (flag, part)
        for flag, name, given in parts
        if given > 0
        and num_that_fit(_only(share, name), nodes) < wanted.num_replicas
        and (part := _largest_part(name, wanted.num_replicas, nodes)) is not None
    ]
    if short:
        remedies.append(" ".join(f"{flag} {part:g}" for flag, part in short))
    return f"set {' or '.join(remedies)}, or add nodes" if remedies else "add nodes"


def _only(share: ReplicaResources, name: str) -> ReplicaResources:
    cpus, gpus = (share.num_cpus, 0.0) if name == _CPU else (0.0, share.num_gpus)
    return ReplicaResources(share.replicas, share.most, share.queued_tokens, cpus, gpus)


def _largest_part(
    name: str, num_replicas: int, nodes: Sequence[Mapping[str, float]]
) -> float | None:
    """Return the largest part of a resource that as many replicas may have, in hundredths."""
    totals = [node.get(name, 0) for node in nodes]
    candidates = {
        math.floor(100 * total / count + 1e-6) / 100
        for total in totals
        for count in range(1, num_replicas + 1)
    }
    for part in sorted(candidates, reverse=True):
        # Ray takes parts of a GPU, and beyond one only whole ones.
        if part <= 0 or (name == _GPU and part > 1 and part != int(part)):
            continue
        if sum(math.floor(total / part + 1e-4) for total in totals) >= num_replicas:
            return part
    return None


def _replicas(wanted: Demand, share: ReplicaResources) -> str:
    models = "1 model" if wanted.num_models == 1 else f"{wanted.num_models} models"
    if wanted.num_replicas == 1:
        return f"1 replica of {models} requires {_each(share)}"
    return f"{wanted.num_replicas} replicas of {models} require {_each(share)} each"


def _each(share: ReplicaResources) -> str:
    parts = [_counted(share.num_cpus, _CPU)] if share.num_cpus or not share.num_gpus else []
    return " and ".join([*parts, *([_counted(share.num_gpus, _GPU)] if share.num_gpus else [])])


def _describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    total = {name: sum(node.get(name, 0) for node in nodes) for name in (_CPU, _GPU)}
    resources = " and ".join(
        _counted(total[name], name) for name in (_CPU, _GPU) if total[name] or name == _CPU
    )
    return f"{resources} on {len(nodes)} node{'s' * (len(nodes) != 1)}"


def _counted(number: float, name: str) -> str:
    return f"{number:g} {name}{'s' * (number != 1)}"
