"""Which release of a trainer is installed, where what a hook may do depends on it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version


def older_than(package: str, first: tuple[int, int]) -> str | None:
    """The installed version of a package if it is before `first`, else None."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        return None
    numbers = [int(number) for number in re.findall(r"\d+", installed)[:2]]
    return installed if tuple(numbers) < first else None
