"""What must be so before models can be put on a cluster; needs no Ray to say it."""

from __future__ import annotations

from importlib.util import find_spec

from alarm_service.settings import Settings, SettingsError

__all__ = ["require_usable_ray"]

#: The settings that mean nothing without a cluster.
_OF_RAY = (
    "ray_address",
    "replicas",
    "max_replicas",
    "queued_tokens_per_replica",
    "gpus_per_replica",
    "cpus_per_replica",
)


def require_usable_ray(settings: Settings) -> None:
    """Raise `SettingsError` where Ray is meant but not said, or said but not there."""
    given = [name for name in _OF_RAY if name in settings.model_fields_set]
    if not settings.ray:
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingsError(
                f"{flags} needs --ray; without it, --device cuda:0,cuda:1 has a replica on each GPU"
            )
        return
    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise SettingsError("--ray needs Ray Serve: pip install 'alarm-service[ray]'")
    if settings.max_replicas is not None and settings.max_replicas < settings.replicas:
        raise SettingsError(
            f"--max-replicas {settings.max_replicas} is less than --replicas {settings.replicas}"
        )
