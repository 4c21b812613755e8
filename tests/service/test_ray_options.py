from typing import Any

import pytest
from standin import recipe as recipe_of

from alarm_models.errors import SampleError
from alarm_service.engine.model_set import Catalog
from alarm_service.preflight import require_usable_ray
from alarm_service.ray.replica import ReplicaResources, deployment_configs
from alarm_service.settings import Settings, SettingsError

SHARE = ReplicaResources(replicas=2, most=4, queued_tokens=1000, num_cpus=1, num_gpus=0)
RM = {"kind": "sequence", "checkpoint": "a/b", "template": "{completion}"}


def test_ray_options_without_ray_flag_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"--replicas, --gpus-per-replica needs --ray"):
        require_usable_ray(Settings(replicas=2, gpus_per_replica=1))


def test_preflight_without_ray_options_needs_no_ray() -> None:
    require_usable_ray(Settings())


def test_preflight_without_ray_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alarm_service.preflight.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'alarm-service\[ray\]'"):
        require_usable_ray(Settings(ray=True))


def test_max_replicas_below_replicas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alarm_service.preflight.find_spec", lambda name: object())
    require_usable_ray(Settings(ray=True, replicas=4))
    with pytest.raises(SettingsError, match="--max-replicas 2 is less than --replicas 4"):
        require_usable_ray(Settings(ray=True, replicas=4, max_replicas=2))


def planned(settings: Settings, revision: str = "g") -> Any:
    recipe = recipe_of(
        models={"words": RM, "length": {"kind": "length"}},
        aspects={"length": {"model": "length"}},
    )
    return deployment_configs(Catalog([recipe]).models, settings, SHARE, revision)


def test_deployment_configs_are_of_neural_models_only() -> None:
    (plan,) = planned(Settings()).values()
    assert list(plan.recipe.models) == ["words"]
    assert plan.recipe.holistic.model == "words"
    assert not plan.recipe.aspects


def test_deployment_config_has_no_api_keys() -> None:
    (plan,) = planned(
        Settings(api_key=("secret",), admin_key=("secret",), set=("a.key=secret",))
    ).values()
    assert plan.settings.api_key == plan.settings.admin_key == ()
    assert "secret" not in plan.settings.model_dump_json()


def test_deployment_names_differ_between_model_sets() -> None:
    names = [planned(Settings(), one)["words"].name for one in ("one", "two")]
    assert names == ["alarm-one-words", "alarm-two-words"]


def test_sample_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(SampleError("too_long", "900 tokens, 512 are read")))
    assert (error.code, error.message) == ("too_long", "900 tokens, 512 are read")
