"""The files of a capture: appended in whole lines, rotated by size, the oldest removed."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from alarm_service.captures.lines import FILES

__all__ = ["CaptureFiles"]

#: A capture has about this many files, so that removing the oldest loses little.
_NUM_FILES = 16


class CaptureFiles:
    """Appends lines to files of a folder, whose size stays within ``max_bytes``.

    Other processes may write to the same folder, each to files of its own; files are readable by
    their owner only. For use on one thread.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self.max_file_bytes = max_bytes // _NUM_FILES
        self._file: int | None = None
        self._size = 0

    def append(self, lines: bytes) -> None:
        """Append whole lines of at most `max_file_bytes`; raise `OSError`, having written none."""
        file = self._file_for(len(lines))
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self._size)
            self.close()
            raise
        self._size += len(lines)

    def close(self) -> None:
        """Close the current file; a further line opens another."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                os.close(file)

    def _file_for(self, num_bytes: int) -> int:
        if self._file is not None:
            if not _is_removed(self._file) and self._size + num_bytes <= self.max_file_bytes:
                return self._file
            self.close()
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        self._remove_oldest()
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9))
        name = f"capture-{stamp}.{now % 10**9:09d}Z-{secrets.token_hex(4)}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self._folder / name, flags, 0o600)
        self._size = 0
        return self._file

    def _remove_oldest(self) -> None:
        """Make room for one more file."""
        sizes = {}
        for file in sorted(self._folder.glob(FILES)):
            with suppress(FileNotFoundError):  # another process removed it
                sizes[file] = file.stat().st_size
        total = sum(sizes.values())
        for file, size in sizes.items():
            if total + self.max_file_bytes <= self._max_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size


def _is_removed(file: int) -> bool:
    """Whether an open file has no name any more, or its disk is gone."""
    try:
        return os.fstat(file).st_nlink == 0
    except OSError:
        return True
