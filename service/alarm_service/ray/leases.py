"""Who uses which deployment: one that nobody uses any more is to be removed."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Leases"]


@dataclass(slots=True)
class Leases:
    """Names of deployments, each with its holders."""

    _holders: dict[str, set[str]] = field(default_factory=dict)

    def take(self, name: str, holder: str) -> bool:
        """Note a holder of the name; say whether it is the first."""
        is_first = name not in self._holders
        self._holders.setdefault(name, set()).add(holder)
        return is_first

    def release(self, name: str, holder: str) -> bool:
        """Forget a holder of the name; say whether it was the last."""
        holders = self._holders.get(name, set())
        if holder not in holders:
            return False
        holders.discard(holder)
        if holders:
            return False
        del self._holders[name]
        return True

    def held_by(self, holder: str) -> list[str]:
        """Return the names of a holder."""
        return [name for name, holders in self._holders.items() if holder in holders]
