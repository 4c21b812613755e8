"""Prints the third-party requirements of the given manifests, with the extras in EXTRAS."""

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_NAME = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?")


def requirements(manifests: Sequence[Path], extras: Sequence[str]) -> list[str]:
    """Return the requirements of the manifests and extras, except for the manifests' own projects.

    Extras of their own projects (``alarm-models[text]``) are resolved.
    """
    projects = [tomllib.loads(file.read_text("utf-8"))["project"] for file in manifests]
    own = {project["name"]: project for project in projects}
    wanted: set[str] = set()

    def take(project: dict[str, Any], extras: Sequence[str]) -> None:
        for requirement in _asked(project, extras):
            named = _NAME.match(requirement)
            if named is None or named[1] not in own:
                wanted.add(requirement)
            else:
                take(own[named[1]], (named[2] or "").split(","))

    for project in projects:
        take(project, extras)
    return sorted(wanted)


def _asked(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    yield from project["dependencies"]
    for extra in extras:
        yield from project.get("optional-dependencies", {}).get(extra, ())


if __name__ == "__main__":
    found = requirements(
        [Path(one) for one in sys.argv[1:]], os.environ.get("EXTRAS", "traces").split(",")
    )
    sys.stdout.write("\n".join(found) + "\n")
