"""SkyRL's entry point with token rewards, for `trainer.override_entrypoint`."""

from __future__ import annotations

from alarm_client.trainers.skyrl_main import train

__all__ = ["main"]


def main() -> None:
    """Train with `environment.env_class=alarm` for one turn, its rewards laid on its tokens."""
    train(is_dense=True)
