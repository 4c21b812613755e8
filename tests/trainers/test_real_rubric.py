"""GRPO in TRL on a rubric that a causal model in the server judges; see test_real_trainers.py."""

import json
import logging
from pathlib import Path
from statistics import fmean

import pytest
from processes import alarm_serve
from rubric_judge import WORDS, expected_score, recipe_of_judge, train_judge
from venvs import run_in

from alarm_client.client import AlarmClient

LOG = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_trl_policy_learns_what_a_rubric_asks(tmp_path: Path) -> None:
    """Count by its words how often a sample names a color and no animal, before and after."""
    judge = tmp_path / "judge"
    accuracy = train_judge(judge)
    assert accuracy > 0.97
    recipe = tmp_path / "rubric.toml"
    recipe.write_text(recipe_of_judge(judge))
    with alarm_serve(recipe) as server:
        with AlarmClient(server.url) as client:
            client.wait_ready(timeout=120)
        found = run_in("trl", "run_trl_rubric.py", server.url, tmp_path, WORDS=json.dumps(WORDS))
    by_words = [fmean(map(expected_score, step)) for step in found["steps"]]
    met = [fmean(expected_score(text) == 1 for text in step) for step in found["steps"]]
    first, last = fmean(met[:5]), fmean(met[-5:])
    error = fmean(abs(a - b) for a, b in zip(found["rewards"], by_words, strict=True))
    LOG.info("judge %.4f, rubric met %.3f -> %.3f, error %.4f", accuracy, first, last, error)
    assert len(met) == 60
    assert first < 0.4
    assert last > 0.8
    assert set(found["failed"]) == {0.0}
    # The rewards are those of the rubric, but for what the judge gets wrong.
    assert error < 0.05
