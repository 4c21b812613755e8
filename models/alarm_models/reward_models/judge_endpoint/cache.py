"""Answers of judges stored on disk by the content of the request, bounded in bytes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from alarm_models.errors import CheckpointError

__all__ = ["AnswerCache", "request_key"]

_logger = logging.getLogger(__name__)

_FILE = "judge-answers.sqlite3"

#: How long a process waits for another one's write, in seconds, and how long it writes nothing
#: after it has waited in vain: each question would wait as long.
_BUSY_S, _PAUSE_S = 1.0, 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, answer TEXT NOT NULL, num_bytes INTEGER NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_use ON answers (used, num_bytes);
CREATE TABLE IF NOT EXISTS total (num_bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS add_bytes AFTER INSERT ON answers
BEGIN UPDATE total SET num_bytes = num_bytes + new.num_bytes; END;
CREATE TRIGGER IF NOT EXISTS remove_bytes AFTER DELETE ON answers
BEGIN UPDATE total SET num_bytes = num_bytes - old.num_bytes; END;
"""


def request_key(address: str, identity: str, body: Mapping[str, Any]) -> str:
    """Return the key of a request: a digest of the server, its model's identity and the body."""
    content = json.dumps([address, identity, body], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """A SQLite file of answers, which processes and restarts share.

    The answers that were used least recently are removed once their sum exceeds ``max_bytes``.
    Questions are stored as digests only. A cache that fails later, such as on a full disk, is
    logged once, and stores nothing.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._has_failed = False
        self._paused_until = 0.0
        path = Path(folder).expanduser()
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = path / _FILE
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(
                file, timeout=_BUSY_S, check_same_thread=False, isolation_level=None
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise CheckpointError(
                f"the cache of the judge's answers cannot be opened in {path}: {error}. Set "
                "`cache` to a folder that can be written, or remove it"
            ) from error

    async def get(self, key: str) -> Any:
        """Return the stored JSON of a request; None if there is none."""
        return await asyncio.to_thread(self._get, key)

    async def put(self, key: str, answer: Any) -> None:
        """Store the JSON of an answer."""
        await asyncio.to_thread(self._put, key, json.dumps(answer))

    async def remove(self, key: str) -> None:
        """Remove the answer to a request, if it is stored."""
        await asyncio.to_thread(self._remove, key)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def num_bytes(self) -> int:
        """Return the size of the stored answers."""
        with self._lock, closing(self._database.execute("SELECT num_bytes FROM total")) as rows:
            return int(rows.fetchone()[0])

    def _get(self, key: str) -> Any:
        with self._lock:
            try:
                rows = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,))
                row = rows.fetchone()
                if row is None:
                    return None
                answer = json.loads(row[0])
            except (sqlite3.Error, ValueError, RecursionError) as error:
                self._tell(error)
                return None
            if self._may_write:
                try:
                    self._database.execute(
                        "UPDATE answers SET used = ? WHERE key = ?", (time.time(), key)
                    )
                except sqlite3.Error as error:  # on a full disk, stored answers can still be read
                    self._tell(error)
            return answer

    def _put(self, key: str, answer: str) -> None:
        num_bytes = len(key) + len(answer.encode())
        if num_bytes > self._max_bytes:
            return
        with self._lock:
            if not self._may_write:
                return
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    self._database.execute("DELETE FROM answers WHERE key = ?", (key,))
                    self._database.execute(
                        "INSERT INTO answers VALUES (?, ?, ?, ?)",
                        (key, answer, num_bytes, time.time()),
                    )
                    self._evict()
                finally:
                    self._database.execute("COMMIT")
            except sqlite3.Error as error:
                self._tell(error)

    def _remove(self, key: str) -> None:
        with self._lock:
            try:
                self._database.execute("DELETE FROM answers WHERE key = ?", (key,))
            except sqlite3.Error as error:
                self._tell(error)

    def _evict(self) -> None:
        """Remove the answers that were used least recently until the rest fits."""
        (total,) = self._database.execute("SELECT num_bytes FROM total").fetchone()
        if total <= self._max_bytes:
            return
        keys = []
        for key, num_bytes in self._database.execute(
            "SELECT key, num_bytes FROM answers ORDER BY used"
        ):
            if total <= self._max_bytes:
                break
            keys.append((key,))
            total -= num_bytes
        self._database.executemany("DELETE FROM answers WHERE key = ?", keys)

    @property
    def _may_write(self) -> bool:
        return time.monotonic() >= self._paused_until

    def _tell(self, error: Exception) -> None:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            self._paused_until = time.monotonic() + _PAUSE_S
        if not self._has_failed:
            self._has_failed = True
            _logger.warning("the cache of the judge's answers failed: %s", error)
