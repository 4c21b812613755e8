"""SkyRL's entry point with token rewards, for `trainer.override_entrypoint`."""

from __future__ import annotations

from alarm_client.trainers.skyrl_main import train

__all__ = ["main"]


def main() -> None:
    """Train single-turn with `environment.env_class=alarm` and token rewards."""
    train(is_dense=True)
