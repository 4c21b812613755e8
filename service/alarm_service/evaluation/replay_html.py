"""The report of `alarm replay` as one HTML file, with charts and the most changed samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alarm_service.captures.lines import CapturedLine, Constants
from alarm_service.evaluation.replay_comparison import ReplayResult
from alarm_service.evaluation.replay_examples import ChangedSample, ReplayExamples
from alarm_service.evaluation.replay_report import replay_page
from alarm_service.evaluation.report import Grid, Paragraph, json_of
from alarm_service.schemas import RewardOut
from alarm_service.viewer.bundle import bundled, json_text
from alarm_service.viewer.lines import RewardLine, details_of

__all__ = ["replay_html"]


def replay_html(result: ReplayResult, examples: ReplayExamples) -> str:
    """Return the report."""
    page = replay_page(result)
    overview = {
        "title": page.title,
        "paragraphs": [
            {"text": block.text, "is_caution": block.is_caution}
            for block in page.blocks
            if isinstance(block, Paragraph)
        ],
        "tables": [
            {"title": one.title, "headers": one.headers, "rows": one.rows, "note": one.note}
            for one in page.blocks
            if isinstance(one, Grid)
        ],
        "result": json.loads(json_of(result)),
        "num_samples": examples.num_samples,
        "num_with_parts": examples.num_with_parts,
        "parts": examples.mean_changes(),
        "pairs": [
            [one.before, one.after, int(one.was_admitted), int(one.is_admitted)]
            for one in examples.pairs
        ],
    }
    now = examples.constants
    changed = [json_text(_changed(one, now, result)) for one in examples.most_changed()]
    return bundled("replay.html", {"overview": [json_text(overview)], "changed": changed})


def _changed(one: ChangedSample, now: Constants, result: ReplayResult) -> dict[str, Any]:
    line = one.line
    names = {"recipe": result.recipe, "fingerprint": result.fingerprint}
    return {
        "before": _details(line, one.before, line.constants),
        "after": _details(line, one.after, now) | names,
        "ranks": {
            "before": one.ranks.before,
            "after": one.ranks.after,
            "num_samples": one.ranks.num_samples,
        },
    }


def _details(line: CapturedLine, reward: RewardOut, constants: Constants | None) -> dict[str, Any]:
    sample: Mapping[str, Any] = line.sample.model_dump(mode="json", exclude_defaults=True)
    shown = RewardLine(
        reward.model_dump(),
        sample,
        line.request,
        constants=None if constants is None else constants.model_dump(),
    )
    return details_of(shown) | {"recipe": line.recipe, "fingerprint": line.fingerprint}
