"""Writes served samples and their results to files, on a thread of its own."""

from __future__ import annotations

import hashlib
import random
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from alarm_models.combination.all_rules import RuleParams
from alarm_models.errors import SampleError
from alarm_models.recipe.schema import Overrides
from alarm_models.types import Reward, Sample, Score, num_characters
from alarm_service.captures.files import CaptureFiles
from alarm_service.captures.lines import CapturedRewards, CapturedScores
from alarm_service.observability.metrics import CaptureMetrics

__all__ = ["CaptureOptions", "SampleCapture"]

_log = structlog.get_logger()

#: Lines are written in pieces of about this many bytes.
_PIECE_BYTES = 1 << 20

#: Seconds between attempts to write to a disk that failed, and between log lines about losses.
_RETRY_S = 1.0
_LOG_PERIOD_S = 60.0

#: What a queued sample takes besides its texts, in characters.
_SAMPLE_CHARS = 1000

Captured = CapturedRewards | CapturedScores
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """Where samples are captured, and how many.

    ``share`` is the share of requests, or of groups that come in several requests.
    """

    folder: Path
    max_bytes: int = 1 << 30
    share: float = 1.0
    hashes_texts: bool = False
    max_queued_chars: int = 64 << 20


class SampleCapture:
    """Captures the samples that an engine answers; never raises and never waits for the disk.

    What does not fit into the queue or cannot be written is dropped, counted and logged.
    """

    def __init__(self, options: CaptureOptions, metrics: CaptureMetrics) -> None:
        self._options = options
        self._metrics = metrics
        self._files = CaptureFiles(options.folder, options.max_bytes)
        self._process = secrets.token_hex(4)
        self._num_requests = 0
        self._salt = secrets.token_bytes(16)
        self._changed = threading.Condition()
        self._queue: deque[tuple[Captured, int]] = deque()
        self._queued_chars = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._blocked_until = 0.0
        self._dropped: Counter[str] = Counter()
        self._last_logged = -_LOG_PERIOD_S

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def close(self, timeout_s: float = 5) -> None:
        """Write what is queued, but give up after a while."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._changed:
            left = sum(len(captured.samples) for captured, _ in self._queue)
        self._drop("queue", left)

    def put_rewards(
        self,
        samples: Sequence[Sample],
        outcomes: Sequence[Reward | SampleError],
        recipe: str,
        aspects: Sequence[str],
        fingerprint: str,
        overrides: Overrides,
        params: RuleParams,
    ) -> None:
        """Capture the rewards of one request."""
        chosen, found = self._chosen(samples, outcomes)
        request = self._request_name()
        self._put(
            CapturedRewards(request, chosen, found, recipe, aspects, fingerprint, overrides, params)
        )

    def put_scores(
        self,
        samples: Sequence[Sample],
        outcomes: Sequence[Score | SampleError],
        model: str,
        fingerprint: str,
    ) -> None:
        """Capture the scores of one request."""
        chosen, found = self._chosen(samples, outcomes)
        self._put(CapturedScores(self._request_name(), chosen, found, model, fingerprint))

    def _request_name(self) -> str:
        self._num_requests += 1
        return f"{self._process}-{self._num_requests}"

    def _chosen(
        self, samples: Sequence[Sample], outcomes: Sequence[_Outcome]
    ) -> tuple[list[Sample], list[_Outcome]]:
        """Select whole requests at random, and groups of several requests by their names."""
        share = self._options.share
        if share >= 1:
            return list(samples), list(outcomes)
        is_request_chosen = random.random() < share
        at = [
            index
            for index, sample in enumerate(samples)
            if (
                is_request_chosen
                if sample.group is None or sample.group_size is None
                else self._place(sample.group) < share
            )
        ]
        return [samples[index] for index in at], [outcomes[index] for index in at]

    def _place(self, group: str) -> float:
        """Return the same number from 0 to 1 whenever a group is seen by this process."""
        name = group.encode(errors="backslashreplace")
        digest = hashlib.blake2b(name, digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest) / 2**64

    def _put(self, captured: Captured) -> None:
        if not captured.samples:
            return
        num_chars = sum(map(_num_chars, captured.samples))
        with self._changed:
            # One that is larger than the queue is taken too, but alone.
            is_full = self._queued_chars + num_chars > self._options.max_queued_chars
            is_taken = not self._is_closing and not (is_full and self._queued_chars)
            if is_taken:
                self._queue.append((captured, num_chars))
                self._queued_chars += num_chars
                self._changed.notify()
        if not is_taken:
            self._drop("queue", len(captured.samples))

    def _drop(self, reason: str, num: int, error: OSError | None = None) -> None:
        """Count lost samples, and log them once in a while."""
        if not num:
            return
        self._metrics.count_dropped(reason, num)
        with self._changed:
            self._dropped[reason] += num
            now = time.monotonic()
            if now - self._last_logged < _LOG_PERIOD_S:
                return
            self._last_logged = now
            lost, self._dropped = dict(self._dropped), Counter()
        told = {} if error is None else {"error": str(error)}
        _log.warning("samples not captured", folder=str(self._options.folder), **lost, **told)

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            captured, num_chars = taken
            try:
                self._write(captured)
            except Exception:  # the thread goes on with the next request
                _log.exception("capture failed")
                self._drop("failed", len(captured.samples))
            with self._changed:
                self._queued_chars -= num_chars
            del taken, captured
        self._files.close()

    def _next(self) -> tuple[Captured, int] | None:
        """Wait for a request; None once everything is written and the capture is closing."""
        with self._changed:
            while not self._queue:
                if self._is_closing:
                    return None
                self._changed.wait()
            return self._queue.popleft()

    def _write(self, captured: Captured) -> None:
        lines = captured.lines(hashes_texts=self._options.hashes_texts)
        for piece, num_lines in self._pieces(lines):
            if time.monotonic() < self._blocked_until:
                self._drop("disk", num_lines)
                continue
            try:
                self._files.append(piece)
            except OSError as error:
                self._blocked_until = time.monotonic() + _RETRY_S
                self._drop("disk", num_lines, error)
            else:
                self._metrics.count_captured(num_lines)

    def _pieces(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
        """Join lines to pieces of whole lines, each with their number."""
        most = min(_PIECE_BYTES, self._files.max_file_bytes)
        piece: list[bytes] = []
        size = 0
        for line in lines:
            if len(line) > self._files.max_file_bytes:
                self._drop("too_large", 1)
                continue
            if piece and size + len(line) > most:
                yield b"".join(piece), len(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line)
        if piece:
            yield b"".join(piece), len(piece)


def _num_chars(sample: Sample) -> int:
    offsets = () if sample.token_offsets is None else sample.token_offsets
    return _SAMPLE_CHARS + num_characters(sample) + 16 * len(offsets)
