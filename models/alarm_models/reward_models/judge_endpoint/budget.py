"""What a judge's endpoint may use in any minute: requests, tokens and money."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from alarm_models.errors import SampleError
from alarm_models.recipe.specs import BudgetSpec

__all__ = ["Budget", "Expense", "RequestBudget"]

_WINDOW_S = 60.0

#: The shortest wait before a budget is looked at again.
_MIN_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class Expense:
    """What one request uses, estimated before its answer is known."""

    tokens: int = 0
    cost: float = 0.0


@dataclass(slots=True)
class _Entry:
    since: float
    expense: Expense


class Budget:
    """The expenses of the last 60 seconds, and whether there is room for another one.

    It is pure: times are passed in. A request is entered with its estimate when it is sent, and
    `settle` replaces the estimate once its answer says what it used.
    """

    def __init__(self, spec: BudgetSpec) -> None:
        self._spec = spec
        self._entries: deque[_Entry] = deque()

    def wait_s(self, expense: Expense, now: float) -> float | None:
        """Return the seconds until there is room; None if the request alone exceeds the budget."""
        while self._entries and self._entries[0].since + _WINDOW_S <= now:
            self._entries.popleft()
        if self._excess(Expense(), expense, 0) is not None:
            return None
        tokens = sum(entry.expense.tokens for entry in self._entries)
        cost = sum(entry.expense.cost for entry in self._entries)
        num_left = len(self._entries)
        for entry in (None, *self._entries):
            if entry is not None:
                tokens -= entry.expense.tokens
                cost -= entry.expense.cost
                num_left -= 1
            if num_left == 0:
                tokens, cost = 0, 0.0  # without the rounding of the differences
            if self._excess(Expense(tokens, cost), expense, num_left) is None:
                return 0.0 if entry is None else entry.since + _WINDOW_S - now
        raise AssertionError("an empty budget has room")

    def enter(self, expense: Expense, now: float) -> Callable[[Expense], None]:
        """Enter a request, and return the function that replaces its estimate."""
        entry = _Entry(now, expense)
        self._entries.append(entry)

        def settle(actual: Expense) -> None:
            entry.expense = actual

        return settle

    def exceeded_key(self, expense: Expense) -> str:
        """Return the key of the limit that a request exceeds by itself."""
        return self._excess(Expense(), expense, 0) or "requests"

    def _excess(self, used: Expense, more: Expense, num_used: int) -> str | None:
        spec = self._spec
        if spec.requests is not None and num_used + 1 > spec.requests:
            return "requests"
        if spec.tokens is not None and used.tokens + more.tokens > spec.tokens:
            return "tokens"
        if spec.cost is not None and used.cost + more.cost > spec.cost:
            return "cost"
        return None


class RequestBudget:
    """Lets requests through as a budget allows, in the order in which they ask."""

    def __init__(self, spec: BudgetSpec, now: Callable[[], float] = time.monotonic) -> None:
        self._spec = spec
        self._budget = Budget(spec)
        self._now = now
        self._turn = asyncio.Lock()

    async def enter(self, expense: Expense) -> Callable[[Expense], None]:
        """Wait for room and enter a request; return the function that replaces its estimate.

        Raises `SampleError` (``budget_exceeded``) as the recipe's `excess` says.
        """
        ends = self._now() + self._spec.max_wait_s
        async with self._turn:
            while True:
                now = self._now()
                wait_s = self._budget.wait_s(expense, now)
                if wait_s is None:
                    raise self._too_large(expense)
                if wait_s == 0:
                    return self._budget.enter(expense, now)
                if self._spec.excess == "fail" or now + wait_s > ends:
                    raise self._exceeded(wait_s)
                await asyncio.sleep(max(wait_s, _MIN_WAIT_S))

    def _too_large(self, expense: Expense) -> SampleError:
        key = self._budget.exceeded_key(expense)
        return SampleError(
            "budget_exceeded",
            f"one request to the judge may use {expense.tokens} tokens and cost "
            f"{expense.cost:.4g}, more than budget.{key} allows a minute: raise it, or lower "
            "parameters.max_tokens",
        )

    def _exceeded(self, wait_s: float) -> SampleError:
        advice = 'raise it, or set budget.excess = "wait"'
        if self._spec.excess == "wait":
            advice = f"that is beyond budget.max_wait_s ({self._spec.max_wait_s:g} s)"
        return SampleError(
            "budget_exceeded",
            f"the judge's budget a minute is used up and has room in {wait_s:.0f} s: {advice}",
        )
