"""Public names of the package, and the cost of its import."""

import importlib.metadata
import subprocess
import sys

import pytest

import alarm_client
from alarm_client.trainers.__main__ import WHAT_TO_WRITE


def test_public_names_are_pinned():
    assert alarm_client.__all__ == [
        "AlarmClient",
        "AlarmConnectionError",
        "AlarmError",
        "AspectReward",
        "Aspects",
        "AsyncAlarmClient",
        "Catalogue",
        "DeadlineExceeded",
        "Holistic",
        "Id",
        "InvalidRequest",
        "JudgeUsage",
        "Limits",
        "Message",
        "NotFound",
        "Offsets",
        "OnError",
        "Overloaded",
        "Overrides",
        "PolicyTokens",
        "ProtocolError",
        "Retries",
        "Reward",
        "RewardResult",
        "Rule",
        "Sample",
        "SampleError",
        "SampleFailed",
        "SampleLike",
        "Score",
        "ScoreResult",
        "SegmentScore",
        "ServerFailed",
        "Shaping",
        "Span",
        "StatusError",
        "Text",
        "Tokenizer",
        "TooLarge",
        "Unauthorized",
        "Unavailable",
        "Usage",
        "__version__",
        "message_offsets",
        "punish_too_short",
        "token_offsets",
    ]
    assert all(hasattr(alarm_client, name) for name in alarm_client.__all__)


def test_sync_and_async_clients_have_the_same_calls():
    def calls(client: type) -> set[str]:
        return {name for name in vars(client) if not name.startswith("_")}

    blocking = calls(alarm_client.AlarmClient) - {"close"}
    assert blocking == {"score", "hierarchical_reward", "models", "sleep", "wait_ready", "wake"}
    assert calls(alarm_client.AsyncAlarmClient) - {"aclose"} == blocking


def modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_import_of_the_package_loads_nothing_heavy():
    heavy = {"httpx", "asyncio", "ssl", "numpy", "torch", "pydantic", "transformers"}
    assert not heavy & modules_loaded_by("import alarm_client")


@pytest.mark.parametrize("trainer", sorted(WHAT_TO_WRITE))
def test_import_of_a_hook_loads_no_padding_check_and_no_relay(trainer):
    tools = {"_padding_check", "_try", "__main__"}
    loaded = modules_loaded_by(f"import alarm_client.trainers.{trainer}")
    assert not loaded & {f"alarm_client.trainers.{name}" for name in tools}
    assert not loaded & {"alarm_client.contrib.relay", "alarm_client.relay", "http.server"}


def test_version_equals_package_metadata():
    assert alarm_client.__version__ == importlib.metadata.version("alarm-client")
