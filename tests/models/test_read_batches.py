"""Reads: which keys of their nodes each sees, and nodes of about one length put together."""

import torch

from alarm_models.modeling.packed.attention import ReadBatch, group_reads
from alarm_models.modeling.packed.batch import pack

CPU = torch.device("cpu")


def sees(some: ReadBatch) -> dict[int, list[int]]:
    """Return for each read the places of the keys that it sees."""
    mask = some.mask
    if mask is None:
        mask = torch.ones(len(some.queries), 1, some.queries.shape[1], some.keys.shape[1]).bool()
    return {
        int(query): keys[seen].tolist()
        for queries, keys, rows in zip(some.queries, some.keys, mask[:, 0], strict=True)
        for query, seen in zip(queries, rows, strict=True)
    }


def test_group_reads_causal_read_sees_its_node_up_to_itself() -> None:
    layout = pack([(1, 2, 3), (4, 5, 6, 7)], share=False)
    (some,) = group_reads(layout, [0, 2, 4], causal=True, window=None, device=CPU)
    assert sees(some) == {0: [0], 1: [0, 1, 2], 2: [3, 4]}


def test_group_reads_of_an_encoder_sees_all_of_its_sample() -> None:
    layout = pack([(1, 2, 3), (4, 5, 6, 7)], share=False)
    (some,) = group_reads(layout, [0, 4], causal=False, window=None, device=CPU)
    assert sees(some) == {0: [0, 1, 2], 1: [3, 4, 5, 6]}


def test_group_reads_in_any_order_sees_the_node_of_each() -> None:
    layout = pack([(1, 2, 3), (4, 5, 6)], share=False)
    (some,) = group_reads(layout, [4, 0, 5, 1, 1], causal=False, window=None, device=CPU)
    first, second = [0, 1, 2], [3, 4, 5]
    assert sees(some) == {0: second, 1: first, 2: second, 3: first, 4: first}


def test_group_reads_of_equal_lengths_needs_no_mask() -> None:
    layout = pack([(1, 2), (3, 4)], share=False)
    (some,) = group_reads(layout, [1, 3], causal=True, window=None, device=CPU)
    assert some.mask is None
    assert some.keys.tolist() == [[0, 1], [2, 3]]


def test_group_reads_window_counts_the_read_itself() -> None:
    layout = pack([(1, 2, 3, 4, 5)], share=False)
    (causal,) = group_reads(layout, [1, 4], causal=True, window=2, device=CPU)
    assert sees(causal) == {0: [0, 1], 1: [3, 4]}
    (both,) = group_reads(layout, [1, 4], causal=False, window=2, device=CPU)
    assert sees(both) == {0: [0, 1, 2], 1: [3, 4]}


def test_group_reads_after_a_shared_prefix_sees_its_own_node_only() -> None:
    shared = tuple(range(20))
    layout = pack([(*shared, 100, 101), (*shared, 200, 201)], share=True)
    (some,) = group_reads(layout, [20, 21, 23], causal=True, window=None, device=CPU)
    assert sees(some) == {0: [20], 1: [20, 21], 2: [22, 23]}


def test_group_reads_splits_off_a_much_longer_node() -> None:
    layout = pack([(1,) * 10, (2,) * 100, (3,) * 12], share=False)
    short, long = group_reads(layout, [9, 109, 121], causal=True, window=None, device=CPU)
    assert short.queries.tolist() == [[0], [2]]
    assert long.queries.tolist() == [[1]]


def test_group_reads_bounds_the_keys_gathered_at_once() -> None:
    samples = [(number,) * 3000 for number in range(5)]
    layout = pack(samples, share=False)
    places = [3000 * sample + 2999 for sample in range(5)]
    found = list(group_reads(layout, places, causal=True, window=None, device=CPU))
    assert [len(some.keys) for some in found] == [2, 2, 1]
