"""Splitting of large calls, with small groups and limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_client._payloads import split_point, split_ranges


def parts(groups: str, most: int, max_samples: int, room: int = 99) -> list[str]:
    """The parts of samples of one byte each; `-` is a sample without a group."""
    named = [None if name == "-" else name for name in groups]
    found = split_ranges(named, [1] * len(groups), most, max_samples, room)
    return [groups[start:end] for start, end in found]


@pytest.mark.parametrize(
    ("groups", "most", "max_samples", "expected"),
    [
        ("aabbcc", 3, 4, ["aabb", "cc"]),
        ("aaabbb", 2, 4, ["aaa", "bbb"]),
        ("aabbb", 3, 4, ["aa", "bbb"]),
        ("----", 2, 4, ["--", "--"]),
        ("-aa-", 2, 4, ["-aa", "-"]),
        ("aaaaa", 3, 4, ["aaa", "aa"]),
    ],
    ids=["at a border", "a group past it", "a group that no longer fits", "no groups", "mixed",
         "a group over the limit is torn"],
)  # fmt: skip
def test_split_ranges_split_between_groups(
    groups: str, most: int, max_samples: int, expected: list[str]
) -> None:
    assert parts(groups, most, max_samples) == expected


def test_split_ranges_group_over_byte_limit_moves_to_next_part() -> None:
    assert parts("aabbb", most=9, max_samples=9, room=4) == ["aa", "bbb"]
    assert parts("aaaaa", most=9, max_samples=9, room=4) == ["aaaa", "a"]


@pytest.mark.parametrize(
    ("groups", "at"), [("aabb", 2), ("abbbb", 1), ("aaaabb", 4), ("aaaa", 2), ("---", 1)]
)
def test_split_point_is_group_boundary_nearest_to_the_middle(groups: str, at: int) -> None:
    assert split_point([None if name == "-" else name for name in groups]) == at


def test_split_ranges_accept_integer_groups() -> None:
    assert list(split_ranges([None, 0, 0, 3], [1] * 4, 2, 2, room=99)) == [(0, 1), (1, 3), (3, 4)]


@given(
    st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=40),
    st.integers(1, 10),
    st.integers(1, 10),
)
def test_split_ranges_keep_groups_that_fit(
    groups: list[str | None], most: int, max_samples: int
) -> None:
    found = list(
        split_ranges(groups, [1] * len(groups), min(most, max_samples), max_samples, room=99)
    )
    assert [index for start, end in found for index in range(start, end)] == [*range(len(groups))]
    assert all(end - start <= max_samples for start, end in found)
    for _, end in found[:-1]:
        if groups[end - 1] is not None and groups[end - 1] == groups[end]:
            run = 1
            while end - run > 0 and groups[end - run - 1] == groups[end]:
                run += 1
            ahead = 1
            while end + ahead < len(groups) and groups[end + ahead] == groups[end]:
                ahead += 1
            assert run + ahead > max_samples
