"""Container files, checked by schemas and linters of their formats."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
#: Of .env: what stands in for --profile where none is given.
DEFAULT = {"gpu"}


def run(tool: str, *arguments: str) -> None:
    """Run a tool from this environment or from PATH; skip if it is missing."""
    own = Path(sys.executable).with_name(tool)
    found = str(own) if own.exists() else shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def started(*profiles: str) -> set[str]:
    """Return the services that compose starts with these --profile flags."""
    active = set(profiles) or DEFAULT
    return {
        name
        for name, service in SERVICES.items()
        if not service.get("profiles") or active & set(service["profiles"])
    }


def test_compose_file_matches_its_schema() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_dockerfile_has_no_lint_findings() -> None:
    run("hadolint", "docker/Dockerfile")


def test_compose_without_profile_starts_only_the_gpu_server() -> None:
    assert "COMPOSE_PROFILES=gpu" in (ROOT / ".env").read_text().splitlines()
    assert started() == {"alarm"}
    (device,) = SERVICES["alarm"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_compose_cpu_profile_requests_no_gpu() -> None:
    assert started("cpu") == {"alarm-cpu"}
    assert "deploy" not in SERVICES["alarm-cpu"]
    assert SERVICES["alarm-cpu"]["environment"]["ALARM_DEVICE"] == "cpu"


def test_compose_profiles_add_their_services() -> None:
    assert started("cpu", "monitoring") == {"alarm-cpu", "prometheus", "grafana"}
    assert started("gpu", "languagetool") == {"alarm", "languagetool"}


@pytest.mark.parametrize("name", ["alarm", "alarm-cpu"])
def test_published_address_matches_the_server_s_setting(name: str) -> None:
    service = SERVICES[name]
    (port,) = service["ports"]
    address = service["environment"]["ALARM_PUBLISHED"]
    assert address == "${ALARM_BIND:-127.0.0.1}"
    assert port == f"{address}:${{ALARM_PORT:-8000}}:8000"


def test_every_service_has_restricted_rights() -> None:
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for port in service.get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${ALARM_BIND:-127.0.0.1}:"))


def test_files_mounted_by_compose_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_dir()
    assert (ROOT / "docker" / "no-key").read_text() == ""


def requirements(**environment: str) -> list[str]:
    """Return what the image installs with these build arguments."""
    manifests = ["models/pyproject.toml", "service/pyproject.toml"]
    done = subprocess.run(
        [sys.executable, "docker/requirements.py", *manifests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout.splitlines()


def test_image_has_what_the_manifests_need() -> None:
    wanted = requirements()
    assert not any(one.startswith("alarm") for one in wanted)  # no index has ours
    assert {"torch>=2.13,<2.14", "fastapi>=0.130", "opentelemetry-sdk>=1.38"} <= set(wanted)
    assert "harper-py>=0.2" in wanted  # of alarm-models[text], which the service asks for


def test_cluster_image_includes_ray() -> None:
    assert not any(one.startswith("ray") for one in requirements())
    wanted = requirements(EXTRAS="traces,ray")
    assert {"ray[serve]>=2.60", "opentelemetry-sdk>=1.38"} <= set(wanted)
