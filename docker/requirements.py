"""Prints what the given manifests depend on, save one another, with the extras of EXTRAS."""

import os
import sys
import tomllib
from pathlib import Path


def requirements(manifests: list[Path], extras: list[str]) -> list[str]:
    """Return the requirements of all manifests, and of these extras, that none meets itself."""
    projects = [tomllib.loads(file.read_text("utf-8"))["project"] for file in manifests]
    own = {project["name"] for project in projects}
    wanted = {
        requirement
        for project in projects
        for requirement in (
            *project["dependencies"],
            *(
                one
                for extra in extras
                for one in project.get("optional-dependencies", {}).get(extra, ())
            ),
        )
    }
    return sorted(wanted - own)


if __name__ == "__main__":
    extras = os.environ.get("EXTRAS", "traces").split(",")
    found = requirements([Path(one) for one in sys.argv[1:]], extras)
    sys.stdout.write("\n".join(found) + "\n")
