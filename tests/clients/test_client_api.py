"""What the package offers, and what it costs to import."""

import importlib.metadata
import subprocess
import sys

import alarm_client


def test_the_public_names_are_these():
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
        "punish_too_short",
        "token_offsets",
    ]
    assert all(hasattr(alarm_client, name) for name in alarm_client.__all__)


def test_both_clients_have_the_same_calls():
    def calls(client: type) -> set[str]:
        return {name for name in vars(client) if not name.startswith("_")}

    blocking = calls(alarm_client.AlarmClient) - {"close"}
    assert blocking == {"score", "hierarchical_reward", "models", "wait_ready"}
    assert calls(alarm_client.AsyncAlarmClient) - {"aclose"} == blocking


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'httpx', 'asyncio', 'ssl', 'numpy', 'torch', 'pydantic', 'transformers'}"
    code = f"import sys, alarm_client; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_version_is_the_packages():
    assert alarm_client.__version__ == importlib.metadata.version("alarm-client")
