"""SkyRL's entry point with `alarm` among its environments, for `trainer.override_entrypoint`."""

from __future__ import annotations

import os
import sys
from typing import Any

from alarm_client.trainers.skyrl import AlarmGenerator, register

__all__ = ["experiment", "main", "train"]

_OVERRIDE = "trainer.override_entrypoint="


def main() -> None:
    """Train as SkyRL's own entry point does; `environment.env_class=alarm` gives the rewards."""
    train(is_dense=False)


def train(is_dense: bool) -> None:
    """Train in a Ray worker by the command line, with this process's ALARM_ variables."""
    import ray
    from skyrl.train.config import SkyRLTrainConfig
    from skyrl.train.utils import initialize_ray, validate_cfg

    given = [argument for argument in sys.argv[1:] if not argument.startswith(_OVERRIDE)]
    config = SkyRLTrainConfig.from_cli_overrides(given)
    validate_cfg(config)
    initialize_ray(config)
    settings = {name: value for name, value in os.environ.items() if name.startswith("ALARM_")}
    remote = ray.remote(num_cpus=1, runtime_env={"env_vars": settings})(_run)
    ray.get(remote.remote(config, is_dense))


def experiment(is_dense: bool) -> type[Any]:
    """SkyRL's experiment; a dense one wraps its generator for token rewards."""
    from skyrl.train.entrypoints.main_base import BasePPOExp

    if not is_dense:
        return BasePPOExp  # type: ignore[no-any-return]  # SkyRL is not there to be checked

    def get_generator(self: Any, cfg: Any, tokenizer: Any, inference_engine_client: Any) -> Any:
        inner = BasePPOExp.get_generator(self, cfg, tokenizer, inference_engine_client)
        return AlarmGenerator(inner, tokenizer)

    return type("DenseExp", (BasePPOExp,), {"get_generator": get_generator})


def _run(config: Any, is_dense: bool) -> None:
    register("alarm", is_judged=not is_dense)
    experiment(is_dense)(config).run()
