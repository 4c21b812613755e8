"""Replicas counted against the nodes of a cluster; needs no Ray."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from alarm_service.ray.capacity import Demand, max_replicas, num_that_fit, shortage, used_by_others
from alarm_service.ray.replica import ReplicaResources

Nodes = list[Mapping[str, float]]


def share(cpus: float, gpus: float = 0) -> ReplicaResources:
    return ReplicaResources(replicas=2, most=2, queued_tokens=1, num_cpus=cpus, num_gpus=gpus)


@pytest.mark.parametrize(
    ("one", "nodes", "fitting"),
    [
        (share(1), [{"CPU": 2.0}], 2),
        (share(0.33), [{"CPU": 2.0}], 6),
        (share(0.1), [{"CPU": 1.0}], 10),
        (share(4), [{"CPU": 3.0}, {"CPU": 3.0}], 0),
        (share(2), [{"CPU": 3.0}, {"CPU": 5.0}], 3),
        (share(1, 1), [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], 2),
        (share(1, 0.5), [{"CPU": 3.0, "GPU": 2.0}], 3),
        (share(1), [], 0),
    ],
)
def test_num_that_fit_places_a_replica_on_one_node(
    one: ReplicaResources, nodes: Nodes, fitting: int
) -> None:
    assert num_that_fit(one, nodes) == fitting


@pytest.mark.parametrize(
    ("wanted", "one", "nodes", "told"),
    [
        (
            Demand(3, 6),
            share(1),
            [{"CPU": 2.0}],
            "6 replicas of 3 models require 1 CPU each, and the cluster of 2 CPUs on 1 node has "
            "capacity for 2: set --cpus-per-replica 0.33, or add nodes",
        ),
        (
            Demand(3, 6),
            share(1),
            [{"CPU": 2.0}, {"CPU": 2.0}],
            "6 replicas of 3 models require 1 CPU each, and the cluster of 4 CPUs on 2 nodes has "
            "capacity for 4: set --replicas 1 or --cpus-per-replica 0.66, or add nodes",
        ),
        (
            Demand(1, 4),
            share(1, 1),
            [{"CPU": 16.0, "GPU": 2.0}],
            "4 replicas of 1 model require 1 CPU and 1 GPU each, and the cluster of 16 CPUs and 2 "
            "GPUs on 1 node has capacity for 2: set --replicas 2 or --gpus-per-replica 0.5, or add "
            "nodes",
        ),
        (
            Demand(2, 2),
            share(1, 2),
            [{"CPU": 1.0, "GPU": 1.0}],
            "2 replicas of 2 models require 1 CPU and 2 GPUs each, and the cluster of 1 CPU and 1 "
            "GPU on 1 node has capacity for 0: set --cpus-per-replica 0.5 --gpus-per-replica "
            "0.5, or add nodes",
        ),
        (
            Demand(1, 1),
            share(0, 1),
            [{"CPU": 4.0}],
            "1 replica of 1 model requires 1 GPU, and the cluster of 4 CPUs on 1 node has capacity "
            "for 0: add nodes",
        ),
        (
            Demand(1, 1),
            share(8),
            [],
            "1 replica of 1 model requires 8 CPUs, and the cluster of 0 CPUs on 0 nodes has "
            "capacity for 0: add nodes",
        ),
    ],
)
def test_shortage_is_reported_with_numbers_and_what_to_set(
    wanted: Demand, one: ReplicaResources, nodes: Nodes, told: str
) -> None:
    assert shortage(wanted, one, nodes) == told


@pytest.mark.parametrize("num_replicas", [0, 1, 2])
def test_shortage_is_none_if_replicas_fit(num_replicas: int) -> None:
    assert shortage(Demand(1, num_replicas), share(1), [{"CPU": 2.0}]) is None


@pytest.mark.parametrize("num_replicas", range(1, 30))
@pytest.mark.parametrize("nodes", [[{"CPU": 2.0}], [{"CPU": 3.0}, {"CPU": 5.0}, {"CPU": 0.5}]])
def test_shortage_proposed_part_fits_all_replicas(num_replicas: int, nodes: Nodes) -> None:
    told = shortage(Demand(1, num_replicas), share(2), nodes)
    if told is not None:
        (part,) = (word for word, before in pairs(told) if before == "--cpus-per-replica")
        assert num_that_fit(share(float(part.strip(","))), nodes) >= num_replicas


def pairs(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(zip(words[1:], words, strict=False))


@pytest.mark.parametrize(
    ("one", "total", "free", "is_others"),
    [
        (share(0.33), {"CPU": 2.0}, {"CPU": 0.02}, False),  # all that is used is ours, and starts
        (share(1), {"CPU": 8.0}, {"CPU": 0.0}, True),
        (share(1), {"CPU": 8.0}, {}, True),  # Ray leaves out what there is none of
        (share(1), {"CPU": 8.0}, {"CPU": 1.0}, False),
        (share(1), {"CPU": 6.0}, {}, False),
        (share(0.1, 1), {"CPU": 64.0, "GPU": 8.0}, {"CPU": 60.0}, True),
        (share(0.1, 1), {"CPU": 64.0, "GPU": 6.0}, {"CPU": 60.0}, False),
    ],
)
def test_used_by_others_is_usage_beyond_all_replicas(
    one: ReplicaResources, total: Mapping[str, float], free: Mapping[str, float], is_others: bool
) -> None:
    told = used_by_others(Demand(3, 6), one, total, free)
    assert (told is not None) == is_others


def test_used_by_others_is_reported_with_numbers() -> None:
    assert used_by_others(Demand(1, 2), share(1), {"CPU": 8.0}, {"CPU": 0.5}) == (
        "2 replicas of 1 model require 1 CPU each, and others use the cluster: of 8 CPUs 0.5 are "
        "free: free some, or add nodes"
    )


@pytest.mark.parametrize(
    ("config", "num"),
    [
        (None, 1),
        (SimpleNamespace(num_replicas=None, autoscaling_config=None), 1),
        (SimpleNamespace(num_replicas=2, autoscaling_config=None), 2),
        (SimpleNamespace(num_replicas=1, autoscaling_config=SimpleNamespace(max_replicas=4)), 4),
    ],
)
def test_max_replicas_is_the_most_that_a_deployment_may_have(config: Any, num: int) -> None:
    assert max_replicas(config) == num
