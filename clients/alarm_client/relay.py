"""Alias of `alarm_client.contrib.relay`: keeps `python -m alarm_client.relay URL` working."""

from __future__ import annotations

import sys

from alarm_client.contrib.relay import Relay, main

__all__ = ["Relay", "main"]

if __name__ == "__main__":
    sys.exit(main())
