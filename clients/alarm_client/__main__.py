"""`python -m alarm_client`: score completions from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from alarm_client.errors import AlarmError
from alarm_client.trainers._try import PLAIN, add_arguments, try_samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 1 if a sample got no reward, 2 for invalid arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m alarm_client",
        description=__doc__,
        epilog="`python -m alarm_client.trainers` lists the setting for each trainer; "
        "`python -m alarm_client.relay URL` retries on behalf of trainers that do not.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_arguments(
        commands.add_parser("try", help="score completions of a prompt and report missing fields")
    )
    options = parser.parse_args(arguments)
    try:
        return try_samples(options, PLAIN, lambda line: sys.stdout.write(f"{line}\n"))
    except (TypeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except AlarmError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
