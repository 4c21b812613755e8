"""Finds the processes of a local cluster."""

from pathlib import Path


def pids_of(application: str) -> list[int]:
    """Return the pids of an application's replicas, which are named after their actors."""
    return pids_of_actors(f"ServeReplica:{application}")


def pids_of_actors(name: str) -> list[int]:
    """Return the pids of actors whose names begin so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith(f"ray::{name}"):
            found.append(int(folder.name))
    return found
