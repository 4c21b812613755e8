"""A thin client of the ALaRM reward server."""

from alarm_client.async_client import AsyncAlarmClient
from alarm_client.client import AlarmClient
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProtocolError,
    SampleFailed,
    ServerFailed,
    StatusError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from alarm_client.offsets import PolicyTokens, token_offsets
from alarm_client.retries import Retries
from alarm_client.too_short import punish_too_short
from alarm_client.types import (
    AspectReward,
    Catalogue,
    Holistic,
    Limits,
    Overrides,
    Reward,
    RewardResult,
    Sample,
    SampleError,
    Score,
    ScoreResult,
    SegmentScore,
    Usage,
)

__all__ = [
    "AlarmClient",
    "AlarmConnectionError",
    "AlarmError",
    "AspectReward",
    "AsyncAlarmClient",
    "Catalogue",
    "DeadlineExceeded",
    "Holistic",
    "InvalidRequest",
    "Limits",
    "NotFound",
    "Overloaded",
    "Overrides",
    "PolicyTokens",
    "ProtocolError",
    "Retries",
    "Reward",
    "RewardResult",
    "Sample",
    "SampleError",
    "SampleFailed",
    "Score",
    "ScoreResult",
    "SegmentScore",
    "ServerFailed",
    "StatusError",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Usage",
    "punish_too_short",
    "token_offsets",
]
