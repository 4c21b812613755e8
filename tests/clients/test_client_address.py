"""Where the server is, and how to be let in."""

import pytest

from alarm_client import AlarmClient
from alarm_client.address import find_address


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    monkeypatch.delenv("ALARM_URL", raising=False)
    monkeypatch.delenv("ALARM_API_KEY", raising=False)


def test_without_anything_it_is_this_machine():
    address = find_address(None, None)
    assert (address.url, address.authorization) == ("http://127.0.0.1:8000", None)


def test_the_environment_names_the_server_and_the_key(monkeypatch):
    monkeypatch.setenv("ALARM_URL", "https://rewards.example/alarm/")
    monkeypatch.setenv("ALARM_API_KEY", "k")
    address = find_address(None, None)
    assert (address.url, address.authorization) == ("https://rewards.example/alarm", "Bearer k")


def test_arguments_go_before_the_environment(monkeypatch):
    monkeypatch.setenv("ALARM_URL", "http://elsewhere:1")
    monkeypatch.setenv("ALARM_API_KEY", "other")
    address = find_address("http://here:2", "mine")
    assert (address.url, address.authorization) == ("http://here:2", "Bearer mine")


def test_a_key_in_the_url_is_sent_as_basic_and_leaves_the_url():
    address = find_address("http://any:k%2Fy@host:9", None)
    # base64 of "any:k/y"
    assert (address.url, address.authorization) == ("http://host:9", "Basic YW55OmsveQ==")


def test_no_key_shows_in_what_is_printed():
    assert "secret" not in repr(find_address("http://any:secret@host", None))
    assert repr(AlarmClient("http://any:secret@host", timeout=9)) == (
        "AlarmClient('http://host', timeout=9)"
    )


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1", "ftp://host", "http://"])
def test_a_url_without_scheme_or_host_is_refused_with_an_example(url):
    with pytest.raises(ValueError, match=r"must look like http://127\.0\.0\.1:8000"):
        find_address(url, None)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"max_concurrency": 0}])
def test_options_without_sense_are_refused(options):
    with pytest.raises(ValueError, match="timeout must be over 0"):
        AlarmClient(**options)
