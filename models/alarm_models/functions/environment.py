"""The environment of a function's process: this process's, without its keys."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

__all__ = ["without_secrets"]

#: Words of a variable's name that say that its value is a secret, or leads to one.
_SECRET = re.compile(
    r"(^|_)(\w*(KEY|KEYS|APIKEY|TOKEN|SECRET|SECRETS|PASSWORD)|KEYS?|TOKENS?|PASSWD|PASSPHRASE"
    r"|CREDENTIALS?|AUTH|PAT)(_|$)",
    re.IGNORECASE,
)

#: What may hold keys of models on other servers (``models.NAME.api_key=...``).
_SETTINGS = frozenset({"ALARM_SET"})


def without_secrets(passed: Collection[str] = ()) -> Mapping[str, str]:
    """Return the variables of this process, less those that hold keys and are not ``passed``."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in passed or not (_SECRET.search(name) or name.upper() in _SETTINGS)
    }
