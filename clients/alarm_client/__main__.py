"""`python -m alarm_client`: score some completions from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from alarm_client.errors import AlarmError
from alarm_client.trainers._try import PLAIN, add_arguments, try_samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 where there is no reward, 2 where the arguments are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m alarm_client",
        description=__doc__,
        epilog="`python -m alarm_client.trainers` says what to write in a trainer; "
        "`python -m alarm_client.relay URL` asks again for trainers that ask once.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_arguments(commands.add_parser("try", help="score a prompt's completions, say what misses"))
    given = parser.parse_args(arguments)
    try:
        return try_samples(given, PLAIN, lambda line: sys.stdout.write(f"{line}\n"))
    except (TypeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except AlarmError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
