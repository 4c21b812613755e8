"""The report of `alarm audit` as tables."""

from __future__ import annotations

from alarm_service.evaluation.audit import AuditResult, Evidence, Finding, RecipeAudit
from alarm_service.evaluation.report import Grid, Page, Paragraph, plain
from alarm_service.observability.gaming import average_run_length

__all__ = ["audit_page"]

_TITLES = {
    "zero_deviation_share": "groups of equal rewards",
    "ceiling_share": "at the largest reward",
    "drift": "drift of z (CUSUM)",
    "variance_share": "variance by component",
    "opposed_share": "pairs ordered against z",
    "shared_segment_share": "segments shared by prompts",
    "length_correlation": "correlation with length",
    "truncated_share": "truncated",
    "omitted_share": "not shown whole",
    "admitted_share": "past the threshold",
}


def audit_page(result: AuditResult) -> Page:
    """Build the report."""
    run_length = average_run_length(0, result.limits.drift)
    blocks: list[Paragraph | Grid] = [
        Paragraph(
            f"{result.num_samples} captured samples with a reward, in windows of {result.window}."
        ),
        *(Paragraph(text, is_caution=True) for text in _cautions(result)),
        *(block for recipe in result.recipes for block in _recipe(recipe)),
        Paragraph(
            f"Beyond a limit: {result.num_passed or 'nothing'}. A policy that scores as in the "
            f"calibration passes the limit of the drift once in {run_length:.2g} groups."
        ),
    ]
    return Page("Audit", blocks)


def _cautions(result: AuditResult) -> list[str]:
    codes = ", ".join(f"{code}: {num}" for code, num in result.errors.items())
    found = {
        f"{result.num_without_reward} samples have no reward ({codes}).": result.num_without_reward,
        f"{result.num_scores_left_out} samples of /score are left out: they have no "
        "reward.": result.num_scores_left_out,
    }
    return [text for text, num in found.items() if num]


def _recipe(recipe: RecipeAudit) -> list[Grid | Paragraph]:
    table = Grid(
        f"{recipe.recipe} {recipe.fingerprint}: {recipe.num_samples} samples",
        ("", "largest", "limit", "beyond it", "lines"),
        [_row(finding) for finding in recipe.findings],
        "Windows beyond the limit, and the lines of the one with the largest value. A dash: too "
        "few samples, or no limit.",
    )
    passed = [finding for finding in recipe.findings if finding.num_passed]
    return [table, *(Paragraph(_evidence(finding), is_caution=True) for finding in passed)]


def _row(finding: Finding) -> tuple[str, ...]:
    return (
        _title(finding),
        plain(finding.value),
        plain(finding.limit),
        f"{finding.num_passed} of {finding.num_windows}",
        _lines(finding.first, finding.last),
    )


def _title(finding: Finding) -> str:
    subject = "" if finding.subject is None else f": {finding.subject}"
    return f"{_TITLES[finding.figure]}{subject}"


def _lines(first: Evidence | None, last: Evidence | None) -> str:
    if first is None or last is None:
        return "–"
    if first.file == last.file:
        return f"{first.line} to {last.line}"
    return f"{first.file}:{first.line} to {last.file}:{last.line}"


def _evidence(finding: Finding) -> str:
    by_file: dict[str, list[str]] = {}
    for one in finding.evidence:
        by_file.setdefault(one.file, []).append(_sample(one))
    places = "; ".join(f"{file}, {', '.join(lines)}" for file, lines in by_file.items())
    return f"{_title(finding)}: look at {places}."


def _sample(one: Evidence) -> str:
    of_id = "" if one.id is None else f"id {one.id}, "
    return f"line {one.line} ({of_id}reward {plain(one.reward)})"
