"""Plots as PNG; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alarm_models.combination.rule_registry import ROUNDING
from alarm_models.study.agreement import Agreement
from alarm_models.study.bootstrap import Estimate
from alarm_models.study.comparison import WinRate
from alarm_models.study.pairs import Floats
from alarm_service.evaluation.errors import StudyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["distributions", "inconsistency_bars", "require_plots", "win_rate_maps"]

_INK, _PALE, _ACCENT, _WARM = "#22303c", "#c9d3dc", "#2a6f97", "#d1495b"

#: One color per policy.
_POLICIES = (_ACCENT, _WARM, "#5a9367", "#b08900", "#6c567b", "#44576a")


def require_plots() -> None:
    """Raise `StudyError` if matplotlib is missing; call this before long work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StudyError(
            "reports need matplotlib: pip install 'alarm-service[study]', or leave out --out"
        ) from error


def inconsistency_bars(agreements: Mapping[str, Agreement], chosen: Sequence[str]) -> bytes:
    """Draw each aspect's inconsistency, as the paper counts it and among untied pairs.

    See Lai et al. 2024, Figures 3 and 4, in which ties count as agreement.
    """
    names = list(agreements)
    figure, axes = _canvas(7.2, 1.5 + 0.62 * len(names))
    for row, name in enumerate(names):
        one = agreements[name]
        color = _ACCENT if name in chosen else "#8fa3b3"
        axes.barh(row - 0.19, 100 * one.inconsistency, 0.34, color=_PALE)
        axes.plot([100 * one.by_chance] * 2, [row - 0.37, row - 0.01], color=_WARM, linewidth=2)
        axes.barh(row + 0.19, 100 * one.untied.value, 0.34, color=color)
        if not math.isnan(one.untied.low):
            axes.plot([100 * one.untied.low, 100 * one.untied.high], [row + 0.19] * 2, color=_INK)
    axes.axvline(50, color=_WARM, linestyle="--", linewidth=1)
    axes.text(50.5, -0.62, "chance", color=_WARM, fontsize=8, va="bottom")
    labels = [f"{name}\n{agreements[name].tie_share:.0%} tied" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.set_xlim(0, 100 if any(_highest(one.untied) > 0.72 for one in agreements.values()) else 75)
    axes.set_xlabel("pairs that disagree with the reference, %")
    _key(axes, [("paper's count (ties agree)", _PALE), ("untied pairs", "#8fa3b3"),
                ("… chosen", _ACCENT), ("unrelated", _WARM)])  # fmt: skip
    return _png(figure)


def win_rate_maps(
    policies: Sequence[str], matrices: Mapping[str, Sequence[Sequence[WinRate | None]]]
) -> bytes:
    """Draw one heat map per reward: win rates of rows against columns, with intervals."""
    size = 1.0 + 1.05 * len(policies)
    figure, panels = _panels(len(matrices), 0.6 + size, 0.75 * size)
    for axes, (title, rates) in zip(panels, matrices.items(), strict=True):
        values = [[math.nan if one is None else one.rate.value for one in row] for row in rates]
        axes.set_facecolor("#f2f5f7")
        axes.imshow(np.array(values), cmap="RdYlBu", vmin=0.2, vmax=0.8, aspect="auto")
        for row, others in enumerate(rates):
            for column, one in enumerate(others):
                if one is not None and not math.isnan(one.rate.value):
                    _write_rate(axes, column, row, one)
        axes.set_xticks(range(len(policies)), policies)
        axes.set_yticks(range(len(policies)), policies)
        axes.set_title(title, fontsize=10, loc="left", color=_INK)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0)
    return _png(figure)


def distributions(
    rewards: Mapping[str, Mapping[str, Floats]], threshold: float | None = None
) -> bytes:
    """Draw one panel per reward: a distribution per policy, and the threshold if given."""
    is_alone = len(rewards) == 1
    figure, panels = _panels(len(rewards), 7.2 if is_alone else 4.4, 3.4 if is_alone else 2.7)
    for axes, (label, values) in zip(panels, rewards.items(), strict=True):
        _draw_distributions(axes, values)
        axes.set_xlabel(label, color=_INK)
        axes.set_ylabel("completions, %", color=_INK)
        if threshold is not None:
            _draw_threshold(axes, threshold)
    if any(next(iter(rewards.values()))):
        panels[0].legend(frameon=False, fontsize=8)
    return _png(figure)


def _draw_distributions(axes: Axes, values: Mapping[str, Floats]) -> None:
    known = {name: one[~np.isnan(one)] for name, one in values.items()}
    everything = np.concatenate(list(known.values()))
    num_bins = min(40, max(8, int(math.sqrt(len(everything)))))
    edges = _bins(everything, num_bins)
    for index, (name, one) in enumerate(known.items()):
        color = _POLICIES[index % len(_POLICIES)]
        weights = np.full(len(one), 100 / max(1, len(one)))
        if len(known) == 1:  # several would hide each other
            axes.hist(one, edges, weights=weights, histtype="stepfilled", color=color, alpha=0.2)
        axes.hist(one, edges, weights=weights, histtype="step", color=color, linewidth=1.6)
        axes.plot([], [], color=color, linewidth=1.6, label=name or None)


def _bins(values: Floats, number: int) -> list[float]:
    """Return the edges of a histogram's bins; of equal values, and of none, one bin's."""
    if not len(values):
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    if math.isclose(low, high, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return [low - 0.5, low + 0.5]
    return list(np.histogram_bin_edges(values, number))


def _draw_threshold(axes: Axes, threshold: float) -> None:
    right = axes.get_xlim()[1]
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])
    axes.axvline(threshold, color=_INK, linestyle="--", linewidth=1)
    axes.axvspan(threshold, max(right, threshold), color=_ACCENT, alpha=0.08, linewidth=0)
    axes.set_xlim(right=max(right, threshold))
    axes.text(threshold, 0.99, f" past {threshold:.2f}:\n admitted", fontsize=8, va="top",
              transform=axes.get_xaxis_transform(), color=_INK)  # fmt: skip


def _highest(one: Estimate) -> float:
    """Return the end of what is drawn of a share: its interval's, or its own."""
    return one.value if math.isnan(one.high) else one.high


def _write_rate(axes: Axes, column: int, row: int, one: WinRate) -> None:
    low, high = one.rate.low, one.rate.high
    inside = "" if math.isnan(low) else f"[{100 * low:.0f}, {100 * high:.0f}]"
    is_dark = not 0.3 < one.rate.value < 0.7
    color = "white" if is_dark else _INK
    axes.text(column, row - 0.1, f"{100 * one.rate.value:.1f}", fontsize=11, ha="center",
              va="center", color=color)  # fmt: skip
    axes.text(column, row + 0.22, inside, fontsize=7.5, ha="center", va="center", color=color)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels(1, width, height)
    return figure, axes


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Create panels, at most three per row; ``width`` and ``height`` are of one, in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    num_columns = min(3, count)
    num_rows = math.ceil(count / num_columns)
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout=layout)
    panels = [figure.add_subplot(num_rows, num_columns, index + 1) for index in range(count)]
    for axes in panels:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=9, colors=_INK)
    return figure, panels


def _key(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=color, label=label) for label, color in entries]
    axes.legend(handles=patches, frameon=False, fontsize=8, ncols=len(patches), loc="lower left",
                bbox_to_anchor=(0, 1.0))  # fmt: skip


def _png(figure: Figure) -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(parse_math=False)  # names may have dollar signs
    buffer = io.BytesIO()
    # Omit date and version, so that equal plots have equal bytes.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
