"""Generated samples have the specified lengths."""

from pathlib import Path
from random import Random

import qa
from made_samples import group, ragged, ragged_lengths
from work import Task

PAIRS = [("question: Who?", "He did. She did."), ("question: When?", "In May.")]


def test_group_shares_only_its_prompt() -> None:
    samples, _ = group(size=4, prompt=30, completion=10, seed=1)
    assert len({sample.prompt for sample in samples}) == 1
    assert len(samples[0].prompt.split()) == 30
    assert len({sample.completion.split()[0] for sample in samples}) == 4
    assert all(5 <= len(sample.completion.split()) <= 15 for sample in samples)


def test_segments_have_twenty_words_and_cover_the_completion() -> None:
    (sample,), _ = group(size=1, prompt=3, completion=45, seed=2)
    parts = [sample.completion[start:end] for start, end in sample.segments]
    assert " ".join(parts) == sample.completion
    assert {len(part.split()) for part in parts[:-1]} == {20}


def test_group_of_another_seed_is_different() -> None:
    assert group(1, 3, 8, seed=1) == group(1, 3, 8, seed=1)
    assert group(1, 3, 8, seed=1) != group(1, 3, 8, seed=2)


def test_twins_have_equal_lengths_and_no_common_prefix() -> None:
    for first, second in (group(3, 7, 30, seed=4), qa.group(PAIRS, 3, seed=4)):
        assert [len(one.completion.split()) for one in first] == [
            len(one.completion.split()) for one in second
        ]
        assert first[0].prompt.split()[0] != second[0].prompt.split()[0]


def test_question_drawn_twice_has_different_prefixes() -> None:
    begins = {qa.group(PAIRS[:1], 2, seed=seed)[0][0].prompt.split()[0] for seed in range(5)}
    assert len(begins) == 5


def test_ragged_lengths_are_spread_around_their_median() -> None:
    lengths = sorted(ragged_lengths(999, 82, Random(0)))
    assert 8 <= lengths[0] < 40
    assert 75 < lengths[499] < 90
    assert 200 < lengths[-1] <= 500


def test_ragged_samples_share_one_query() -> None:
    assert {sample.prompt for twin in ragged(9, 20, seed=0) for sample in twin} == {"w7"}


def test_token_classifier_text_has_a_separator_before_each_segment() -> None:
    (sample,), _ = group(size=1, prompt=2, completion=22, seed=5)
    words = Task(Path(), "segments", "{prompt}").text(sample).split()
    places = [at for at, word in enumerate(words) if word == "[SEP]"]
    assert places[0] == 2
    assert len(places) == len(sample.segments)
    assert [word for word in words if word != "[SEP]"] == [
        *sample.prompt.split(),
        *sample.completion.split(),
    ]
