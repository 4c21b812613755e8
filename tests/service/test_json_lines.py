"""JSON lines files, and atomic replacement of output files."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from alarm_service.json_lines import (
    FileError,
    parsed_line,
    read_lines,
    replacing,
    require_other_file,
    require_writable,
    write_whole,
)


def lines(content: bytes, max_bytes: int = 100) -> list[tuple[int, bytes | None]]:
    return list(read_lines(io.BytesIO(content), max_bytes))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"a\nb", [(1, b"a\n"), (2, b"b")]),
        (b"a\r\n\r\nb\r\n", [(1, b"a\r\n"), (3, b"b\r\n")]),
        (b"\xef\xbb\xbfa\nb\n", [(1, b"a\n"), (2, b"b\n")]),
        (b"\xef\xbb\xbf\na\n", [(2, b"a\n")]),
        ("a\u2028b\u0085c\x0cd\n".encode(), [(1, "a\u2028b\u0085c\x0cd\n".encode())]),
        (b"x" * 100 + b"\ny", [(1, b"x" * 100 + b"\n"), (2, b"y")]),
        (b"x" * 101 + b"\ny", [(1, None), (2, b"y")]),
        (b"x" * (3 << 20) + b"\ny", [(1, None), (2, b"y")]),
        (b"x" * (3 << 20), [(1, None)]),
    ],
)
def test_read_lines_yields_line_numbers(content: bytes, found: list[object]) -> None:
    assert lines(content) == found


@pytest.mark.parametrize(
    "line",
    [None, b"{", b"\x00", b'{\x00"a": 1}', b"\xff", b"[" * 100_000, b"9" * 5000, b"\xef\xbb\xbf1"],
)
def test_parsed_line_that_is_not_json_raises_value_error(line: bytes | None) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parsed_line(line)


def test_replacing_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as out:
        out.write(b"new")
        out.flush()
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def write_and_fail(file: Path, content: bytes, kept: Callable[[Path], None] | None = None) -> None:
    with replacing(file, kept) as out:
        out.write(content)
        raise KeyboardInterrupt


def test_replacing_keeps_the_file_if_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(file, b"new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"some", b""])
def test_replacing_keeps_partial_output_if_requested(content: bytes, tmp_path: Path) -> None:
    kept: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "file", content, kept.append)
    assert [path.read_bytes() for path in kept] == [content] * bool(content)
    assert list(tmp_path.iterdir()) == kept


def test_replacing_keeps_link_and_permissions(tmp_path: Path) -> None:
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_whole(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_replacing_new_file_has_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_whole(tmp_path / "file", b"new")
    modes = {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert len(modes) == 1


def test_replacing_hard_link_keeps_its_content(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("old")
    os.link(file, other)
    write_whole(file, "new")
    assert (file.read_text(), other.read_text()) == ("new", "old")


def test_replacing_file_that_cannot_be_renamed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("old and long")

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)  # as a file that is mounted into a container
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_replacing_device_is_written_directly() -> None:
    with replacing(Path("/dev/null")) as out:
        out.write(b"gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_require_writable_refuses_first(tmp_path: Path) -> None:
    for target, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "file", "there is no folder"),
    ):
        with pytest.raises(FileError, match=told):
            require_writable(target)
    for target in (None, Path("-"), Path("/dev/null"), tmp_path / "file"):
        require_writable(target)


def test_require_other_file_refuses_an_input_by_any_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    (tmp_path / "link").symlink_to(file)
    os.link(file, tmp_path / "hard")
    for name in ("file", "link", "hard", "../" + tmp_path.name + "/file"):
        with pytest.raises(FileError, match="is the input, which would be lost"):
            require_other_file(tmp_path / name, [tmp_path / "none", file], "the input")
    require_other_file(tmp_path / "new", [file], "the input")
