"""How `alarm judge` shows what it will cost and what it found."""

from __future__ import annotations

from functools import partial

from alarm_service.study.evaluation_page import win_rates
from alarm_service.study.judgement import JudgementResult
from alarm_service.study.judging import Cost, Judge
from alarm_service.study.page import Grid, Page, Paragraph, Picture, percent
from alarm_service.study.plots import win_rate_maps

__all__ = ["cost_in_words", "judgement_page"]


def cost_in_words(cost: Cost, judge: Judge) -> str:
    """Say what is about to be asked, before it is."""
    most = cost.max_answer_tokens
    answers = "no bound on answers" if most is None else f"at most {most:,} of answers"
    money = "" if cost.money is None else f"; at most about {cost.money:,.2f} at the given prices"
    return (
        f"{cost.num_asks:,} requests to {judge.body.get('model')} at {judge.endpoint}, both orders "
        f"of each pair ({cost.num_cached:,} more are in the cache, {cost.num_same:,} pairs are the "
        f"same text): about {cost.prompt_tokens:,} tokens of prompts, {answers}{money}"
    )


def judgement_page(result: JudgementResult) -> Page:
    """Lay out policies by a judge."""
    left_out = f" ({result.num_left_out} left out)" if result.num_left_out else ""
    blocks: list[Paragraph | Grid | Picture] = [
        Paragraph(
            f"{result.num_pairs} pairs of completions to {result.num_prompts} prompts{left_out}, "
            f"each asked about in both orders; {result.num_same} pairs of the same text are ties. "
            f"Intervals: 95% by {result.resampling.num_draws} bootstrap draws of prompts, "
            f"seed {result.resampling.seed}. Win rates leave ties out."
        )
    ]
    blocks += [Paragraph(text, is_caution=True) for text in _faults(result)]
    blocks += [
        win_rates("Win rates", result.policies, result.rates, result.averages),
        Picture(
            "win-rates",
            f"Win rates of rows over columns by {result.model}, in % of untied prompts.",
            partial(win_rate_maps, result.policies, {result.model: result.rates}),
        ),
        Paragraph(
            f"In {percent(result.order_share)} of the pairs the judge turned with the order, which "
            f"counts as a tie; in {percent(result.tie_share)} it said tie. The answer shown first "
            f"was chosen {percent(result.first_shown_share)} of the time.",
            is_caution=result.order_share > 0.3,
        ),
        Paragraph(
            f"The answers cost {result.prompt_tokens:,} prompt and {result.answer_tokens:,} answer "
            "tokens, as the endpoint counted them, cached ones included."
        ),
    ]
    return Page(f"Policies by {result.model}", blocks)


def _faults(result: JudgementResult) -> list[str]:
    said = []
    if result.refused:
        count = len(result.refused)
        said.append(f"{count} requests were refused, for example: {result.refused[0]}")
    if result.num_unread:
        said.append(
            f"{result.num_unread} pairs have no verdict in one order or both, and are left out of "
            "every figure."
        )
    return said
