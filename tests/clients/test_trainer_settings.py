"""What a user may say, and what becomes of a failure."""

import logging
import math

import pytest

from alarm_client.errors import NotFound, SampleFailed, ServerFailed
from alarm_client.trainers.components import BASE, AspectNames, columns, components, means
from alarm_client.trainers.failure import failed_call, numbers, scalars
from alarm_client.trainers.settings import Habits, read_settings
from alarm_client.types import AspectReward, Holistic, Reward, SampleError

SKIPS = Habits("skips", timeout=9.0, on_failure="none", takes_none=True)
STRICT = Habits("strict", timeout=9.0, same_keys=True)

GOOD = Reward(
    None, 3.0, None, Holistic(1.0, 0.5), True, {"depth": AspectReward(2.0, None, None)}, False, None
)
FAILED = Reward(None, None, None, None, None, {}, False, SampleError("too_long", "over"))


def test_an_argument_counts_more_than_the_environment(monkeypatch):
    monkeypatch.setenv("ALARM_RECIPE", "of-the-environment")
    monkeypatch.setenv("ALARM_TIMEOUT", "5")
    settings = read_settings(SKIPS, {"recipe": "of-the-argument"})
    assert (settings.recipe, settings.timeout) == ("of-the-argument", 5.0)


def test_what_nobody_says_is_the_trainers_habit(monkeypatch):
    monkeypatch.delenv("ALARM_TIMEOUT", raising=False)
    monkeypatch.delenv("ALARM_ON_FAILURE", raising=False)
    settings = read_settings(SKIPS)
    assert (settings.timeout, settings.on_failure) == (9.0, "none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("timeout", "soon", r"timeout \(or ALARM_TIMEOUT\)"),
        ("timeout", "0", "must be seconds over 0"),
        ("on_failure", "nan", "must be 'raise', 'none', 'group_mean' or a finite number"),
        ("aspects", "some", "must be 'admitted' or 'all'"),
    ],
)
def test_a_wrong_setting_is_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        read_settings(SKIPS, {name: value})


def test_a_setting_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"no such setting \['recipes'\]"):
        read_settings(SKIPS, {"recipes": "mini"})


def test_a_trainer_that_needs_numbers_refuses_none():
    with pytest.raises(ValueError, match="takes 'raise' or a number"):
        read_settings(STRICT, {"on_failure": "none"})


def test_same_keys_on_failure_need_the_aspects_names():
    with pytest.raises(ValueError, match="ALARM_ASPECT_NAMES"):
        read_settings(STRICT, {"on_failure": 0})
    settings = read_settings(STRICT, {"on_failure": 0, "aspect_names": "depth, fluency"})
    assert settings.aspect_names == ("depth", "fluency")


def test_settings_show_no_secrets():
    settings = read_settings(SKIPS, {"url": "http://me:secret@host", "api_key": "secret"})
    assert "secret" not in repr(settings)


def test_a_failed_sample_becomes_what_the_policy_says(caplog):
    with caplog.at_level(logging.WARNING):
        assert scalars([GOOD, FAILED, FAILED], "none") == [3.0, None, None]
        assert numbers([GOOD, FAILED], -1.0) == [3.0, -1.0]
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "2 of 3 samples have no reward",
        "1 of 2 samples have no reward",
    ]
    with pytest.raises(SampleFailed, match=r"1 of 2 .* too_long: over"):
        scalars([GOOD, FAILED], "raise")


def test_a_failed_call_is_a_failure_of_each_sample():
    rewards = failed_call(ServerFailed("broken", status=500, code="internal"), 2, "none")
    assert [(one.reward, one.error.code) for one in rewards] == [(None, "internal")] * 2


def test_no_policy_hides_a_wrong_name():
    with pytest.raises(NotFound):
        failed_call(NotFound("no such recipe", status=404), 2, "none")


def test_components_have_the_same_names_whatever_happened():
    good, failed = (components(one, ("depth", "other")) for one in (GOOD, FAILED))
    assert list(good) == list(failed) == [*BASE, "depth", "other"]
    assert [good[name] for name in (*BASE, "depth")] == [3.0, 0.5, 1.0, 0.0, 2.0]
    assert failed["failed"] == 1.0
    assert all(math.isnan(failed[name]) for name in ("reward", "holistic", "depth", "other"))


def test_a_mean_is_over_what_was_computed():
    found = means(columns([GOOD, FAILED], ("depth", "other")))
    assert (found["reward"], found["failed"], found["depth"]) == (3.0, 0.5, 2.0)
    assert math.isnan(found["other"])


def test_aspects_are_learnt_in_one_order_and_kept():
    names = AspectNames(())
    assert names.seen([FAILED]) == ()
    assert names.seen([GOOD]) == ("depth",)
    assert names.seen([FAILED]) == ("depth",)
    assert AspectNames(["b", "a"]).seen([GOOD]) == ("b", "a")
