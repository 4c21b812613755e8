"""What the soak of groups calls a hang."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "group_soak.py"


@pytest.fixture(scope="module")
def group_soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("group_soak", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["group_soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hang_is_longer_than_timeout_and_scoring(group_soak: ModuleType) -> None:
    tally = group_soak.Tally(whole_s=[0.1, 8.0], member_s=[(20.0, "a"), (22.0, "b")])
    assert tally.hung(group_timeout_s=5.0, grace_s=10.0) == ["b: 22.0 s"]
    tally.whole_s.pop()
    assert tally.hung(group_timeout_s=5.0, grace_s=10.0) == ["a: 20.0 s", "b: 22.0 s"]


def test_time_before_a_retry_is_the_clients(group_soak: ModuleType) -> None:
    report = group_soak.Tally(longest_unsent_s=3.0, member_s=[(1.0, "a")]).report(5.0, 10.0)
    assert report["slowest_member_s"] == 1.0
    assert report["client"]["longest_unsent_s"] == 3.0
