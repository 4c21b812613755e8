"""How `alarm evaluate` shows what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from alarm_models.study.bootstrap import Estimate
from alarm_models.study.comparison import WinRate
from alarm_service.study.evaluating import EvaluationResult
from alarm_service.study.page import (
    Grid,
    Page,
    Paragraph,
    Picture,
    fingerprints,
    percents,
    plain,
    plains,
)
from alarm_service.study.plots import distributions, win_rate_maps

__all__ = ["evaluation_page", "win_rates"]


def evaluation_page(result: EvaluationResult) -> Page:
    """Lay out a comparison of policies: means first, then a matrix a reward."""
    left_out = (
        f"; {result.num_left_out} that not every policy answered are left out"
        if result.num_left_out
        else ""
    )
    lower = result.lower_is_better
    blocks: list[Paragraph | Grid | Picture] = [
        Paragraph(
            f"{len(result.policies)} policies on {result.num_prompts} prompts{left_out}. "
            f"Intervals: 95% by {result.resampling.num_draws} bootstrap draws of prompts, the "
            f"same for all policies, seed {result.resampling.seed}. Win rates leave ties out."
            + (f" Lower is better for {', '.join(lower)}." if lower else "")
            + f" Models: {fingerprints(result.fingerprints)}."
        )
    ]
    blocks += [Paragraph(fault, is_caution=True) for fault in result.faults]
    matrices = {name: found.rates for name, found in result.comparisons.items()}
    blocks += [
        Picture(
            "win-rates",
            "Win rates of rows over columns by each reward, in % of untied prompts.",
            partial(win_rate_maps, result.policies, matrices),
        ),
        Picture(
            "distributions",
            "Distributions of each reward over completions.",
            partial(distributions, result.values),
        ),
    ]
    for name in result.comparisons:
        blocks += _reward(name, result)
    return Page(f"Policies by the rewards of {result.recipe}", blocks)


def win_rates(
    title: str,
    policies: Sequence[str],
    rates: Sequence[Sequence[WinRate | None]],
    averages: Sequence[Estimate],
) -> Grid:
    """Lay out a win-rate matrix, its rows' means last, as the paper's Tables 1 and 3."""
    rows = [
        (
            policy,
            *("–" if one is None else percents(one.rate) for one in row),
            percents(average),
        )
        for policy, row, average in zip(policies, rates, averages, strict=True)
    ]
    headers = ("row over column", *policies, "mean")
    return Grid(title, headers, rows)


def _reward(name: str, result: EvaluationResult) -> Iterator[Grid]:
    found = result.comparisons[name]
    direction = " (lower is better)" if name in result.lower_is_better else ""
    yield Grid(
        f"{name}{direction}",
        ("", "mean", "std", "completions", f"over {result.policies[0]}"),
        [
            (
                policy,
                plains(one.mean),
                plain(one.std),
                str(one.num_completions),
                "–" if index == 0 else plains(one.gain),
            )
            for index, (policy, one) in enumerate(zip(result.policies, found.spreads, strict=True))
        ],
    )
    yield win_rates(f"{name}: win rates", result.policies, found.rates, found.averages)
