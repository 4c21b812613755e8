import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_models.packing.beginnings import MIN_SHARED
from alarm_models.packing.laying import lay_out
from alarm_models.packing.layout import Run
from alarm_models.sample import Span

PROMPT = tuple(range(100, 120))  # 20 ids, enough to share


def test_without_sharing_samples_stand_end_to_end() -> None:
    layout = lay_out([(1, 2, 3), (1, 2)], share=False)
    assert layout.ids == [1, 2, 3, 1, 2]
    assert layout.positions == [0, 1, 2, 0, 1]
    assert layout.runs == [Run(Span(0, 3), Span(0, 3), 3), Run(Span(3, 5), Span(3, 5), 5)]
    assert layout.num_computed == [3, 2]


def test_a_shared_prompt_is_laid_down_once() -> None:
    layout = lay_out([(*PROMPT, 1, 2), (*PROMPT, 3)], share=True)
    assert layout.ids == [*PROMPT, 1, 2, 3]
    assert layout.positions == [*range(20), 20, 21, 20]
    assert [(run.row, run.reach) for run in layout.runs] == [
        ((0, 20), 23),
        ((20, 22), 22),
        ((22, 23), 23),
    ]
    assert layout.num_computed == [22, 1]


def test_a_short_common_beginning_is_not_shared() -> None:
    short = PROMPT[: MIN_SHARED - 1]
    layout = lay_out([(*short, 1), (*short, 2)], share=True)
    assert len(layout.ids) == 2 * MIN_SHARED


def test_identical_samples_are_computed_once() -> None:
    layout = lay_out([PROMPT, PROMPT, PROMPT], share=True)
    assert layout.ids == list(PROMPT)
    assert layout.num_computed == [20, 0, 0]


def test_a_sample_that_another_goes_on_from_is_part_of_it() -> None:
    layout = lay_out([(*PROMPT, 7), PROMPT], share=True)
    assert layout.ids == [*PROMPT, 7]
    assert layout.places(1, Span(19, 20)) == [19]
    assert layout.places(0, Span(20, 21)) == [20]


def test_sharing_goes_down_several_levels() -> None:
    middle = tuple(range(200, 220))
    layout = lay_out([(*PROMPT, *middle, 1), (*PROMPT, *middle, 2), (*PROMPT, 3)], share=True)
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
def test_every_sample_can_be_read_back(
    drawn: list[tuple[int, int, list[int]]], share: bool
) -> None:
    samples = [((first,) * count + tuple(rest)) or (9,) for first, count, rest in drawn]
    layout = lay_out(samples, share=share)
    for index, sample in enumerate(samples):
        places = layout.places(index, Span(0, len(sample)))
        assert tuple(layout.ids[place] for place in places) == sample
        assert [layout.positions[place] for place in places] == list(range(len(sample)))
    assert sum(layout.num_computed) == len(layout.ids)


@pytest.mark.parametrize("share", [True, False])
def test_samples_of_different_owners_share_nothing(share: bool) -> None:
    layout = lay_out([PROMPT, PROMPT, PROMPT], share=share, owners=["a", "b", "a"])
    assert layout.num_computed == [len(PROMPT), len(PROMPT), 0]
    assert layout.pieces[0] == layout.pieces[2] != layout.pieces[1]
