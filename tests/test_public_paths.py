"""Dotted paths that users write in their own code and manifests."""

from importlib import import_module
from importlib.util import find_spec

import pytest

import alarm_models.sample
import alarm_models.types


@pytest.mark.parametrize("name", alarm_models.sample.__all__)
def test_sample_module_exports_the_types_of_python_rewards(name: str) -> None:
    assert getattr(alarm_models.sample, name) is getattr(alarm_models.types, name)


@pytest.mark.parametrize(
    "path",
    [
        "alarm_models.study.agreement",
        "alarm_models.study.bootstrap",
        "alarm_models.study.pairs",
        "alarm_models.recipe_files",
        "alarm_models.rewards",
        "alarm_client.trainers.texts",
        "alarm_client.trainers.verl",
        "alarm_client.trainers.slime",
        "alarm_client.trainers.skyrl_main",
        "alarm_client.trainers.skyrl_dense",
        "alarm_client.relay",
        "alarm_client.contrib.relay",
    ],
)
def test_public_module_is_importable(path: str) -> None:
    assert import_module(path).__doc__


def test_ray_ingress_import_path_is_kept() -> None:
    # It imports Ray, which is an extra.
    assert find_spec("alarm_service.ray.application") is not None
