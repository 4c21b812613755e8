"""Writes dashboards/alarm.json: availability, load and reward statistics."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "alarm.json"

_WINDOW = "[$__rate_interval]"
#: Rewards arrive once per training step, minutes apart, so their ratios use a longer window.
_STEPS = "[10m]"


def rate(metric: str, by: str = "", window: str = _WINDOW) -> str:
    """Return the rate of a counter, summed by some labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{window}))"


def share(part: str, whole: str, by: str, window: str = _STEPS) -> str:
    """Return the ratio of two counters' rates."""
    return f"{rate(part, by, window)} / {rate(whole, by, window)}"


def quantiles(metric: str, by: str, window: str = _WINDOW) -> dict[str, str]:
    """Return the median and the 95th percentile of a histogram, by legend."""
    buckets = rate(f"{metric}_bucket", f"{by}, le", window)
    return {
        f"{name} {{{{{by}}}}}": f"histogram_quantile({q}, {buckets})"
        for name, q in (("median", 0.5), ("95 %", 0.95))
    }


def mean(metric: str, by: str, window: str = _WINDOW) -> str:
    """Return the mean of a histogram's values."""
    return share(f"{metric}_sum", f"{metric}_count", by, window)


#: Rows of panels: title, unit, and expressions by legend.
ROWS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Is it up?": [
        ("Ready", "none", {"up": "up{job=\"alarm\"}", "ready": "alarm_ready"}),
        ("Responses per second", "reqps", {"{{status}}": rate("alarm_requests_total", "status")}),
        ("Failed responses", "percentunit", {
            "share of all": "(sum(rate(alarm_requests_total{status=~\"5..\"}[5m])) or vector(0)) "
            "/ sum(rate(alarm_requests_total[5m]))",
        }),
        ("Samples without a score", "cps", {"{{code}}": rate("alarm_sample_errors_total", "code")}),
        ("Memory", "bytes", {"resident": "process_resident_memory_bytes"}),
        ("Uptime", "s", {"uptime": "time() - process_start_time_seconds"}),
    ],
    "Is it the bottleneck of training?": [
        ("Share of time", "percentunit", {
            "at least one request in flight": rate("alarm_occupied_seconds_total"),
            "device busy": rate("alarm_device_busy_seconds_total"),
        }),
        ("Response time", "s", quantiles("alarm_request_seconds", "route")),
        ("Time in the queue", "s", quantiles("alarm_queue_seconds", "model")),
        ("Share of time per step", "percentunit", {
            f"{step} {{{{model}}}}": rate(f"alarm_{step}_seconds_sum", "model")
            for step in ("prepare", "forward", "read")
        }),
        ("Tokens per second", "none", {
            "requested {{model}}": rate("alarm_tokens_total", "model"),
            "computed {{model}}": rate("alarm_computed_tokens_total", "model"),
        }),
        ("Samples per batch", "none", {
            "mean {{model}}": mean("alarm_batch_samples", "model"),
        }),
        ("Tokens per batch", "none", {
            "mean {{model}}": mean("alarm_batch_tokens", "model"),
        }),
        ("Queue usage", "percentunit", {"used": "alarm_queued_tokens / alarm_max_queued_tokens"}),
        ("Requests and waiting samples", "none", {
            "requests": "alarm_admitted_requests",
            "waiting samples": "alarm_waiting_samples",
        }),
    ],
    "Is the reward being gamed?": [
        ("Holistic reward (standard deviations)", "none",
         quantiles("alarm_holistic_reward", "recipe", _STEPS)
         | {"mean {{recipe}}": "alarm_holistic_reward_mean"}),
        ("Reward", "none", {"mean {{recipe}}": "alarm_reward_mean"}),
        ("Aspect rewards", "none", {
            "mean {{aspect}}": "alarm_aspect_reward_mean",
            "mean value of {{aspect}}": "alarm_aspect_value_mean",
        }),
        ("Samples past the threshold", "percentunit", {
            "{{recipe}}": "sum by (recipe) (rate(alarm_admitted_samples_total{admitted=\"true\"}"
            "[10m])) / sum by (recipe) (rate(alarm_admitted_samples_total[10m]))",
        }),
        ("Correlation with length", "none", {
            "reward {{recipe}}": "alarm_length_correlation",
            "holistic {{recipe}}": "alarm_holistic_length_correlation",
            "{{aspect}}": "alarm_aspect_length_correlation",
        }),
        ("Completion length", "none",
         quantiles("alarm_completion_characters", "recipe", _STEPS)),
        ("Agreement of aspects with the holistic reward: share of pairs", "percentunit", {
            "{{verdict}} {{aspect}}": "sum by (recipe, aspect, verdict) "
            "(rate(alarm_aspect_pairs_total[10m])) / on (recipe, aspect) group_left () "
            "sum by (recipe, aspect) (rate(alarm_aspect_pairs_total[10m]))",
        }),
        ("Agreement of aspects with the holistic reward: correlation", "none", {
            "{{aspect}}": "alarm_aspect_holistic_correlation",
        }),
        ("Saturated aspect values", "percentunit", {
            "{{end}} {{aspect}}": "sum by (recipe, aspect, end) "
            "(rate(alarm_saturated_values_total[10m])) / on (recipe, aspect) group_left () "
            "sum by (recipe, aspect) (rate(alarm_shaped_values_total[10m]))",
        }),
        ("Groups of equal rewards, samples at the ceiling", "percentunit", {
            "flat groups of {{recipe}}": "alarm_zero_deviation_group_share",
            "at the ceiling of {{recipe}}": "alarm_ceiling_sample_share",
        }),
        ("Variance of the reward by component", "none", {
            "{{component}} {{recipe}}": "alarm_reward_variance_share",
        }),
        ("Drift from the calibration (CUSUM; alarm at 15)", "none", {
            "{{direction}} {{recipe}}": "alarm_holistic_drift",
        }),
        ("Parts not shown to models: share of rewards", "percentunit", {
            "{{part}} {{recipe}}": "sum by (recipe, part) "
            "(rate(alarm_omitted_rewards_total[10m])) / on (recipe) group_left () "
            "sum by (recipe) (rate(alarm_reward_count[10m]))",
        }),
        ("Truncated rewards and samples", "percentunit", {
            "rewards of {{recipe}}": share(
                "alarm_truncated_rewards_total", "alarm_reward_count", "recipe"
            ),
            "samples at {{model}}": share(
                "alarm_truncated_samples_total", "alarm_scored_samples_total", "model"
            ),
        }),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as JSON for Grafana."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, graphs in ROWS.items():
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        })  # fmt: skip
        y += 1
        for index, (title, unit, expressions) in enumerate(graphs):
            place = {"x": 8 * (index % 3), "y": y + 8 * (index // 3), "w": 8, "h": 8}
            panels.append(_graph(len(panels) + 1, title, unit, expressions, place))
        y += 8 * (-(-len(graphs) // 3))
    return {
        "uid": "alarm", "title": "ALaRM reward server", "schemaVersion": 41, "version": 1,
        "editable": True, "refresh": "15s", "time": {"from": "now-3h", "to": "now"},
        "tags": ["alarm"], "templating": {"list": []}, "annotations": {"list": []},
        "panels": panels,
    }  # fmt: skip


def _graph(
    number: int, title: str, unit: str, expressions: dict[str, str], place: dict[str, int]
) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    is_share = {"min": 0, "max": 1} if unit == "percentunit" else {}
    return {
        "id": number, "type": "timeseries", "title": title, "gridPos": place, "datasource": source,
        "fieldConfig": {"defaults": {"unit": unit, **is_share}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                    "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression,
             "legendFormat": legend}
            for index, (legend, expression) in enumerate(expressions.items())
        ],
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n", "utf-8")
