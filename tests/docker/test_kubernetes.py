"""Validates the manifests with Kubernetes' schemas and with the server's options."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from alarm_service.api.status_routes import router
from alarm_service.settings import Settings

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
BASE = FOLDER / "gpu"
#: Kubernetes of early 2025 on; the fields are older.
VERSION = "1.32"
#: These are kustomize's and KubeRay's own.
FOREIGN = {"Kustomization", "RayService"}
PATCHES = FOLDER / "cpu"


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def merged(base: Any, patch: Any) -> Any:
    """Return a strategic merge: mappings by key, lists of named items by name, null removes."""
    if isinstance(base, dict) and isinstance(patch, dict):
        joined = {**base, **{key: merged(base.get(key), one) for key, one in patch.items()}}
        return {key: one for key, one in joined.items() if one is not None}
    if isinstance(base, list) and all(isinstance(one, dict) and "name" in one for one in patch):
        names = {one["name"]: one for one in patch}
        kept = [merged(one, names.pop(one["name"], {})) for one in base]
        return [*kept, *names.values()]
    return patch


FILES = sorted(FOLDER.rglob("*.yaml"))
OWN = [
    pytest.param(one, id=f"{file.relative_to(FOLDER)} {one['kind']}")
    for file in FILES
    if file.parent != PATCHES
    for one in documents(file)
    if one["kind"] not in FOREIGN
]
(DEPLOYMENT,) = documents(BASE / "deployment.yaml")
RAY_SERVICE, RAY_WEIGHTS = documents(FOLDER / "ray" / "rayservice.yaml")
CLUSTER: dict[str, Any] = RAY_SERVICE["spec"]["rayClusterConfig"]


@pytest.mark.parametrize("document", OWN)
def test_manifest_matches_its_schema(document: dict[str, Any]) -> None:
    validate(document)


@pytest.mark.parametrize("name", ["deployment.yaml", "weights.yaml"])
def test_manifest_with_cpu_patch_matches_its_schema(name: str) -> None:
    (base,), (patch,) = documents(BASE / name), documents(PATCHES / name)
    validate(merged(base, patch))


def test_schema_check_rejects_an_unknown_key() -> None:
    probed = merged(DEPLOYMENT, {})
    probed["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(probed)


def test_files_of_kustomizations_exist() -> None:
    for folder in (BASE, PATCHES):
        (one,) = documents(folder / "kustomization.yaml")
        named = [*one["resources"], *(patch["path"] for patch in one.get("patches", ()))]
        assert all((folder / name).exists() for name in named)
    (base,) = documents(BASE / "kustomization.yaml")
    there = {file.name for file in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(base["resources"]) == there


@pytest.mark.parametrize("folder", [BASE, PATCHES])
def test_no_kustomization_is_inside_one_that_it_uses(folder: Path) -> None:
    # kustomize refuses a base that contains its overlay, as a cycle.
    (one,) = documents(folder / "kustomization.yaml")
    used = [(folder / name).resolve() for name in one["resources"] if not name.endswith(".yaml")]
    assert not any(folder.resolve().is_relative_to(base) for base in used)
    if tool := shutil.which("kubectl"):
        done = subprocess.run(
            [tool, "kustomize", folder], capture_output=True, text=True, check=True
        )
        found = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
        (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"alarm:{folder.name}"


def test_pods_get_no_variables_of_services() -> None:
    # A Service named `alarm` would set ALARM_PORT to a URL, which is an option of the server.
    (service,) = documents(BASE / "service.yaml")
    assert f"{service['metadata']['name'].upper()}_PORT" == "ALARM_PORT"
    pods = [DEPLOYMENT["spec"]["template"], *pods_of_cluster()]
    assert [pod["spec"]["enableServiceLinks"] for pod in pods] == [False] * 3


def test_pods_can_write_their_volumes() -> None:
    for pod in (DEPLOYMENT["spec"]["template"], *pods_of_cluster()):
        security = pod["spec"]["securityContext"]
        assert security["runAsUser"] == security["fsGroup"] == 10001
    assert "--uid 10001" in (FOLDER.parent / "Dockerfile").read_text()


def test_cpu_pod_requests_no_gpu() -> None:
    (patch,) = documents(PATCHES / "deployment.yaml")
    pod = merged(DEPLOYMENT, patch)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    assert {one["name"]: one["value"] for one in container["env"]}["ALARM_DEVICE"] == "cpu"
    assert container["args"] == ["serve"]


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


def test_termination_grace_period_covers_the_drain() -> None:
    pod = DEPLOYMENT["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain_s = int(environment_of(container)["ALARM_DRAIN_S"])
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before_s + drain_s + 5


def test_environment_variables_are_server_options() -> None:
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    names = {name.removeprefix("ALARM_").lower() for name in environment_of(container)}
    assert names <= set(Settings.model_fields)


def test_probes_use_routes_without_a_key() -> None:
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    paths = {route.path for route in router.routes if route.path.startswith("/health/")}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths


def pods_of_cluster() -> list[dict[str, Any]]:
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    return [group["template"] for group in groups]


@pytest.mark.parametrize("template", pods_of_cluster())
def test_rayservice_pods_match_their_schema(template: dict[str, Any]) -> None:
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **template})
    mounted = {one["name"] for one in template["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {one["name"] for one in template["spec"]["volumes"]}


def test_rayservice_has_the_fields_kuberay_requires() -> None:
    assert set(RAY_SERVICE) == {"apiVersion", "kind", "metadata", "spec"}
    assert RAY_SERVICE["apiVersion"] == "ray.io/v1"
    assert set(RAY_SERVICE["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    assert set(CLUSTER) <= {
        "rayVersion",
        "enableInTreeAutoscaling",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    for group in CLUSTER["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(one, str) for one in group["rayStartParams"].values())
    constraints = (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={CLUSTER['rayVersion']}" in constraints


def test_rayservice_arguments_are_settings() -> None:
    (application,) = yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])["applications"]
    settings = Settings(ray=True, **application["args"])
    assert settings.recipe == ("mini",)
    (ingress,) = application["deployments"]
    worker = CLUSTER["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] > settings.drain_s
    module, _, name = application["import_path"].partition(":")
    source = (FOLDER.parents[1] / "service" / Path(*module.split("."))).with_suffix(".py")
    assert f"def {name}(" in source.read_text()
    assert f'name="{ingress["name"]}"' in source.read_text()
