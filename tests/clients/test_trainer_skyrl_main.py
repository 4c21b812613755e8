"""SkyRL's entry points, as `trainer.override_entrypoint` calls them in 0.3.0."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from alarm_client.trainers import skyrl_dense, skyrl_main
from alarm_client.trainers.skyrl import AlarmGenerator

ARGUMENTS = ["trainer.override_entrypoint=alarm_client.trainers.skyrl_main", "trainer.epochs=1"]


class BasePPOExp:  # skyrl/train/entrypoints/main_base.py
    def __init__(self, cfg):
        self.cfg = cfg

    def get_generator(self, cfg, tokenizer, inference_engine_client):
        return f"{cfg} {inference_engine_client}"

    def run(self):
        self.cfg.ran.append(self.get_generator("c", None, "i"))


@pytest.fixture
def ran(monkeypatch):
    """What an experiment ran, and how Ray was asked to run it, in this process."""
    record = SimpleNamespace(ran=[], arguments=None, options=None, registered=None)

    def from_cli_overrides(arguments):
        record.arguments = arguments
        return record

    def remote(**options):
        record.options = options
        return lambda function: SimpleNamespace(remote=function)

    def register(id, entry_point, kwargs):
        record.registered = (id, kwargs)

    config = SimpleNamespace(from_cli_overrides=from_cli_overrides)
    modules = {
        "ray": {"remote": remote, "get": lambda done: done},
        "skyrl.train.config": {"SkyRLTrainConfig": config},
        "skyrl.train.utils": {"initialize_ray": lambda cfg: None, "validate_cfg": lambda cfg: None},
        "skyrl.train.entrypoints.main_base": {"BasePPOExp": BasePPOExp},
        "skyrl_gym.envs": {"register": register},
    }
    packages = ("skyrl", "skyrl.train", "skyrl.train.entrypoints", "skyrl_gym")
    for name in (*packages, *modules):
        module = ModuleType(name)
        vars(module).update(modules.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["main_base.py", *ARGUMENTS])
    monkeypatch.setenv("ALARM_URL", "http://rewards:8000")
    return record


def test_skyrl_main_environment_gives_scalar_rewards(ran):
    skyrl_main.main()
    assert ran.registered == ("alarm", {"is_judged": True})
    assert ran.ran == ["c i"]


def test_skyrl_main_removes_own_command_line_arguments(ran):
    skyrl_main.main()
    assert ran.arguments == ["trainer.epochs=1"]


def test_skyrl_main_passes_alarm_variables_to_ray_worker(ran):
    skyrl_main.main()
    variables = ran.options["runtime_env"]["env_vars"]
    assert variables["ALARM_URL"] == "http://rewards:8000"
    assert all(name.startswith("ALARM_") for name in variables)


def test_skyrl_main_dense_wraps_the_generator(ran):
    skyrl_dense.main()
    assert ran.registered == ("alarm", {"is_judged": False})
    (generator,) = ran.ran
    assert isinstance(generator, AlarmGenerator)
    assert generator.generator == "c i"
