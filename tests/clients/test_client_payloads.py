"""Samples as request bodies, and how a large call is split."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_client._payloads import fits_limits, reward_payload, score_payload, split
from alarm_client.types import Limits, Sample

SAMPLE = Sample(prompt="p", completion="c")
LIMITS = Limits(max_samples=4, max_body_bytes=10_000)


def test_payload_omits_unset_fields():
    assert score_payload([SAMPLE], None).body == b'{"samples":[{"prompt":"p","completion":"c"}]}'


def test_payload_has_every_field_of_a_sample():
    sample = Sample(
        prompt=[{"role": "user", "content": "p"}],
        completion="né",
        fields={"question": "q"},
        token_offsets=[(0, 1), (1, 2), (2, 2)],
        segments={"sentences": [(0, 2)]},
        id="7",
        group="g",
    )
    assert json.loads(score_payload([sample], "rm").body) == {
        "model": "rm",
        "samples": [
            {
                "prompt": [{"role": "user", "content": "p"}],
                "completion": "né",
                "fields": {"question": "q"},
                "token_offsets": [[0, 1], [1, 2], [2, 2]],
                "segments": {"sentences": [[0, 2]]},
                "id": "7",
                "group": "g",
            }
        ],
    }


def test_payload_keeps_empty_lists():
    sample = Sample(prompt="", completion="", fields={}, token_offsets=[], segments={})
    sent = json.loads(score_payload([sample], None).body)["samples"][0]
    assert (sent["fields"], sent["token_offsets"], sent["segments"]) == ({}, [], {})


def test_reward_payload_has_recipe_overrides_and_aspects():
    job = reward_payload([], "qa", {"threshold": 0.5, "weights": {"relevance": 0.0}}, "all")
    assert json.loads(job.body) == {
        "recipe": "qa",
        "overrides": {"threshold": 0.5, "weights": {"relevance": 0.0}},
        "aspects": "all",
        "samples": [],
    }


def test_payload_accepts_mapping_as_sample():
    job = score_payload([{"prompt": "p", "completion": "c"}], None)
    assert job.samples == (SAMPLE,)


def test_payload_mapping_with_unknown_key_is_refused_by_name():
    with pytest.raises(TypeError, match="respones"):
        score_payload([{"prompt": "p", "respones": "c"}], None)


def test_payload_lone_surrogate_becomes_question_mark():
    job = score_payload([Sample(prompt="", completion="a\ud83db")], None)
    assert json.loads(job.body)["samples"][0]["completion"] == "a?b"


@pytest.mark.parametrize("num", [0, 1, 3])
def test_payload_num_bytes_equals_body_length(num):
    job = score_payload([SAMPLE] * num, "rm")
    assert job.num_bytes == len(job.body)


@pytest.mark.parametrize(
    ("num", "sizes"), [(0, [0]), (1, [1]), (4, [4]), (5, [3, 2]), (8, [4, 4]), (9, [3, 3, 3])]
)
def test_split_parts_have_equal_size_within_sample_limit(num, sizes):
    parts = split(score_payload([SAMPLE] * num, None), LIMITS)
    assert [len(part.samples) for part in parts] == sizes


def test_split_parts_stay_within_byte_limit_in_order():
    samples = [Sample(prompt="", completion="x" * size) for size in (300, 10, 10, 300, 300, 10)]
    job = score_payload(samples, None)
    limits = Limits(max_samples=100, max_body_bytes=500)
    parts = split(job, limits)
    assert all(len(part.body) <= 500 for part in parts)
    assert [sample for part in parts for sample in part.samples] == samples


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(100, 400), st.integers(1, 9))
def test_split_of_random_samples_respects_limits_and_loses_none(sizes, max_body_bytes, max_samples):
    samples = [Sample(prompt="", completion="x" * size) for size in sizes]
    parts = split(score_payload(samples, "rm"), Limits(max_samples, max_body_bytes))
    assert [sample for part in parts for sample in part.samples] == samples
    assert all(len(part.samples) <= max_samples for part in parts)
    assert all(len(part.body) <= max_body_bytes or len(part.samples) == 1 for part in parts)


def test_split_parts_may_have_exactly_the_byte_limit():
    job = score_payload([SAMPLE] * 4, None)
    assert len(split(job, Limits(9, job.num_bytes))) == 1
    half = len(job.part(0, 2).body)
    assert [len(part.samples) for part in split(job, Limits(9, half))] == [2, 2]
    assert [len(part.samples) for part in split(job, Limits(9, half - 1))] == [1, 1, 1, 1]


def test_split_sample_over_byte_limit_is_alone():
    samples = [Sample(prompt="", completion="x" * size) for size in (10, 900, 10)]
    parts = split(score_payload(samples, None), Limits(max_samples=9, max_body_bytes=200))
    assert [len(part.samples) for part in parts] == [1, 1, 1]


def test_fits_limits_includes_both_limits():
    job = score_payload([SAMPLE] * 4, None)
    assert fits_limits(job, Limits(4, job.num_bytes))
    assert not fits_limits(job, Limits(3, job.num_bytes))
    assert not fits_limits(job, Limits(4, job.num_bytes - 1))
