from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_models.modeling.inputs import BatchLayout, ModelInput, TokenSequence
from alarm_models.recipe.specs import SequenceSpec
from alarm_service.engine.model_set import LoadedModel, ServedModel
from alarm_service.engine.scheduler import Outcome, QueuedSample, RequestQueue, next_batch
from alarm_service.errors import Draining

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)
BUDGETS = st.integers(1, 1000)


@cache
def model(name: str, budget: int | None = None) -> LoadedModel:
    """Return the model of a name; nothing here asks what it is made of."""
    spec = SequenceSpec(checkpoint="a/b")
    return LoadedModel(ServedModel(name, name, "recipe", spec, {}), (), budget)


M = model("m")


def work(
    num_tokens: int, *, model: LoadedModel = M, since: float = 0, wanted: bool = True
) -> QueuedSample:
    features = ModelInput((1,) * num_tokens, (), False)
    return QueuedSample(model, features, lambda outcome: None, lambda: wanted, since)


def lengths(works: Sequence[QueuedSample] | None) -> list[int]:
    assert works is not None
    return [one.features.num_tokens for one in works]


@pytest.mark.parametrize(
    ("waiting", "budget", "taken"),
    [
        ([5], 10, [5]),
        ([50], 10, [50]),  # alone it may be more
        ([5, 5, 5], 10, [5, 5]),
        ([5, 1, 1], 15, [1, 1, 5]),  # 3 samples, 5 wide
        ([5, 6, 1], 11, [1, 5]),  # shorter neighbors first: they make nothing wider
        ([1, 9, 2], 4, [1, 2]),  # the nearest in length, whatever came first
        ([3, 3, 9], 18, [3, 3]),  # the third would make it 27
        ([9, 3, 3], 27, [3, 3, 9]),
    ],
)
def test_next_batch_padded_is_the_oldest_and_its_neighbours_in_length(
    waiting: list[int], budget: int, taken: list[int]
) -> None:
    assert lengths(next_batch([work(one) for one in waiting], budget)) == taken


def test_next_batch_padded_counts_tokens_that_may_be_generated() -> None:
    waiting = [work(5) for _ in range(3)]
    for one in waiting:
        one.features = replace(one.features, max_generated=10)
    assert lengths(next_batch(waiting, 30)) == [5, 5]


@given(LENGTHS, BUDGETS)
def test_next_batch_always_has_the_oldest_sample(waiting: list[int], budget: int) -> None:
    works = [work(one) for one in waiting]
    assert works[0] in next_batch(works, budget)


@given(LENGTHS, BUDGETS)
def test_next_batch_is_within_the_budget(waiting: list[int], budget: int) -> None:
    batch = next_batch([work(one) for one in waiting], budget)
    assert len(batch) == 1 or len(batch) * max(lengths(batch)) <= budget


@given(LENGTHS, BUDGETS)
def test_next_batch_leaves_no_shorter_sample_that_fits(waiting: list[int], budget: int) -> None:
    works = [work(one) for one in waiting]
    batch = next_batch(works, budget)
    wider = (len(batch) + 1) * max(lengths(batch))
    left = [one for one in works if one not in batch]
    between = [one for one in left if min(lengths(batch)) < lengths([one])[0] < max(lengths(batch))]
    assert not between
    assert wider > budget or all(lengths([one])[0] > max(lengths(batch)) for one in left)


@given(st.lists(st.tuples(st.integers(1, 100), st.sampled_from("ab")), max_size=60), BUDGETS)
def test_next_batch_repeated_loses_and_duplicates_nothing(
    arrivals: list[tuple[int, str]], budget: int
) -> None:
    works = [work(one, model=model(name), since=at) for at, (one, name) in enumerate(arrivals)]
    waiting = RequestQueue(budget)
    waiting.put(works)
    taken: list[QueuedSample] = []
    while waiting.num_waiting():
        batch = waiting.take()
        assert batch is not None
        assert len({one.model for one in batch}) == 1
        taken += batch
    assert sorted(map(id, taken)) == sorted(map(id, works))


@given(LENGTHS, BUDGETS)
def test_next_batch_starves_no_sample(waiting: list[int], budget: int) -> None:
    queue = RequestQueue(budget)
    works = [work(one, since=at) for at, one in enumerate(waiting)]
    queue.put(works)
    for arrival in range(len(works)):
        (oldest, *_) = sorted(works, key=lambda one: one.since)
        batch = queue.take()
        assert batch is not None
        assert oldest in batch  # however short everything that came later is
        works = [one for one in works if one not in batch]
        newcomer = work(1, since=len(waiting) + arrival)
        queue.put([newcomer])
        works.append(newcomer)


def test_queue_model_with_the_oldest_sample_is_first() -> None:
    waiting = RequestQueue(100)
    waiting.put([work(1, model=model("late"), since=2), work(2, model=model("early"), since=1)])
    assert lengths(waiting.take()) == [2]


def test_queue_models_of_one_name_never_share_a_batch() -> None:
    waiting = RequestQueue(100)
    old, new = model("m"), model("m", 100)
    waiting.put([work(1, model=old), work(2, model=new), work(3, model=old)])
    assert (lengths(waiting.take()), lengths(waiting.take())) == ([1, 3], [2])


def test_queue_batch_is_of_one_model() -> None:
    waiting = RequestQueue(100)
    waiting.put([work(1, model=model("a")), work(2, model=model("b")), work(3, model=model("a"))])
    assert lengths(waiting.take()) == [1, 3]


def test_queue_drops_samples_of_cancelled_calls() -> None:
    waiting = RequestQueue(100)
    waiting.put([work(1, wanted=False), work(2), work(3, model=model("other"), wanted=False)])
    assert lengths(waiting.take()) == [2]
    assert waiting.num_waiting() == 0


def test_queue_closed_fails_queued_samples_with_the_reason() -> None:
    heard: list[Outcome] = []
    waiting = RequestQueue(100)
    waiting.put([QueuedSample(M, ModelInput((1,), (), False), heard.append, lambda: True, 0)])
    reason = Draining("stopping")
    waiting.close(reason)
    assert heard == [reason]
    assert waiting.take() is None


def test_queue_closed_fails_new_samples_with_the_first_reason() -> None:
    heard: list[Outcome] = []
    waiting = RequestQueue(100)
    reason = Draining("stopping")
    waiting.close(reason)
    waiting.close(Draining("stopping again"))
    waiting.put([QueuedSample(M, ModelInput((1,), (), False), heard.append, lambda: True, 0)])
    assert heard == [reason]
    assert waiting.num_waiting() == 0


def begins(beginning: int, num_own: int, *, cost: BatchLayout) -> QueuedSample:
    """A sample with a shared prefix of 20 tokens, and some of its own."""
    ids = (beginning,) * 20 + tuple(range(1000, 1000 + num_own))
    return QueuedSample(M, ModelInput(ids, (), False), lambda outcome: None, lambda: True, 0, cost)


def test_next_batch_packed_takes_samples_in_order_while_they_fit() -> None:
    works = [begins(1, own, cost=BatchLayout.PACKED) for own in (0, 10, 5, 0)]
    assert next_batch(works, 50) == [works[0], works[1]]
    assert next_batch(works, 65) == [works[0], works[1]]
    assert next_batch(works, 70) == [works[0], works[1], works[3]]


def test_batch_of_samples_with_one_prefix_costs_it_once() -> None:
    works = [begins(1, 5, cost=BatchLayout.PREFIX_SHARED) for _ in range(4)]
    works[1:] = [begins(1, own, cost=BatchLayout.PREFIX_SHARED) for own in (6, 7, 8)]
    # 25 for the first; of the others' own tokens, 5 are alike too: 1, 2 and 3 more.
    assert next_batch(works, 31) == works


def test_next_batch_counts_all_sequences_and_shares_the_prefix_of_each() -> None:
    prompt, reference = (1,) * 40, (2,) * 30
    sequences = [TokenSequence((*prompt, 5), ()), TokenSequence((*reference, 6), ())]
    features = ModelInput.of_sequences(sequences, truncated=False)  # 41 + 31 tokens
    works = [
        QueuedSample(M, features, lambda outcome: None, lambda: True, 0, BatchLayout.PREFIX_SHARED)
        for _ in range(3)
    ]
    shorter = replace(
        works[2],
        features=ModelInput.of_sequences(
            [TokenSequence((*prompt, 7), ()), TokenSequence((*reference, 8), ())], truncated=False
        ),
    )
    # The first costs 72 tokens, an equal one none, and one that ends otherwise its two last ones.
    assert next_batch([works[0], works[1], shorter], 73) == works[:2]
    assert next_batch([works[0], works[1], shorter], 74) == [*works[:2], shorter]


def test_next_batch_takes_the_oldest_samples_group_first() -> None:
    group = [begins(1, 5, cost=BatchLayout.PREFIX_SHARED) for _ in range(2)]
    other = begins(2, 5, cost=BatchLayout.PREFIX_SHARED)
    assert next_batch([group[0], other, group[1]], 30) == group


def test_next_batch_adds_other_groups_only_whole() -> None:
    first = begins(1, 0, cost=BatchLayout.PREFIX_SHARED)
    others = [begins(2, own, cost=BatchLayout.PREFIX_SHARED) for own in (5, 9)]
    assert next_batch([first, *others], 48) == [first]
    assert next_batch([first, *others], 49) == [first, *others]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=40), BUDGETS)
def test_queue_prefix_shared_samples_are_taken_once(
    drawn: list[tuple[int, int]], budget: int
) -> None:
    waiting = [begins(beginning, own, cost=BatchLayout.PREFIX_SHARED) for beginning, own in drawn]
    taken: list[QueuedSample] = []
    while waiting:
        batch = next_batch(waiting, budget)
        assert waiting[0] in batch
        waiting = [one for one in waiting if one not in batch]
        taken += batch
    assert len(taken) == len(drawn) == len(set(map(id, taken)))


def test_next_batch_deterministic_is_one_sample() -> None:
    works = [replace(work(one), cost=BatchLayout.SINGLE) for one in (3, 3, 1)]
    assert next_batch(works, 100) == works[:1]


def test_queue_uses_the_models_own_token_budget() -> None:
    waiting = RequestQueue(max_batch_tokens=10)
    waiting.put([work(5, model=model("large", 20), since=1) for _ in range(4)])
    assert lengths(waiting.take()) == [5, 5, 5, 5]
    waiting.put([work(5, since=1) for _ in range(4)])
    assert lengths(waiting.take()) == [5, 5]
