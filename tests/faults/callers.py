"""Callers that request rewards of their own texts and check the responses."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from alarm_client.client import AlarmClient
from alarm_client.errors import AlarmError
from alarm_client.types import RewardResult, Sample

PROMPT = "question: Who wrote Emma? context: Emma is a novel by the English author Jane Austen."
NAMES = ("Emma", "Jane Austen", "Charles Dickens", "London", "a novel", "Persuasion", "nobody")
TOLERANCE = 1e-4


def sample(index: int) -> Sample:
    """Return the sample of an index; each has different words and so a different reward."""
    words = " ".join(NAMES[(index // 7**place) % 7] for place in range(2 + index % 3))
    text = f"It was {words}, by the look of it. So say {index} of us."
    return Sample(prompt=PROMPT, completion=text, id=index, token_offsets=[(0, 2), (3, len(text))])


@dataclass
class Tally:
    """The results of calls: `right` and `wrong` count samples, `errors` counts calls by kind."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, asked: Sequence[int], result: RewardResult, truth: Mapping[int, float]) -> None:
        """Compare a response with the truth, sample by sample."""
        got = [(reward.id, reward.reward) for reward in result.rewards]
        faults = [] if len(got) == len(asked) else [f"{len(got)} rewards for {len(asked)} samples"]
        for index, (own, value) in zip(asked, got, strict=False):
            if own != index or value is None or abs(value - truth[index]) > TOLERANCE:
                faults.append(f"{index} is {truth[index]:.4f}, but {own} came with {value}")
        with self._lock:
            self.right += len(asked) - len(faults)
            self.wrong += faults

    def failed(self, error: AlarmError) -> None:
        with self._lock:
            self.errors[type(error).__name__] += 1


def truth_of(url: str, num_samples: int) -> dict[int, float]:
    """Return the rewards of the first indexes from an undisturbed server."""
    with AlarmClient(url) as client:
        result = client.hierarchical_reward([sample(index) for index in range(num_samples)])
    return dict(enumerate(result.scalars(on_error="raise")))


def ask(
    client: AlarmClient, truth: Mapping[int, float], tally: Tally, start: int, size: int
) -> None:
    """Request `size` samples from `start` on in a loop, and count the results."""
    asked = [(start + step) % len(truth) for step in range(size)]
    try:
        result = client.hierarchical_reward([sample(index) for index in asked])
    except AlarmError as error:
        tally.failed(error)
    else:
        tally.judge(asked, result, truth)


def load(
    client: AlarmClient,
    truth: Mapping[int, float],
    *,
    num_callers: int,
    num_calls: int,
    size: int = 4,
    after_call: Callable[[int], object] = lambda number: None,
) -> Tally:
    """Send calls from several threads; `after_call` gets the number of each that ended."""
    tally = Tally()

    def call(number: int) -> None:
        ask(client, truth, tally, number * size, size)
        after_call(number)

    with ThreadPoolExecutor(num_callers) as callers:
        for done in [callers.submit(partial(call, number)) for number in range(num_calls)]:
            done.result()
    return tally
