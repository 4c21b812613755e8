"""The replicas of a cluster on this machine, as processes."""

from pathlib import Path


def pids_of(application: str) -> list[int]:
    """The processes of an application's replicas; Ray gives them their actors' names."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith(f"ray::ServeReplica:{application}"):
            found.append(int(folder.name))
    return found
