"""`alarm evaluate`: policies compared by each reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from alarm_models.recipe.schema import Recipe
from alarm_models.study.bootstrap import Estimate, Resampling
from alarm_models.study.comparison import Comparison, WinRate, compare
from alarm_models.study.pairs import Floats
from alarm_service.evaluation.dataset import Material
from alarm_service.evaluation.plots import distributions, win_rate_maps
from alarm_service.evaluation.report import (
    Grid,
    Page,
    Paragraph,
    Picture,
    fingerprints,
    percents,
    plain,
    plains,
)
from alarm_service.evaluation.scoring import Column, Scores

__all__ = ["EvaluationResult", "evaluate", "evaluation_page", "win_rates"]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The comparison of policies; ``values`` are of every completion, by reward and policy."""

    recipe: str
    fingerprints: Mapping[str, str]
    policies: Sequence[str]
    num_prompts: int
    num_left_out: int
    resampling: Resampling
    lower_is_better: Sequence[str]
    comparisons: Mapping[str, Comparison]
    faults: Sequence[str]
    values: Mapping[str, Mapping[str, Floats]]


def evaluate(
    material: Material,
    recipe: Recipe,
    columns: Sequence[Column],
    resampling: Resampling,
    scores: Scores,
) -> EvaluationResult:
    """Compare policies by every column."""
    policies = np.asarray(material.policies)
    return EvaluationResult(
        recipe=recipe.name,
        fingerprints=scores.fingerprints,
        policies=material.policy_names,
        num_prompts=material.num_prompts,
        num_left_out=material.num_left_out,
        resampling=resampling,
        lower_is_better=[one.name for one in columns if one.is_lower_better],
        comparisons={
            one.name: compare(
                one.values,
                material.prompts,
                material.policies,
                is_lower_better=one.is_lower_better,
                resampling=resampling,
            )
            for one in columns
        },
        faults=scores.faults,
        values={
            one.name: {
                name: one.values[policies == index]
                for index, name in enumerate(material.policy_names)
            }
            for one in columns
        },
    )


def evaluation_page(result: EvaluationResult) -> Page:
    """Build the report: means, then a win-rate matrix per reward."""
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
            f"same for all policies, seed {result.resampling.seed}. Win rates exclude ties."
            + (f" Lower is better for {', '.join(lower)}." if lower else "")
            + f" Models: {fingerprints(result.fingerprints)}."
        )
    ]
    blocks += [Paragraph(fault, is_caution=True) for fault in result.faults]
    matrices = {name: found.rates for name, found in result.comparisons.items()}
    blocks += [
        Picture(
            "win-rates",
            "Win rates of rows against columns by each reward, in % of untied prompts.",
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
    """Build a win-rate matrix with the means of its rows last, as the paper's Tables 1 and 3."""
    rows = [
        (
            policy,
            *("–" if one is None else percents(one.rate) for one in row),
            percents(average),
        )
        for policy, row, average in zip(policies, rates, averages, strict=True)
    ]
    headers = ("row vs. column", *policies, "mean")
    return Grid(title, headers, rows)


def _reward(name: str, result: EvaluationResult) -> Iterator[Grid]:
    found = result.comparisons[name]
    direction = " (lower is better)" if name in result.lower_is_better else ""
    yield Grid(
        f"{name}{direction}",
        ("", "mean", "std", "completions", f"gain over {result.policies[0]}"),
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
