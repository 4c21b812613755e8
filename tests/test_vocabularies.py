"""Tokenizers of tests are the same in every run, whichever way they are trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_PRINT = """
import sys
sys.path[:0] = sys.argv[2:]
import client_tokenizers
print(getattr(client_tokenizers, sys.argv[1])().backend_tokenizer.to_str())
"""


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "wordpiece"])
def test_two_processes_train_the_same_tokenizer(kind: str) -> None:
    command = [sys.executable, "-c", _PRINT, kind, str(HERE), str(HERE / "clients")]
    first, second = (subprocess.check_output(command) for _ in range(2))
    assert first == second


def test_no_test_uses_a_trainer_whose_order_is_random() -> None:
    names = ("Unigram" + "Trainer", "WordPiece" + "Trainer")
    found = [
        path.relative_to(HERE)
        for path in HERE.rglob("*.py")
        if any(name in path.read_text("utf-8") for name in names)
    ]
    assert found == []
