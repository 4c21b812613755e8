"""`alarm view --out`: rewards as one file."""

from __future__ import annotations

from dataclasses import dataclass

from alarm_service.viewer.bundle import bundled, json_text
from alarm_service.viewer.index import RewardIndex
from alarm_service.viewer.selection import Pick, picked

__all__ = ["HtmlFile", "html_file"]

#: A file that is mailed and opened by a browser should not be larger.
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class HtmlFile:
    """The content of a file, and how many samples it shows."""

    content: bytes
    num_shown: int


def html_file(index: RewardIndex, limit: int, pick: Pick) -> HtmlFile:
    """Return at most ``limit`` samples of an index, and fewer if they are over 64 MiB."""
    chosen = picked(index, limit, pick)
    lines: list[str] = []
    size = 0
    for at in chosen:
        line = index.details(at)
        size += len(line.encode())
        if size > _MAX_BYTES and lines:
            return html_file(index, len(lines), pick)
        lines.append(line)
    overview = index.overview(chosen)
    if len(chosen) < len(index):
        overview["notes"] = [
            f"This file shows {len(chosen):,} of {len(index):,} samples ({_HOW[pick]}).",
            *overview["notes"],
        ]
    data = {"overview": [json_text(overview)], "samples": lines}
    return HtmlFile(bundled("view.html", data).encode(), len(chosen))


_HOW = {
    Pick.EVEN: "whole groups, at equal distances",
    Pick.WORST: "whole groups, those with the lowest rewards",
    Pick.BEST: "whole groups, those with the highest rewards",
}
