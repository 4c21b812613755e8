"""Fair queueing of callers and models by measured device time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

__all__ = ["INTERNAL", "Caller", "Turn", "TurnOrder", "Usage", "VirtualTimes", "predicted_s"]


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller of the server.

    ``key`` identifies its API key where the server has several, and is empty otherwise;
    ``connection`` is the address and port that it sends from. Connections with the same key share
    its part of the device time. Requests of a caller that ``waits`` wait while the queue is full,
    instead of being refused.
    """

    key: str = ""
    connection: str = ""
    waits: bool = field(default=False, compare=False)

    @property
    def flow(self) -> str:
        """The flow of a request in admission control: the key, else the connection."""
        return self.key or self.connection


#: The server itself, for warm-up, golden checks and offline scoring.
INTERNAL = Caller()


_Flow = TypeVar("_Flow")

#: Number of flows beyond which those that are not ahead are dropped.
_MAX_FLOWS = 1024


class VirtualTimes(Generic[_Flow]):
    """Start tags of flows, as in start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996).

    The flow with the smallest start tag is served next, and its tag advances by the cost of the
    service. A flow that was idle starts at the tag of the last one served: idle time is not
    credited, and service beyond its share still counts. The tags of two waiting flows thus never
    differ by more than the cost of one service of each. Costs may be charged after service, as for
    CPU time (Goyal, Guo, Vin: OSDI 1996); with tokens as costs these are the virtual token counters
    of Sheng et al. (OSDI 2024).

    ``even_share`` is the tag of a flow that has always waited. New flows start there: the tag of
    the last one served does not advance while new flows come, so that requests with a connection
    each would keep a flow that was served before waiting forever.
    """

    def __init__(self) -> None:
        self.even_share = 0.0
        self._tags: dict[_Flow, float] = {}
        self._now = 0.0
        self._most = _MAX_FLOWS

    def __len__(self) -> int:
        """Return the number of flows."""
        return len(self._tags)

    @property
    def now(self) -> float:
        """Virtual time: the start tag of the last flow served, at which an idle one starts."""
        return self._now

    def start(self, flow: _Flow) -> float:
        """Return a flow's start tag."""
        return max(self._tags.get(flow, 0.0), self._now)

    def begin_to_wait(self, flow: _Flow, ahead: float = 0.0) -> None:
        """Start a new flow so much ahead of the even share; one that is known keeps its tag."""
        self._tags.setdefault(flow, max(self.even_share - ahead, self._now))

    def divide(self, cost: float, num_flows: int) -> None:
        """Divide the cost of a service among as many flows as waited for it or got it."""
        self.even_share = max(self.even_share, self._now) + cost / num_flows

    def is_ahead(self, flow: _Flow) -> bool:
        """Whether a flow has been served more than its share."""
        return self.start(flow) > self._now

    def serve(self, flow: _Flow) -> None:
        """Advance virtual time to this flow's start tag, as it is being served."""
        self.reach(self.start(flow))

    def reach(self, tag: float) -> None:
        """Advance virtual time to this tag: new flows start no earlier."""
        self._now = max(self._now, tag)

    def charge(self, flow: _Flow, cost: float) -> None:
        """Advance a flow's tag by a cost; a negative cost corrects an overcharge."""
        self._tags[flow] = self.start(flow) + cost

    def evict_idle(self, waiting: Container[_Flow]) -> None:
        """If there are too many flows, drop those that are neither waiting nor ahead.

        This is done again once there are twice as many, so that it costs little per service.
        """
        if len(self._tags) <= self._most:
            return
        self._tags = {
            flow: tag for flow, tag in self._tags.items() if tag > self._now or flow in waiting
        }
        idle = sorted(
            (flow for flow in self._tags if flow not in waiting), key=self._tags.__getitem__
        )
        for flow in idle[: max(0, len(self._tags) - _MAX_FLOWS)]:
            del self._tags[flow]
        self._most = max(_MAX_FLOWS, 2 * len(self._tags))


_Waiting = TypeVar("_Waiting")


class Turn(NamedTuple, Generic[_Waiting]):
    """The place of something that waits: the smallest one has the next turn.

    ``tag`` is its flow's start tag, ``since`` the time since when it has been waiting, ``number``
    the order of arrival.
    """

    tag: float
    since: float
    number: int
    waiting: _Waiting


class TurnOrder(Generic[_Waiting, _Flow]):
    """What waits, in the order of turns; ``times`` has the start tags of flows.

    Whenever a flow's tag changes, `place` must be called for what waits of it. Placing and removing
    take a search in a sorted list.
    """

    def __init__(self, times: VirtualTimes[_Flow], flow_of: Callable[[_Waiting], _Flow]) -> None:
        self._times = times
        self._flow_of = flow_of
        self._turns: dict[_Waiting, Turn[_Waiting]] = {}
        #: Sorted: the turns that are ahead by their tags, and the others, whose tags are all 0, by
        #: what decides among equal tags.
        self._ahead: list[Turn[_Waiting]] = []
        self._due: list[Turn[_Waiting]] = []
        self._num_came = 0

    def get(self, waiting: _Waiting) -> Turn[_Waiting] | None:
        """Return the turn of something; None if it does not wait."""
        return self._turns.get(waiting)

    def place(self, waiting: _Waiting, since: float) -> Turn[_Waiting]:
        """Put something into its place, or into a new one, and return the turn."""
        before = self.remove(waiting)
        if before is None:
            self._num_came += 1
        number = self._num_came if before is None else before.number
        flow = self._flow_of(waiting)
        is_ahead = self._times.is_ahead(flow)
        turn = Turn(self._times.start(flow) if is_ahead else 0.0, since, number, waiting)
        self._turns[waiting] = turn
        insort(self._ahead if is_ahead else self._due, turn)
        return turn

    def remove(self, waiting: _Waiting) -> Turn[_Waiting] | None:
        """Remove something and return its turn; None if it does not wait."""
        turn = self._turns.pop(waiting, None)
        if turn is not None:
            turns = self._ahead if turn.tag else self._due
            del turns[bisect_left(turns, turn)]
        return turn

    def __iter__(self) -> Iterator[Turn[_Waiting]]:
        """Yield the turns in order, with their tags of now."""
        now = self._times.now
        num_due = bisect_right(self._ahead, now, key=_tag)
        for turn in self._ahead[:num_due]:
            due = self._turns[turn.waiting] = turn._replace(tag=0.0)
            insort(self._due, due)
        del self._ahead[:num_due]
        for turn in self._due:
            yield turn._replace(tag=now)
        yield from self._ahead


def _tag(turn: Turn[_Waiting]) -> float:
    return turn.tag


#: Assumed before a model was measured.
_ASSUMED_SECONDS_PER_TOKEN = 1e-4

#: Exponential decay of earlier batches per measured batch.
_DECAY = 0.9

#: Target duration of a batch while there are several callers, since the next one waits.
_MAX_BATCH_S = 0.5

#: The largest share of a batch's time that may be fixed overhead: where overhead is high, as on a
#: shared machine, short batches would cost all callers throughput.
_MAX_FIXED = 0.2

#: The tokens of a short batch: the minimum, and the size before batches were measured.
_FEWEST_TOKENS, _UNKNOWN_TOKENS = 256, 1024

#: One in this many batches is half as large, to measure the effect of size.
_TRY_SMALLER = 4

#: Smaller batches are not used to determine a model's highest throughput.
_LEAST_TOKENS = 1024


@dataclass(slots=True)
class Usage:
    """One model's use of the devices.

    ``callers`` has each caller's virtual time in seconds of the device; ``best_tokens_per_s`` is
    the highest throughput of a batch so far, 0 before the first.
    """

    callers: VirtualTimes[Caller] = field(default_factory=VirtualTimes)
    best_tokens_per_s: float = 0.0
    _num_batches: int = 0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _weight: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def begin_to_wait(self, caller: Caller) -> None:
        """Give a new caller its start tag, a batch ahead, before its first sample is queued."""
        self.callers.begin_to_wait(caller, _MAX_BATCH_S)

    @property
    def tokens_per_s(self) -> float:
        """Recent throughput in tokens per second; 0 before the second batch."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def seconds_per_token(self) -> float:
        """The expected device time of a token, in seconds."""
        return 1 / self.tokens_per_s if self._tokens else _ASSUMED_SECONDS_PER_TOKEN

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of a batch; the first one, with one-time costs, is ignored."""
        self._num_batches += 1
        if self._num_batches == 1 or num_tokens == 0:
            return
        seconds = max(seconds, 1e-6)
        self._tokens = _DECAY * self._tokens + num_tokens
        self._seconds = _DECAY * self._seconds + seconds
        self._weight = _DECAY * self._weight + 1
        self._squares = _DECAY * self._squares + num_tokens**2
        self._products = _DECAY * self._products + num_tokens * seconds
        if num_tokens >= _LEAST_TOKENS:
            self.best_tokens_per_s = max(self.best_tokens_per_s, num_tokens / seconds)

    def enough_tokens(self) -> int | None:
        """Return the tokens of a batch that takes half a second, from measurements.

        More if fixed overhead would exceed a fifth of such a batch; None if size has no effect.
        """
        part = 1 if self._num_batches % _TRY_SMALLER else 2
        line = self._line()
        if line is None:
            return _UNKNOWN_TOKENS // part
        fixed_s, seconds_per_token = line
        if seconds_per_token <= 0:
            return None
        spent_s = max(_MAX_BATCH_S - fixed_s, fixed_s * (1 / _MAX_FIXED - 1))
        return max(_FEWEST_TOKENS, int(spent_s / seconds_per_token)) // part

    def _line(self) -> tuple[float, float] | None:
        """Fit the duration of a batch: the fixed seconds, and the seconds per token.

        None before batches of different sizes have run.
        """
        if not self._weight:
            return None
        mean, mean_s = self._tokens / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean**2
        if variance < (0.1 * mean) ** 2:
            return None
        slope = (self._products / self._weight - mean * mean_s) / variance
        fixed_s = mean_s - slope * mean
        return (fixed_s, slope) if fixed_s > 0 else (0.0, mean_s / mean)


def predicted_s(num_tokens: int, tokens_per_s: float, hidden_size: int | None) -> float:
    """Predict the seconds of one sample's forward pass from those of short samples.

    Attention grows with the square of the length: in a transformer of the usual proportions (12
    hidden^2 weights a layer, 4 hidden operations a pair of tokens) it takes as long as everything
    else at a length of 6 times the hidden size.
    """
    attention = num_tokens / (6 * hidden_size) if hidden_size else 0.0
    return num_tokens * (1 + attention) / tokens_per_s
