"""How `alarm calibrate` shows what it found."""

from __future__ import annotations

from collections.abc import Iterator

from alarm_models.study.addition import Addition
from alarm_service.study.calibrating import CalibrationResult
from alarm_service.study.page import Grid, Page, Paragraph, Picture, fingerprints, percent, plain
from alarm_service.study.plots import distributions

__all__ = ["calibration_page"]


def calibration_page(result: CalibrationResult) -> Page:
    """Lay out a calibration: constants, what aspects add, and what it comes to."""
    blocks: list[Paragraph | Grid | Picture] = [
        Paragraph(
            f"{result.num_completions} completions; the holistic model scored "
            f"{result.num_scored} of them. Models: {fingerprints(result.fingerprints)}."
        )
    ]
    blocks += [Paragraph(fault, is_caution=True) for fault in result.faults]
    blocks.append(_constants(result))
    blocks.append(
        Picture(
            "holistic",
            "Normalised holistic scores; past the threshold, aspects are added.",
            lambda: distributions(
                {"holistic, normalised": {"": result.normalized}}, result.found.threshold
            ),
        )
    )
    if result.aspects:
        blocks += _aspects(result)
    return Page(f"Calibration of {result.recipe}", blocks)


def _constants(result: CalibrationResult) -> Grid:
    before, found = result.before, result.found
    rows = [
        ("mean", plain(before.mean), plain(found.mean)),
        ("std", plain(before.std), plain(found.std)),
        ("threshold", plain(before.threshold), plain(found.threshold)),
        ("admitted", percent(before.admitted_share), percent(found.admitted_share)),
    ]
    return Grid(
        "Constants",
        ("", f"in {result.recipe}", "found"),
        rows,
        f"Wanted: {percent(result.wanted_share)} admitted. The threshold counts in standard "
        "deviations and lies halfway between two scores.",
    )


def _aspects(result: CalibrationResult) -> Iterator[Grid | Paragraph]:
    yield Grid(
        "Scores of aspects",
        ("", "mean", "std", "of"),
        [
            (name, plain(one.mean), plain(one.std), str(one.count))
            for name, one in result.aspects.items()
        ],
        "Of segments: the share of right ones in a completion.",
    )
    yield Grid(
        "What aspects add to an admitted completion",
        ("", "right", "wrong", "segments", "adds", "std", "if all wrong", "r length", "r score"),
        [_row(name, one) for name, one in result.additions.items()],
        "Shaped and weighted (a weight of 0 is taken as 1). r: correlation of what is added with "
        "the number of segments (of words, where completions are judged whole) and with the score.",
    )
    for name, one in result.additions.items():
        if one.num_completions:
            yield Paragraph(f"{name}: {one.explained()}.", is_caution=one.is_length_bonus)
    yield Paragraph(
        f"The holistic term gives an admitted completion {plain(result.holistic_part.mean)} "
        f"(std {plain(result.holistic_part.std)}), at the threshold "
        f"{plain(result.holistic_at_threshold)}: what aspects add is the jump there."
    )
    yield Paragraph(
        f"Over all completions the holistic score follows the number of words with r = "
        f"{plain(result.holistic_with_length)}, the whole reward with r = "
        f"{plain(result.reward_with_length)}."
    )


def _row(name: str, one: Addition) -> tuple[str, ...]:
    return (
        name,
        plain(one.right),
        plain(one.wrong),
        "–" if one.mean_segments is None else f"{one.mean_segments:.1f}",
        plain(one.mean),
        plain(one.std),
        "–" if one.unearned is None else percent(one.unearned),
        plain(one.with_length),
        plain(one.with_score),
    )
