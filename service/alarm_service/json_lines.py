"""JSON lines: reads files or standard input, and replaces output files atomically."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from alarm_models.errors import AlarmModelsError

__all__ = [
    "STANDARD",
    "FileError",
    "Line",
    "opened",
    "parsed_line",
    "read_lines",
    "replacing",
    "require_other_file",
    "require_writable",
    "write_whole",
]

#: The path that means standard input or output.
STANDARD = Path("-")

#: As much as a request's body may have.
_MAX_BYTES = 64 << 20

_BOM = b"\xef\xbb\xbf"

#: A line's number, and its bytes; None for one that is too long to be read.
Line = tuple[int, bytes | None]


class FileError(AlarmModelsError):
    """A file cannot be read or written; the message names it and the reason."""


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open a file, a pipe, or for ``-`` standard input; raise `OSError`."""
    if file == STANDARD:
        if sys.stdin is None:
            raise FileError("standard input is closed: name a file to read")
        yield sys.stdin.buffer
        return
    with file.open("rb") as lines:
        yield lines


def read_lines(source: BinaryIO, max_bytes: int = _MAX_BYTES) -> Iterator[Line]:
    """Yield the lines that are not blank, with their numbers; reads each byte once.

    A byte order mark at the beginning is skipped.
    """
    number = 0
    while line := source.readline(max_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > max_bytes and not line.endswith(b"\n"):
            _skip_line(source)
            yield number, None
        elif line.strip():
            yield number, line


def _skip_line(source: BinaryIO) -> None:
    while (part := source.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def parsed_line(line: bytes | None) -> Any:
    """Return a line's JSON value; raise `ValueError` that says why it is not JSON."""
    if line is None:
        raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
    try:
        return json.loads(line.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_writable(target: Path | None) -> None:
    """Raise `FileError` if a file could not be written; called before long work."""
    if target == STANDARD and sys.stdout is None:
        raise FileError("standard output is closed: name a file to write")
    if target is None or target == STANDARD or _is_stream(target):
        return
    real = Path(os.path.realpath(target))
    if real.is_dir():
        raise FileError(f"{target} is a folder: name a file to write")
    if not real.parent.is_dir():
        raise FileError(f"{target} cannot be written: there is no folder {real.parent}")
    is_there = real.exists()
    if not os.access(real if is_there else real.parent, os.W_OK):
        raise FileError(f"{target} cannot be written: permission denied")


def require_other_file(target: Path | None, others: Iterable[Path], what: str) -> None:
    """Raise `FileError` where a file that is to be written is one of others, by whatever name."""
    if target is None or target == STANDARD or _is_stream(target):
        return
    for other in others:
        with suppress(OSError):
            if os.path.samefile(target, other):
                raise FileError(f"{target} is {what}, which would be lost: name another file")


@contextmanager
def replacing(target: Path, kept: Callable[[Path], object] | None = None) -> Iterator[IO[bytes]]:
    """Yield a file that replaces the target when the block ends; raise `OSError`.

    Until then the target is unchanged and may be read. If the block fails, the partial output is
    deleted, or kept in a file whose path is passed to ``kept``. Symbolic links and the target's
    permissions are preserved. Pipes and devices are written directly.
    """
    if target == STANDARD:
        if sys.stdout is None:
            raise FileError("standard output is closed: name a file to write")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if _is_stream(target):
        with target.open("wb") as stream:
            yield stream
        return
    real = Path(os.path.realpath(target))
    draft, path = _draft(real)
    try:
        with draft:
            yield draft
            draft.flush()
            os.fsync(draft.fileno())
        _put_in_place(path, real)
    except BaseException:
        with suppress(OSError):
            if kept is not None and path.stat().st_size:
                kept(path)
            else:
                path.unlink()
        raise


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file atomically."""
    with replacing(target) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def _is_stream(target: Path) -> bool:
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _draft(real: Path) -> tuple[IO[bytes], Path]:
    if real.is_dir():
        raise IsADirectoryError(None, "Is a folder", str(real))
    # Beside it, so that it can be renamed; else where there is space, to be copied.
    for folder in (real.parent, None):
        try:
            number, name = tempfile.mkstemp(".part", f"{real.name}.", folder)
        except PermissionError:
            if not real.exists():
                raise
        else:
            return os.fdopen(number, "wb"), Path(name)
    raise PermissionError(None, "Permission denied", str(real))


def _put_in_place(path: Path, real: Path) -> None:
    try:
        mode = stat.S_IMODE(real.stat().st_mode)
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    os.chmod(path, mode)
    if path.parent == real.parent:
        try:
            os.replace(path, real)
        except OSError:  # a mounted file cannot be renamed, only written
            if not real.exists():
                raise
        else:
            return
    shutil.copyfile(path, real)
    path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
