"""The ways of rewarding that are compared: overrides of one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alarm_client import Overrides
from translation_study.recipe import ASPECTS

__all__ = ["UNTRAINED", "Method", "methods"]

#: The supervised policy, in tables.
UNTRAINED = "no RL"


@dataclass(frozen=True, slots=True)
class Method:
    """A way of rewarding, as overrides of the recipe; `title` is its name in tables."""

    title: str
    overrides: Overrides
    part: Literal["main", "control", "ablation"] = "main"

    @property
    def name(self) -> str:
        """The name in paths."""
        return self.title.replace(" ", "_").replace(":", "")


def methods(chosen: str, weight: float) -> list[Method]:
    """Return the methods for a chosen aspect, in the order of their training.

    All with the paper's shaping (sigmoid), except those that are centred. The controls tell the
    effect of the shaping from that of the aspect. The ablation puts each other aspect, and all of
    them, in the place of the chosen one.
    """
    alone = _weights({chosen: weight})
    centred: Overrides = {"weights": alone, "shaping": "centred"}
    every = _weights(dict.fromkeys(ASPECTS, weight))
    others = [
        Method(
            f"hierarchical: {name}",
            {"rule": "hierarchical", "weights": _weights({name: weight})},
            "ablation",
        )
        for name in ASPECTS
        if name != chosen
    ]
    return [
        Method("holistic", {"rule": "holistic_only", "weights": alone}),
        Method("aspect", {"rule": "aspect_only", "weights": alone}),
        Method("weighted sum", {"rule": "weighted_sum", "weights": alone}),
        Method("hierarchical", {"rule": "hierarchical", "weights": alone}),
        Method("hierarchical centred", {"rule": "hierarchical", **centred}),
        Method("soft gate centred", {"rule": "soft_gate", **centred}),
        Method("aspect centred", {"rule": "aspect_only", **centred}, "control"),
        Method("weighted sum centred", {"rule": "weighted_sum", **centred}, "control"),
        *others,
        Method("hierarchical: all", {"rule": "hierarchical", "weights": every}, "ablation"),
    ]


def _weights(given: Mapping[str, float]) -> dict[str, float]:
    return {name: given.get(name, 0.0) for name in ASPECTS}
