"""How many replicas a model wants: by the tokens that wait, not by the requests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["QUEUED_TOKENS", "ByQueuedTokens", "wanted_replicas"]

#: What replicas report to Ray's autoscaler, by this name.
QUEUED_TOKENS = "queued_tokens"


def wanted_replicas(queued_tokens: Iterable[float], tokens_per_replica: int) -> int:
    """Return the replicas that would have at most ``tokens_per_replica`` each; one at least."""
    return max(1, math.ceil(sum(queued_tokens) / tokens_per_replica))


class ByQueuedTokens:
    """Ray Serve's autoscaling policy; Serve itself applies the bounds and the delays."""

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Decide by the mean of what each replica reported over the look-back period."""
        reported = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        if not reported:  # nothing is known yet of replicas that have just started
            return context.target_num_replicas, {}
        return wanted_replicas(reported.values(), self._tokens_per_replica), {}
