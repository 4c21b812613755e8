"""Checks the dashboard and alerts with metrics of a real server and with Prometheus."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import PATIENCE_S, Process, alarm_serve, until_event

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "alarm.json").read_text())

#: Prometheus's own, and what appears only once something went wrong.
FAILURES = {
    "alarm_sample_errors_total",
    "alarm_failed_batches_total",
    "alarm_omitted_rewards_total",
}
UNSEEN = FAILURES | {"up"}


def panels() -> dict[str, str]:
    """Return the dashboard's expressions as Grafana sends them, by panel title."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def alerts() -> dict[str, str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], cwd=RULES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ask(server: Process) -> None:
    """Request rewards for several prompts, most of them past the threshold of `mini`."""
    samples = [
        {"prompt": f"Who wrote book {prompt}?", "completion": f"Jane Austen wrote it. {'So. ' * n}"}
        for prompt in range(4)
        for n in range(4)
    ]
    body = {"samples": samples, "overrides": {"threshold": -10}}
    for route, wanted in (("hierarchical_reward", body), ("score", {"samples": samples})):
        answer = httpx.post(f"{server.url}/{route}", json=wanted, timeout=PATIENCE_S)
        assert answer.status_code == 200


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with alarm_serve("mini") as process:
        until_event(process, "ready")
        ask(process)
        yield process


def test_dashboard_file_is_the_output_of_its_script() -> None:
    script = ROOT / "docker" / "grafana" / "dashboard.py"
    written = subprocess.run(
        [sys.executable, "-c", "import json, dashboard; print(json.dumps(dashboard.dashboard()))"],
        cwd=script.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(written.stdout) == DASHBOARD


def test_metrics_of_dashboard_and_alerts_exist(server: Process) -> None:
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    labels: dict[str, set[str]] = {}
    for line in lines:
        name = re.match(r"\w+", line)
        assert name is not None
        labels.setdefault(name[0], set()).update(re.findall(r'(\w+)="', line))
    wanted = {"code", "part", "alertname", "job", "on", "instance"}
    for where, expression in (panels() | alerts()).items():
        names = set(re.findall(r"\b(?:alarm|process)_\w+|\bup\b", expression))
        assert names, where
        assert names - UNSEEN <= labels.keys(), where
        known = set().union(*(labels.get(name, set()) for name in names)) | wanted
        for clause in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert set(filter(None, re.split(r",\s*", clause))) <= known, where


@pytest.mark.parametrize("name", ["up", "alarm_sample_errors_total"])
def test_failure_metrics_are_declared_before_the_first_failure(name: str, server: Process) -> None:
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
    assert name == "up" or f"# TYPE {name} counter" in text


def test_metrics_pass_promtool(server: Process) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if line.startswith("alarm_")]
    assert complaints == []


def test_alerts_pass_their_promtool_tests() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", RULES.with_name("alerts_test.yml"))


def test_prometheus_configuration_is_valid() -> None:
    promtool("check", "config", "--syntax-only", RULES.with_name("prometheus.yml"))


def test_dashboard_expressions_are_valid_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{index}", "expr": expression}
        for index, expression in enumerate(panels().values())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


@pytest.mark.slow
def test_every_panel_has_data_in_a_real_prometheus(server: Process, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    configuration = yaml.safe_load((RULES.with_name("prometheus.yml")).read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(RULES)]
    (job,) = configuration["scrape_configs"]
    del job["authorization"]
    job["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with subprocess.Popen(
        [*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        try:
            for _ in range(15):
                ask(server)
                time.sleep(1)
            silent = {
                where: expression
                for where, expression in panels().items()
                if not _asked(address, expression)
                and not any(map(expression.__contains__, FAILURES))
            }
        finally:
            process.terminate()
    assert silent == {}


def _asked(address: str, expression: str) -> list[Any]:
    answer = httpx.get(f"http://{address}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return list(answer["data"]["result"])
