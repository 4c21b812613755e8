"""Prints what the given manifests depend on, save one another, with the extra `traces`."""

import sys
import tomllib
from pathlib import Path


def requirements(manifests: list[Path]) -> list[str]:
    """Return the requirements of all manifests that none of them meets itself."""
    projects = [tomllib.loads(file.read_text("utf-8"))["project"] for file in manifests]
    own = {project["name"] for project in projects}
    wanted = {
        requirement
        for project in projects
        for requirement in (
            *project["dependencies"],
            *project.get("optional-dependencies", {}).get("traces", ()),
        )
    }
    return sorted(wanted - own)


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements([Path(one) for one in sys.argv[1:]])) + "\n")
