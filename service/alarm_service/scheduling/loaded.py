"""A model as it was loaded: what waits for the devices waits for one of these."""

from __future__ import annotations

from dataclasses import dataclass

from alarm_models.rewards import DirectModel, Model, RewardModel
from alarm_service.catalog import ServedModel

__all__ = ["Loaded"]


@dataclass(frozen=True, eq=False, slots=True)
class Loaded:
    """One model, loaded; it is equal to none but itself, so that two of one name never mix.

    ``replicas`` are the model on each device, in their order; one that needs no device is there
    once. ``budget`` is the tokens of its batches where it was measured, ``since`` the time when it
    was loaded, in seconds of the epoch.
    """

    served: ServedModel
    replicas: tuple[Model, ...]
    budget: int | None = None
    since: float = 0.0

    @property
    def name(self) -> str:
        """What callers, logs and metrics call it."""
        return self.served.key

    @property
    def model(self) -> Model:
        """The first replica, which stands for all."""
        return self.replicas[0]

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides its scores."""
        return self.model.fingerprint

    @property
    def hidden_size(self) -> int | None:
        """The width of a network that attends to all of a sample; None where that is not known."""
        config = getattr(self.model, "config", None) if self.replicas else None
        if getattr(config, "sliding_window", None) or getattr(config, "attention_window", None):
            return None
        size = getattr(config, "hidden_size", None)
        return size if isinstance(size, int) else None

    def on_device(self, index: int) -> RewardModel:
        """Return the replica on a device; raise `TypeError` where the model needs none."""
        model = self.replicas[index]
        if isinstance(model, DirectModel):
            raise TypeError(f"model {self.name!r} runs on no device")
        return model
