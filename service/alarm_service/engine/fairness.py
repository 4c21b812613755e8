"""Start-time fair queueing: who is served next, by what each was served before."""

from __future__ import annotations

from collections.abc import Container
from typing import Generic, TypeVar

__all__ = ["VirtualTimes"]

_Flow = TypeVar("_Flow")

#: Flows that are remembered, beyond which those that have nothing to make up for are forgotten.
_MAX_FLOWS = 1024


class VirtualTimes(Generic[_Flow]):
    """Start tags of flows, as in start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996).

    The flow with the smallest start tag is served next; service moves its tag on by what that cost.
    A flow that comes back starts at the tag of the one that was served last: it has saved nothing
    up, and owes what it was served beyond its share. So two flows that both wait are never further
    apart than what one service of each costs. Costs may be told after the service, as for CPU time
    (Goyal, Guo, Vin: OSDI 1996); with tokens as costs these are the virtual token counters of Sheng
    et al. (OSDI 2024).
    """

    def __init__(self) -> None:
        self._tags: dict[_Flow, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        """Count the flows that are remembered."""
        return len(self._tags)

    def start(self, flow: _Flow) -> float:
        """Return a flow's start tag."""
        return max(self._tags.get(flow, 0.0), self._now)

    def is_ahead(self, flow: _Flow) -> bool:
        """Say whether a flow was served more than its share so far."""
        return self.start(flow) > self._now

    def serve(self, flow: _Flow) -> None:
        """Let flows that come from now on start no earlier than this one, whose turn it is."""
        self.reach(self.start(flow))

    def reach(self, tag: float) -> None:
        """Let flows that come from now on start no earlier than at this tag."""
        self._now = max(self._now, tag)

    def charge(self, flow: _Flow, cost: float) -> None:
        """Move a flow's tag on; a negative cost gives back what was charged too much."""
        self._tags[flow] = self.start(flow) + cost

    def forget(self, waiting: Container[_Flow]) -> None:
        """Forget flows that wait for nothing and would start now, where there are many flows."""
        if len(self._tags) <= _MAX_FLOWS:
            return
        self._tags = {
            flow: tag for flow, tag in self._tags.items() if tag > self._now or flow in waiting
        }
        idle = sorted(
            (flow for flow in self._tags if flow not in waiting), key=self._tags.__getitem__
        )
        for flow in idle[: max(0, len(self._tags) - _MAX_FLOWS)]:
            del self._tags[flow]
