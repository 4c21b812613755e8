"""The results of an LLM judge, and their report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from alarm_models.study.bootstrap import Estimate, Resampling
from alarm_models.study.comparison import WinRate, matrix
from alarm_models.study.pairs import Pairs, pairs_between
from alarm_service.evaluation.dataset import Material
from alarm_service.evaluation.evaluate import win_rates
from alarm_service.evaluation.judge import (
    AnswerCache,
    Choice,
    Cost,
    Duel,
    Judge,
    outcome_of,
    read_choice,
)
from alarm_service.evaluation.plots import win_rate_maps
from alarm_service.evaluation.report import Grid, Page, Paragraph, Picture, percent

__all__ = [
    "Judgement",
    "JudgementResult",
    "cost_in_words",
    "judge_pairs",
    "judgement_page",
    "settle",
]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One pair: the policies, the verdict of each order, and the outcome for the first policy.

    ``outcome`` is 1, -1 or 0, and NaN if an answer is missing or has no verdict.
    """

    prompt: int
    id: str | None
    first: str
    second: str
    forward: Choice | None
    backward: Choice | None
    outcome: float


@dataclass(frozen=True, slots=True)
class JudgementResult:
    """The comparison of policies; shares are of pairs with a verdict in both orders.

    ``order_share`` is the share in which the verdict followed the order, which counts as a tie;
    ``tie_share`` is the share of pairs with a tie in one order. ``first_shown_share`` is how often
    the answer shown first was chosen.
    """

    model: str
    policies: Sequence[str]
    num_prompts: int
    num_left_out: int
    resampling: Resampling
    rates: Sequence[Sequence[WinRate | None]]
    averages: Sequence[Estimate]
    num_pairs: int
    num_same: int
    num_unread: int
    order_share: float
    tie_share: float
    first_shown_share: float
    prompt_tokens: int
    answer_tokens: int
    refused: Sequence[str]
    judgements: Sequence[Judgement]


def judge_pairs(material: Material) -> list[tuple[int, int]]:
    """Return the pairs to judge: completions of each policy with those of each later policy."""
    return [
        (int(first), int(second))
        for one, other in _policy_pairs(material)
        for pairs in [pairs_between(material.prompts, material.policies, one, other)]
        for first, second in zip(pairs.first, pairs.second, strict=True)
    ]


def settle(
    material: Material,
    duels: Sequence[Duel],
    cache: AnswerCache,
    model: str,
    resampling: Resampling,
    refused: Sequence[str],
) -> JudgementResult:
    """Build the result from cached answers; ``duels`` are those of `judge_pairs`, in its order."""
    judgements = [_judgement(material, duel, cache) for duel in duels]
    judged = [one for one, duel in zip(judgements, duels, strict=True) if duel.requests is not None]
    read = [one for one in judged if not math.isnan(one.outcome)]
    rates, averages = _matrix(material, judgements, resampling)
    answers = [cache.get(request.key) for duel in duels for request in duel.requests or ()]
    return JudgementResult(
        model=model,
        policies=material.policy_names,
        num_prompts=material.num_prompts,
        num_left_out=material.num_left_out,
        resampling=resampling,
        rates=rates,
        averages=averages,
        num_pairs=len(duels),
        num_same=len(duels) - len(judged),
        num_unread=len(judged) - len(read),
        order_share=_share([one.forward == one.backward != Choice.TIE for one in read]),
        tie_share=_share([Choice.TIE in (one.forward, one.backward) for one in read]),
        first_shown_share=_share(
            [
                choice == Choice.A
                for one in read
                for choice in (one.forward, one.backward)
                if choice != Choice.TIE
            ]
        ),
        prompt_tokens=sum(one.prompt_tokens or 0 for one in answers if one is not None),
        answer_tokens=sum(one.completion_tokens or 0 for one in answers if one is not None),
        refused=tuple(refused),
        judgements=judgements,
    )


def _judgement(material: Material, duel: Duel, cache: AnswerCache) -> Judgement:
    sample = material.samples[duel.first]
    forward = backward = None
    outcome = 0.0
    if duel.requests is not None:
        answers = [cache.get(request.key) for request in duel.requests]
        forward, backward = (None if one is None else read_choice(one.text) for one in answers)
        outcome = outcome_of(forward, backward)
    return Judgement(
        prompt=material.prompts[duel.first],
        id=sample.id,
        first=material.policy_names[material.policies[duel.first]],
        second=material.policy_names[material.policies[duel.second]],
        forward=forward,
        backward=backward,
        outcome=outcome,
    )


def _policy_pairs(material: Material) -> list[tuple[int, int]]:
    return list(combinations(range(len(material.policy_names)), 2))


def _matrix(
    material: Material, judgements: Sequence[Judgement], resampling: Resampling
) -> tuple[Sequence[Sequence[WinRate | None]], Sequence[Estimate]]:
    outcomes, pairs = {}, {}
    start = 0
    for one, other in _policy_pairs(material):
        found = pairs_between(material.prompts, material.policies, one, other)
        values = np.array([each.outcome for each in judgements[start : start + len(found)]])
        start += len(found)
        outcomes[one, other], pairs[one, other] = values, found
        outcomes[other, one] = -values
        pairs[other, one] = Pairs(found.second, found.first, found.prompt, found.num_prompts)
    return matrix(outcomes, pairs, len(material.policy_names), resampling)


def _share(facts: Sequence[bool]) -> float:
    return sum(facts) / len(facts) if facts else math.nan


def cost_in_words(cost: Cost, judge: Judge) -> str:
    """Describe the cost of the requests that would be sent."""
    most = cost.max_answer_tokens
    answers = (
        "an unlimited number of answer tokens"
        if most is None
        else f"at most {most:,} answer tokens"
    )
    money = "" if cost.money is None else f"; at most about {cost.money:,.2f} at the given prices"
    return (
        f"{cost.num_asks:,} requests to {judge.body.get('model')} at {judge.endpoint}, in both "
        f"orders of each pair ({cost.num_cached:,} more are cached, {cost.num_same:,} pairs "
        f"have equal "
        f"texts): about {cost.prompt_tokens:,} prompt tokens, {answers}{money}"
    )


def judgement_page(result: JudgementResult) -> Page:
    """Build the report."""
    left_out = f" ({result.num_left_out} left out)" if result.num_left_out else ""
    blocks: list[Paragraph | Grid | Picture] = [
        Paragraph(
            f"{result.num_pairs} pairs of completions to {result.num_prompts} prompts{left_out}, "
            f"each judged in both orders; {result.num_same} pairs of equal texts are ties. "
            f"Intervals: 95% by {result.resampling.num_draws} bootstrap draws of prompts, "
            f"seed {result.resampling.seed}. Win rates exclude ties."
        )
    ]
    blocks += [Paragraph(text, is_caution=True) for text in _faults(result)]
    blocks += [
        win_rates("Win rates", result.policies, result.rates, result.averages),
        Picture(
            "win-rates",
            f"Win rates of rows against columns by {result.model}, in % of untied prompts.",
            partial(win_rate_maps, result.policies, {result.model: result.rates}),
        ),
        *_order(result),
        Paragraph(
            f"The answers cost {result.prompt_tokens:,} prompt and {result.answer_tokens:,} answer "
            "tokens as counted by the endpoint, including cached answers."
        ),
    ]
    return Page(f"Policies by {result.model}", blocks)


def _order(result: JudgementResult) -> list[Paragraph]:
    """Say how often the verdict depended on which answer was shown first; nothing if none was."""
    if result.num_same == result.num_pairs:
        return []
    return [
        Paragraph(
            f"In {percent(result.order_share)} of the pairs the verdict followed the order, which "
            f"counts as a tie; in {percent(result.tie_share)} it was a tie. The answer shown first "
            f"was chosen {percent(result.first_shown_share)} of the time.",
            is_caution=result.order_share > 0.3,
        )
    ]


def _faults(result: JudgementResult) -> list[str]:
    notes = []
    if result.refused:
        count = len(result.refused)
        notes.append(f"{count} requests were refused, for example: {result.refused[0]}")
    if result.num_unread:
        notes.append(
            f"{result.num_unread} pairs have no verdict in one or both orders, and are left out."
        )
    return notes
