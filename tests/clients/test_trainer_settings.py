"""Settings of trainer modules, and failures under them."""

import logging
import math
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from alarm_client.errors import NotFound, SampleFailed, ServerFailed
from alarm_client.trainers._columns import with_rows
from alarm_client.trainers._components import BASE, AspectNames, columns, components, means
from alarm_client.trainers._failures import failed_call, numbers, scalars
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import AspectReward, Holistic, Reward, Sample, SampleError

SKIPS = TrainerDefaults("skips", timeout=9.0, on_failure="none", takes_none=True)
STRICT = TrainerDefaults("strict", timeout=9.0, same_keys=True)

GOOD = Reward(
    None, 3.0, None, Holistic(1.0, 0.5), True, {"depth": AspectReward(2.0, None, None)}, False, None
)
FAILED = Reward(None, None, None, None, None, {}, False, SampleError("too_long", "over"))


def test_settings_argument_overrides_environment(monkeypatch):
    monkeypatch.setenv("ALARM_RECIPE", "of-the-environment")
    monkeypatch.setenv("ALARM_TIMEOUT", "5")
    settings = read_settings(SKIPS, {"recipe": "of-the-argument"})
    assert (settings.recipe, settings.timeout) == ("of-the-argument", 5.0)


def test_settings_take_several_urls_as_a_list():
    assert read_settings(SKIPS, {"url": ["http://a", "http://b"]}).url == "http://a,http://b"


def test_unusable_url_is_refused_without_its_password():
    with pytest.raises(ValueError, match="a list of URLs") as refused:
        read_settings(SKIPS, {"url": [b"http://any:sesame@a"]})
    assert "sesame" not in str(refused.value)
    with pytest.raises(ValueError, match="a list of URLs"):
        read_settings(SKIPS, {"url": []})


def test_reply_start_of_a_variable_may_have_a_line_break(monkeypatch):
    monkeypatch.setenv("ALARM_REPLY_START", r"<think>\n")
    assert read_settings(SKIPS).reply_start == "<think>\n"


def test_settings_default_to_those_of_the_trainer(monkeypatch):
    monkeypatch.delenv("ALARM_TIMEOUT", raising=False)
    monkeypatch.delenv("ALARM_ON_FAILURE", raising=False)
    settings = read_settings(SKIPS)
    assert (settings.timeout, settings.on_failure) == (9.0, "none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("timeout", "soon", r"timeout \(or ALARM_TIMEOUT\)"),
        ("timeout", "0", "must be more than 0 seconds"),
        ("on_failure", "nan", "must be 'raise', 'none', 'group_mean' or a finite number"),
        ("aspects", "some", "must be 'admitted' or 'all'"),
        ("fields", "reference", r"fields \(or ALARM_FIELDS\): must name a dataset column"),
        ("fields", {"reference": 3}, "must name a dataset column"),
        ("overrides", "rule=gdpo", r"overrides \(or ALARM_OVERRIDES\): is not JSON"),
        ("overrides", "[1]", "must be an object"),
        ("timeout", True, "must be more than 0 seconds"),
        ("on_failure", False, "must be 'raise', 'none', 'group_mean' or a finite number"),
        ("group", 3, r"group \(or ALARM_GROUP\): must be a string; got 3"),
        ("recipe", 3, r"recipe \(or ALARM_RECIPE\): must be a string"),
        ("model", ["rm"], r"model \(or ALARM_MODEL\): must be a string"),
        ("aspect_names", 3, r"aspect_names \(or ALARM_ASPECT_NAMES\): must be names"),
        ("aspect_names", [1], "must be names, such as factuality,relevance"),
        ("template", 3, r"template \(or ALARM_TEMPLATE\): must be a name, or an object"),
        ("template", ["chatml"], "must be a name, or an object"),
        ("connect_timeout", "-1", r"connect_timeout \(or ALARM_CONNECT_TIMEOUT\)"),
    ],
)
def test_settings_with_invalid_value_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        read_settings(SKIPS, {name: value})


def test_settings_with_unknown_name_are_refused():
    with pytest.raises(ValueError, match=r"unknown setting \['recipes'\]"):
        read_settings(SKIPS, {"recipes": "mini"})


def test_settings_on_failure_none_without_support_is_refused():
    with pytest.raises(ValueError, match="Use 'raise' or a number"):
        read_settings(STRICT, {"on_failure": "none"})


def test_settings_same_keys_require_aspect_names():
    with pytest.raises(ValueError, match="ALARM_ASPECT_NAMES"):
        read_settings(STRICT, {"on_failure": 0})
    settings = read_settings(STRICT, {"on_failure": 0, "aspect_names": "depth, fluency"})
    assert settings.aspect_names == ("depth", "fluency")


@pytest.mark.parametrize(
    "value",
    [
        {"reference": "gold", "context": "extra.text"},
        "reference=gold, context=extra.text",
        '{"reference": "gold", "context": "extra.text"}',
    ],
)
def test_settings_fields_accept_mapping_pairs_and_json(monkeypatch, value):
    given = {"fields": value}
    if isinstance(value, str):
        monkeypatch.setenv("ALARM_FIELDS", value)
        given = {}
    settings = read_settings(SKIPS, given)
    assert settings.fields == {"reference": "gold", "context": "extra.text"}


def test_settings_overrides_accept_mapping_and_json(monkeypatch):
    monkeypatch.setenv("ALARM_OVERRIDES", '{"rule": "par", "weights": {"depth": 2}}')
    assert read_settings(SKIPS).overrides == {"rule": "par", "weights": {"depth": 2}}
    assert read_settings(SKIPS, {"overrides": {"threshold": 1}}).overrides == {"threshold": 1}
    with pytest.raises(ValueError, match="overrides apply to a recipe"):
        read_settings(SKIPS, {"model": "rm"})


def test_reward_source_is_shared_by_equal_settings_only(sources):
    one = get_reward_source(SKIPS, {"overrides": {"threshold": 1}})
    assert get_reward_source(SKIPS, {"overrides": {"threshold": 1}}) is one
    assert get_reward_source(SKIPS, {"overrides": {"threshold": 2}}) is not one
    assert get_reward_source(SKIPS, {"fields": "reference=a"}) is not get_reward_source(SKIPS)


def row(settings, given):
    (sample,) = with_rows([Sample(prompt="Q", completion="A")], [given], settings)
    return sample.fields


USUAL = TrainerDefaults("usual", timeout=9.0, references=("reference", "answer"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Paris", "Paris"),
        (4, "4"),
        (0.5, "0.5"),
        (np.int64(4), "4"),
        (True, "true"),
        (["a", "b"], '["a", "b"]'),
        (np.array(["a", "é"]), '["a", "é"]'),
        ({"target": np.array([1])}, '{"target": [1]}'),
        (Decimal("0.50"), "0.50"),
        (b"Paris", "Paris"),
        ([{"role": "assistant", "content": "Paris"}], "Paris"),
        ([SimpleNamespace(role="assistant", content="Paris")], "Paris"),
        ("", ""),
        (None, None),
        (float("nan"), None),
    ],
)
def test_column_value_becomes_a_string(value, text):
    settings = read_settings(USUAL, {"fields": {"reference": "gold"}})
    assert row(settings, {"gold": value}) == (None if text is None else {"reference": text})


def test_reference_column_is_the_first_with_string_or_number():
    settings = read_settings(USUAL)
    assert row(settings, {"answer": 4, "other": "x"}) == {"reference": "4"}
    assert row(settings, {"reference": None, "answer": "x"}) == {"reference": "x"}
    for absent in ({}, {"answer": ["a"]}, {"answer": {"target": "a"}}, {"answer": ""}):
        assert row(settings, absent) is None


def test_settings_empty_fields_send_none():
    assert row(read_settings(USUAL, {"fields": {}}), {"answer": "x"}) is None


def test_column_with_dotted_name_is_nested():
    settings = read_settings(USUAL, {"fields": {"reference": "spec.gold.text", "plain": "a.b"}})
    given = {"spec": {"gold": {"text": "Paris"}}, "a.b": "c"}
    assert row(settings, given) == {"reference": "Paris", "plain": "c"}
    assert row(settings, {**given, "spec": '{"gold": {"text": "Rome"}}'})["reference"] == "Rome"


def test_missing_column_error_lists_columns():
    settings = read_settings(USUAL, {"fields": {"reference": "gold"}})
    with pytest.raises(
        ValueError, match=r"usual: fields.reference .* 'gold', .* it has \['answer', 'id'\]"
    ):
        row(settings, {"answer": "x", "id": 1})


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float64("nan")])
def test_group_column_without_value_is_refused_by_name(nothing):
    samples = [Sample(prompt="Q", completion="A")] * 2
    settings = read_settings(USUAL, {"group": "gid"})
    with pytest.raises(ValueError, match="the column 'gid' has no value for a sample"):
        with_rows(samples, [{"gid": 1}, {"gid": nothing}], settings)


def test_settings_repr_hides_secrets():
    settings = read_settings(SKIPS, {"url": "http://me:secret@host", "api_key": "secret"})
    assert "secret" not in repr(settings)


def test_failed_sample_follows_the_failure_policy(caplog):
    with caplog.at_level(logging.WARNING):
        assert scalars([GOOD, FAILED, FAILED], "none") == [3.0, None, None]
        assert numbers([GOOD, FAILED], -1.0) == [3.0, -1.0]
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "2 of 3 samples have no reward",
        "1 of 2 samples have no reward",
    ]
    with pytest.raises(SampleFailed, match=r"1 of 2 .* too_long: over"):
        scalars([GOOD, FAILED], "raise")


def test_failed_call_fails_each_sample():
    rewards = failed_call(ServerFailed("broken", status=500, code="internal"), 2, "none")
    assert [(one.reward, one.error.code) for one in rewards] == [(None, "internal")] * 2


def test_unknown_recipe_raises_under_any_policy():
    with pytest.raises(NotFound):
        failed_call(NotFound("no such recipe", status=404), 2, "none")


def test_components_always_have_the_same_names():
    good, failed = (components(one, ("depth", "other")) for one in (GOOD, FAILED))
    assert list(good) == list(failed) == [*BASE, "depth", "other"]
    assert [good[name] for name in (*BASE, "depth")] == [3.0, 0.5, 1.0, 0.0, 2.0]
    assert failed["failed"] == 1.0
    assert all(math.isnan(failed[name]) for name in ("reward", "holistic", "depth", "other"))


def test_component_means_ignore_nan():
    found = means(columns([GOOD, FAILED], ("depth", "other")))
    assert (found["reward"], found["failed"], found["depth"]) == (3.0, 0.5, 2.0)
    assert math.isnan(found["other"])


def test_aspect_names_are_sorted_and_kept():
    names = AspectNames(())
    assert names.update([FAILED]) == ()
    assert names.update([GOOD]) == ("depth",)
    assert names.update([FAILED]) == ("depth",)
    assert AspectNames(["b", "a"]).update([GOOD]) == ("b", "a")
