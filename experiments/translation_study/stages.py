"""Stages of a run: each writes one folder, and is skipped once its record is there."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from translation_study.settings import Sizes

__all__ = ["Run", "versions"]

_RECORD = "stage.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "trl", "datasets", "accelerate", "peft",
             "sacrebleu", "numpy", "harper-py", "lingua-language-detector", "alarm-models",
             "alarm-service", "alarm-client")  # fmt: skip


class Run:
    """A folder with the stages of one run; refuses a folder that was begun with other sizes."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.json"
        if settings.exists():
            begun = json.loads(settings.read_text())
            changed = sorted(
                name for name, value in sizes.as_json().items() if begun.get(name) != value
            )
            if changed:
                raise SystemExit(
                    f"{folder} was begun with other settings ({', '.join(changed)}): choose "
                    "another --out, or delete it"
                )
        settings.write_text(json.dumps(sizes.as_json(), indent=1) + "\n")

    def stage(self, name: str, work: Callable[[Path], dict[str, Any] | None]) -> Path:
        """Do a stage unless it is done; its folder is emptied first. Returns the folder."""
        folder = self.folder / name
        record = folder / _RECORD
        if record.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        started, spent = time.time(), time.process_time()
        found = work(folder) or {}
        known = {
            "stage": name,
            "seconds": round(time.time() - started, 1),
            "cpu_seconds": round(time.process_time() - spent, 1),
            "found": found,
            "versions": versions(),
        }
        record.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {name}: {known['seconds']} s {found}", flush=True)
        return folder

    def found(self, name: str) -> dict[str, Any]:
        """Return what a stage that is done has found."""
        known: dict[str, Any] = json.loads((self.folder / name / _RECORD).read_text())["found"]
        return known

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all stages, in the order in which they ended."""
        files = sorted(self.folder.rglob(_RECORD), key=lambda file: file.stat().st_mtime)
        return [json.loads(file.read_text()) for file in files]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
