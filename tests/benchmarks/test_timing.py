"""Variants take turns, and reported figures match figures worked out by hand."""

import argparse
import json
from collections.abc import Sequence

import pytest
import timing
from made_samples import ragged
from timing import Timed, add_rounds, in_turns, largest_difference, report, rounds_of
from work import Sample, Way

WORK = {number: ([Sample("p", str(number))], [Sample("q", str(number))]) for number in (-1, 0, 1)}


def test_variants_take_turns_and_the_warm_up_round_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "_REST_S", 0)
    ran: list[str] = []

    def way(name: str, samples: Sequence[Sample]) -> list[float]:
        ran.append(f"{name}{samples[0].prompt}{samples[0].completion}")
        return [float(samples[0].completion)]

    ways = {
        "a": Way(lambda samples: way("a", samples)),
        "b": Way(lambda samples: way("b", samples), twin=1),
    }
    timed = in_turns(ways, WORK)
    assert ran == ["ap-1", "bq-1", "ap0", "bq0", "ap1", "bq1"]
    assert len(timed["a"].seconds) == 2
    assert timed["b"].numbers == {-1: [-1.0], 0: [0.0], 1: [1.0]}


def test_warm_up_rounds_are_below_zero_and_have_samples_of_their_own() -> None:
    parser = argparse.ArgumentParser()
    add_rounds(parser, rounds=3)
    assert list(rounds_of(parser.parse_args([]))) == [-1, 0, 1, 2]
    numbers = list(rounds_of(parser.parse_args(["--warm-up", "3", "--rounds", "4"])))
    assert numbers == [-3, -2, -1, 0, 1, 2, 3]
    completions = {ragged(1, 20, seed=number)[0][0].completion for number in numbers}
    assert len(completions) == len(numbers)


def test_largest_difference_is_over_the_rounds_of_the_reference() -> None:
    numbers = {-1: [9.0], 0: [1.0, 2.0], 1: [3.0]}
    assert largest_difference(numbers, {0: [1.5, 2.0], 1: [3.25]}) == 0.5
    assert largest_difference(numbers, {1: [3.25]}) == 0.25


def test_variant_with_a_missing_number_raises() -> None:
    with pytest.raises(ValueError, match="zip"):
        largest_difference({0: [1.0]}, {0: [1.0, 2.0]})


def test_report_has_medians_ratios_and_differences(capsys: pytest.CaptureFixture[str]) -> None:
    timed = {
        "ours": Timed([1.0, 2.0, 9.0], {0: [0.0]}),
        "theirs": Timed([5.0, 6.0, 7.0], {0: [0.75]}, twin=1),
    }
    report("a title", timed, "ours", [{0: [0.0]}, {0: [0.25]}])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["benchmark"] == "a title"
    assert found["ways"]["theirs"] == {
        "seconds": [5.0, 6.0, 7.0],
        "median": 6.0,
        "ratio": 3.0,
        "difference": 0.5,
    }


def test_variant_without_numbers_has_a_time_and_no_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    timed = {"ours": Timed([2.0], {0: [0.0]}), "bound": Timed([1.0], {0: []})}
    report("a title", timed, "ours", [{0: [0.0]}])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ways"]["bound"]["difference"] is None
    assert found["ways"]["bound"]["ratio"] == 0.5
