"""Strict parsing of responses: contract violations raise ProtocolError."""

import json

import pytest
from client_stand_in import reward_row, score_row

from alarm_client._parsing import read_catalogue, read_rewards, read_scores
from alarm_client._payloads import merge_rewards, merge_scores
from alarm_client.errors import ProtocolError
from alarm_client.types import (
    AspectReward,
    Holistic,
    JudgeUsage,
    Limits,
    Sample,
    SampleError,
    SegmentScore,
    Usage,
)

SAMPLE = Sample(prompt="p", completion="abc", token_offsets=[(0, 2), (2, 3)], id="7")
SENT = {"completion": "abc", "token_offsets": [[0, 2], [2, 3]], "id": "7"}


def scores(*rows, **changes):
    usage = {"num_tokens": 4, "num_computed_tokens": 3}
    answer = {"model": "rm", "fingerprint": "f", "scores": list(rows), "usage": usage}
    return json.dumps(answer | changes).encode()


def rewards(*rows, **changes):
    answer = {"recipe": "qa", "fingerprint": "f", "rewards": list(rows), "usage": {}}
    return json.dumps(answer | changes).encode()


def test_read_scores_parses_all_fields():
    segment = {"start": 0, "end": 3, "label": "O", "score": 1.5}
    row = score_row(SENT) | {"segments": [segment], "truncated": True}
    result = read_scores(scores(row), [SAMPLE])
    (score,) = result.scores
    assert (result.model, result.fingerprint, result.usage) == ("rm", "f", Usage(4, 3))
    assert (score.id, score.score, score.num_tokens, score.truncated) == ("7", 3.0, 2, True)
    assert score.segments == (SegmentScore(0, 3, "O", 1.5),)
    assert score.error is None


def test_read_scores_truncated_segment_has_no_label_or_score():
    segment = {"start": 3, "end": 9, "label": None, "score": None}
    (score,) = read_scores(scores(score_row(SENT) | {"segments": [segment]}), [SAMPLE]).scores
    assert score.segments == (SegmentScore(3, 9, None, None),)


def test_read_scores_parses_named_outputs():
    row = score_row(SENT) | {"score": None, "outputs": {"help": 0.5, "wit": -1}}
    (score,) = read_scores(scores(row), [SAMPLE]).scores
    assert score.outputs == {"help": 0.5, "wit": -1.0}
    assert (score.output_segments, score.skipped) == (None, ())


def test_read_scores_parses_segments_and_skipped_ones_of_outputs():
    quote = {"start": 0, "end": 3, "label": "met", "score": 1}
    row = score_row(SENT) | {"outputs": {"help": 1}, "skipped": ["wit"]}
    row["output_segments"] = {"help": [quote]}
    (score,) = read_scores(scores(row), [SAMPLE]).scores
    assert score.output_segments == {"help": (SegmentScore(0, 3, "met", 1.0),)}
    assert score.skipped == ("wit",)


@pytest.mark.parametrize("own", ["7", 7, None])
def test_read_scores_returns_id_as_sent(own):
    sample = Sample(prompt="p", completion="abc", id=own)
    (score,) = read_scores(scores(score_row({"completion": "abc", "id": own})), [sample]).scores
    assert score.id == own
    assert type(score.id) is type(own)


def test_read_rewards_parses_all_fields():
    aspect = {"reward": 0.5, "token_rewards": [0.0, 0.5], "segments": None}
    row = reward_row(SENT) | {"aspects": {"facts": aspect, "style": None}}
    (reward,) = read_rewards(rewards(row), [SAMPLE]).rewards
    assert (reward.reward, reward.token_rewards) == (3.0, (0.0, 3.0))
    assert (reward.holistic, reward.admitted) == (Holistic(3.0, 3.0), True)
    assert reward.aspects == {"facts": AspectReward(0.5, (0.0, 0.5), None), "style": None}


def test_read_rewards_failed_sample_has_error():
    error = {"code": "too_long", "message": "9 tokens, 8 fit"}
    row = reward_row(SENT) | {
        "reward": None,
        "token_rewards": None,
        "holistic": None,
        "admitted": None,
    }
    (reward,) = read_rewards(rewards(row | {"error": error}), [SAMPLE]).rewards
    assert (reward.reward, reward.admitted) == (None, None)
    assert reward.error == SampleError("too_long", "9 tokens, 8 fit")


def test_read_rewards_ignores_unknown_fields():
    row = score_row(SENT) | {"mood": "good"}
    assert len(read_scores(scores(row, later=1), [SAMPLE]).scores) == 1


def test_read_scores_with_wrong_number_of_scores_raises():
    with pytest.raises(ProtocolError, match="1 samples were sent, 2 scores received"):
        read_scores(scores(score_row(SENT), score_row(SENT)), [SAMPLE])


def test_read_rewards_with_wrong_number_of_token_rewards_raises():
    row = reward_row(SENT) | {"token_rewards": [1.0]}
    with pytest.raises(ProtocolError, match="2 token_offsets were sent, 1 token_rewards received"):
        read_rewards(rewards(row), [SAMPLE])


def test_read_scores_out_of_order_raises():
    with pytest.raises(ProtocolError, match="out of order: '8' for '7'"):
        read_scores(scores(score_row(SENT | {"id": "8"})), [SAMPLE])


def test_read_rewards_null_without_error_raises():
    with pytest.raises(ProtocolError, match="null without an error"):
        read_rewards(rewards(reward_row(SENT) | {"reward": None}), [SAMPLE])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "true", '"3"', "9" * 400])
def test_read_scores_non_finite_score_raises(value):
    body = scores(score_row(SENT) | {"score": 12345.5}).replace(b"12345.5", value.encode())
    with pytest.raises(ProtocolError):
        read_scores(body, [SAMPLE])


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"scores": 3}', b'{"scores": [3]}', b"\xff\xfe"]
)
def test_read_object_with_invalid_body_raises(body):
    with pytest.raises(ProtocolError):
        read_scores(body, [SAMPLE])


def test_merge_rewards_keeps_order_and_sums_usage():
    one = read_scores(scores(score_row(SENT)), [SAMPLE])
    longer = Sample(prompt="p", completion="abcd")
    two = read_scores(scores(score_row({"completion": "abcd"})), [longer])
    joined = merge_scores([one, two])
    assert [score.score for score in joined.scores] == [3.0, 4.0]
    assert joined.usage == Usage(8, 6)


def test_usage_of_judges_is_read_and_summed():
    judge = {"num_requests": 1, "num_cached": 2, "num_input_tokens": 3, "num_output_tokens": 4}
    usage = {"num_tokens": 4, "num_computed_tokens": 3, "judge": judge | {"cost": 0.5}}
    body = json.loads(scores(score_row(SENT))) | {"usage": usage}
    one = read_scores(json.dumps(body).encode(), [SAMPLE])
    assert one.usage.judge == JudgeUsage(1, 2, 3, 4, 0.5)
    without = read_scores(scores(score_row(SENT)), [SAMPLE])
    assert merge_scores([one, one, without]).usage.judge == JudgeUsage(2, 4, 6, 8, 1.0)


def test_merge_with_different_fingerprints_raises():
    one = read_rewards(rewards(fingerprint="a"), [])
    two = read_rewards(rewards(fingerprint="b"), [])
    with pytest.raises(ProtocolError, match="changed during the call") as caught:
        merge_rewards([one, two])
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("limits", "read"),
    [
        ({"max_samples": 5, "max_body_bytes": 99}, Limits(5, 99)),
        ({"max_samples": 5}, Limits(5, 64 * 1024 * 1024)),
        (None, Limits(1024, 64 * 1024 * 1024)),
    ],
)
def test_read_catalogue_without_limits_uses_defaults(limits, read):
    body = json.dumps({"models": [{"name": "rm"}], "limits": limits}).encode()
    catalogue = read_catalogue(body)
    assert catalogue.limits == read
    assert catalogue.models == ({"name": "rm"},)
