import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_models.modeling.packed.batch import PrefixNode, pack
from alarm_models.modeling.packed.prefix_cache import MIN_SHARED_PREFIX
from alarm_models.types import Span

PROMPT = tuple(range(100, 120))  # 20 ids, enough to share


def test_pack_without_sharing_puts_samples_end_to_end() -> None:
    layout = pack([(1, 2, 3), (1, 2)], share=False)
    assert layout.ids == [1, 2, 3, 1, 2]
    assert layout.positions == [0, 1, 2, 0, 1]
    assert layout.nodes == [
        PrefixNode(Span(0, 3), Span(0, 3), 3),
        PrefixNode(Span(3, 5), Span(3, 5), 5),
    ]
    assert layout.num_computed == [3, 2]


def test_pack_with_shared_prompt_has_it_once() -> None:
    layout = pack([(*PROMPT, 1, 2), (*PROMPT, 3)], share=True)
    assert layout.ids == [*PROMPT, 1, 2, 3]
    assert layout.positions == [*range(20), 20, 21, 20]
    assert [(run.row, run.subtree_end) for run in layout.nodes] == [
        ((0, 20), 23),
        ((20, 22), 22),
        ((22, 23), 23),
    ]
    assert layout.num_computed == [22, 1]


def test_pack_with_short_common_prefix_does_not_share_it() -> None:
    short = PROMPT[: MIN_SHARED_PREFIX - 1]
    layout = pack([(*short, 1), (*short, 2)], share=True)
    assert len(layout.ids) == 2 * MIN_SHARED_PREFIX


def test_pack_of_identical_samples_has_them_once() -> None:
    layout = pack([PROMPT, PROMPT, PROMPT], share=True)
    assert layout.ids == list(PROMPT)
    assert layout.num_computed == [20, 0, 0]


def test_pack_of_a_sample_that_is_a_prefix_of_another_shares_all_of_it() -> None:
    layout = pack([(*PROMPT, 7), PROMPT], share=True)
    assert layout.ids == [*PROMPT, 7]
    assert layout.positions_in_batch(1, [Span(19, 20)]) == [19]
    assert layout.positions_in_batch(0, [Span(20, 21)]) == [20]


def test_pack_shares_prefixes_on_several_levels() -> None:
    middle = tuple(range(200, 220))
    layout = pack([(*PROMPT, *middle, 1), (*PROMPT, *middle, 2), (*PROMPT, 3)], share=True)
    assert len(layout.ids) == 20 + 20 + 1 + 1 + 1
    assert layout.num_computed == [21, 1, 21]  # in sorted order the last one comes first


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30), st.lists(st.integers(0, 2), max_size=9)),
        min_size=1,
        max_size=9,
    ),
    st.booleans(),
)
def test_pack_of_any_samples_can_be_read_back(
    drawn: list[tuple[int, int, list[int]]], share: bool
) -> None:
    samples = [((first,) * count + tuple(rest)) or (9,) for first, count, rest in drawn]
    layout = pack(samples, share=share)
    for index, sample in enumerate(samples):
        places = layout.positions_in_batch(index, [Span(0, len(sample))])
        assert tuple(layout.ids[place] for place in places) == sample
        assert [layout.positions[place] for place in places] == list(range(len(sample)))
    assert sum(layout.num_computed) == len(layout.ids)


@pytest.mark.parametrize("share", [True, False])
def test_pack_with_different_owners_shares_nothing(share: bool) -> None:
    layout = pack([PROMPT, PROMPT, PROMPT], share=share, owners=["a", "b", "a"])
    assert layout.num_computed == [len(PROMPT), len(PROMPT), 0]
    assert layout.key_spans[0] == layout.key_spans[2] != layout.key_spans[1]


def test_pack_of_a_chain_of_prefixes_has_each_token_once_on_any_number_of_levels() -> None:
    size, num_levels = MIN_SHARED_PREFIX, 400
    whole = tuple(range(size * num_levels))
    layout = pack([whole[: size * (level + 1)] for level in range(num_levels)], share=True)
    assert layout.ids == list(whole)
    assert [node.subtree_end for node in layout.nodes] == [len(whole)] * 400
    assert [len(spans) for spans in layout.key_spans] == list(range(1, 401))
    last = [Span(at, at + 1) for at in (0, 777, len(whole) - 1)]
    assert layout.positions_in_batch(num_levels - 1, last) == [0, 777, len(whole) - 1]
