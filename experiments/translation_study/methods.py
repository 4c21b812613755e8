"""The ways of rewarding that are compared: overrides of one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alarm_client import Overrides
from translation_study.recipe import ASPECTS

__all__ = ["NUM_MAIN", "UNTRAINED", "Method", "methods"]

#: The supervised policy, in tables.
UNTRAINED = "no RL"

#: The number of methods before those of the ablation.
NUM_MAIN = 6


@dataclass(frozen=True, slots=True)
class Method:
    """A way of rewarding, as overrides of the recipe; `title` is its name in tables."""

    title: str
    overrides: Overrides

    @property
    def name(self) -> str:
        """The name in paths."""
        return self.title.replace(" ", "_").replace(":", "")


def methods(chosen: str, weight: float) -> list[Method]:
    """Return the methods for a chosen aspect: the main ones, then those of the ablation.

    All with the paper's shaping (sigmoid), except the two that are centred. The ablation puts each
    other aspect, and all of them, in the place of the chosen one.
    """
    alone = _weights({chosen: weight})
    main = [
        Method("holistic", {"rule": "holistic_only", "weights": alone}),
        Method("aspect", {"rule": "aspect_only", "weights": alone}),
        Method("weighted sum", {"rule": "weighted_sum", "weights": alone}),
        Method("hierarchical", {"rule": "hierarchical", "weights": alone}),
        Method(
            "hierarchical centred",
            {"rule": "hierarchical", "weights": alone, "shaping": "centred"},
        ),
        Method("soft gate centred", {"rule": "soft_gate", "weights": alone, "shaping": "centred"}),
    ]
    others = [
        Method(
            f"hierarchical: {name}",
            {"rule": "hierarchical", "weights": _weights({name: weight})},
        )
        for name in ASPECTS
        if name != chosen
    ]
    every = _weights(dict.fromkeys(ASPECTS, weight))
    return [*main, *others, Method("hierarchical: all", {"rule": "hierarchical", "weights": every})]


def _weights(given: Mapping[str, float]) -> dict[str, float]:
    return {name: given.get(name, 0.0) for name in ASPECTS}
