"""Kind `length`: how many tokens a completion has."""

from __future__ import annotations

from alarm_models.sample import Sample, Score

__all__ = ["length", "num_policy_tokens"]


def length(sample: Sample) -> Score:
    """Count the policy's tokens, or white-space words where the caller sends no token offsets."""
    return Score(float(num_policy_tokens(sample)), None, 0, False)


def num_policy_tokens(sample: Sample) -> int:
    """Return how many tokens a trainer counts: by token offsets, else white-space words."""
    if sample.token_offsets is not None:
        return len(sample.token_offsets)
    return len(sample.completion_text.split())
