"""The server's URL and API key."""

import numpy as np
import pytest
from client_stand_in import StandIn
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm_client._address import find_address
from alarm_client.client import AlarmClient
from alarm_client.errors import AlarmError
from alarm_client.types import Sample


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    monkeypatch.delenv("ALARM_URL", raising=False)
    monkeypatch.delenv("ALARM_API_KEY", raising=False)


def test_address_without_settings_is_localhost():
    address = find_address(None, None)
    assert (address.url, address.authorization) == ("http://127.0.0.1:8000", None)


def test_address_from_environment_has_url_and_key(monkeypatch):
    monkeypatch.setenv("ALARM_URL", "https://rewards.example/alarm/")
    monkeypatch.setenv("ALARM_API_KEY", "k")
    address = find_address(None, None)
    assert (address.url, address.authorization) == ("https://rewards.example/alarm", "Bearer k")


def test_address_arguments_override_environment(monkeypatch):
    monkeypatch.setenv("ALARM_URL", "http://elsewhere:1")
    monkeypatch.setenv("ALARM_API_KEY", "other")
    address = find_address("http://here:2", "mine")
    assert (address.url, address.authorization) == ("http://here:2", "Bearer mine")


def test_address_key_in_url_is_sent_as_basic_auth():
    address = find_address("http://any:k%2Fy@host:9", None)
    # base64 of "any:k/y"
    assert (address.url, address.authorization) == ("http://host:9", "Basic YW55OmsveQ==")


def test_address_repr_hides_keys():
    assert "secret" not in repr(find_address("http://any:secret@host", None))
    assert repr(AlarmClient("http://any:secret@host", timeout=9)) == (
        "AlarmClient('http://host', timeout=9)"
    )


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1", "ftp://host", "http://"])
def test_address_url_without_scheme_or_host_is_refused(url):
    with pytest.raises(ValueError, match=r"must look like http://127\.0\.0\.1:8000"):
        find_address(url, None)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "max_concurrency"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", None, [1]])
def test_client_with_invalid_option_is_refused_by_name(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be "):
        AlarmClient(**{name: value})


def test_client_timeout_from_numpy_is_accepted():
    assert repr(AlarmClient("http://host", timeout=np.float32(9))) == (
        "AlarmClient('http://host', timeout=9)"
    )


@pytest.mark.parametrize("key", ["sesame\n", "\r\n sesame \t", "sesame"])
def test_address_key_whitespace_is_stripped(monkeypatch, key):
    assert find_address("http://host", key).authorization == "Bearer sesame"
    monkeypatch.setenv("ALARM_API_KEY", key)
    assert find_address("http://host", None).authorization == "Bearer sesame"


@pytest.mark.parametrize("url", ["http://host:9\n", " http://host:9 ", "http://host:9/"])
def test_address_url_whitespace_is_stripped(monkeypatch, url):
    monkeypatch.setenv("ALARM_URL", url)
    assert find_address(None, None).url == "http://host:9"


def test_address_newline_after_key_in_url_is_stripped():
    # base64 of ":sesame"
    assert find_address("http://:sesame%0A@host", None).authorization == "Basic OnNlc2FtZQ=="


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("sesame\nopen", "character 7 of the key is a control character"),
        ("sesame\x00", "character 7 of the key is a control character"),
        ("sésame", "character 2 of the key is not ASCII"),
        ("sesame\ud800", "character 7 of the key is not ASCII"),
        ("“sesame”", "character 1 of the key is not ASCII"),
    ],
)
def test_address_key_invalid_in_header_is_refused_without_showing_it(monkeypatch, key, reason):
    with pytest.raises(ValueError, match=f"^api_key: {reason}") as caught:
        AlarmClient("http://host", api_key=key)
    assert "sam" not in str(caught.value)
    if "\x00" not in key and "\ud800" not in key:  # no variable can hold these
        monkeypatch.setenv("ALARM_API_KEY", key)
        with pytest.raises(ValueError, match=f"^ALARM_API_KEY: {reason}"):
            AlarmClient("http://host")


@pytest.mark.parametrize("key", [b"sesame", 7, ["sesame"]])
def test_address_key_of_wrong_type_is_refused_without_showing_it(key):
    with pytest.raises(TypeError, match=r"^api_key must be a string, got \w+$"):
        AlarmClient("http://host", api_key=key)


@pytest.mark.parametrize(
    "url",
    [
        "http://any:sesame@host:99999",
        "http://any:sesame@host:port",
        "http://any:sesame@host:0",
        "http://any:sesame@[::1",
        "http://any:sesame@ho\u2100st",
        "http://any:sesame@host..example",
        "http://any:sesame@" + "h" * 64 + ".example",
        "http://any:sesame@.example",
        "http://any:sesame@ho st",
        "http://any:sesame@ho\x00st",
        "http://any:sesame@xn--\u00fc",
        "http://any:sesame@host/\x7f",
    ],
)
def test_address_invalid_url_is_refused_without_showing_the_key(url):
    with pytest.raises(ValueError, match=r"^the server's url") as caught:
        AlarmClient(url)
    assert "sesame" not in str(caught.value)


def test_address_url_of_wrong_type_is_refused():
    with pytest.raises(TypeError, match=r"^url must be a string, got int$"):
        AlarmClient(8000)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.2", True),
        ("http://[::1]:8000", True),
        ("http://0.0.0.0:8000", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example", False),
    ],
)
def test_address_of_loopback_is_local(url, is_local):
    assert find_address(url, None).is_local is is_local


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["http://", "https://", "HTTP://", "", "ftp://", "http:", "//", " http://"]),
    st.sampled_from(["", "any:sesame@", "sesame@", ":sesame@", "any:ses%FFame@", "a@b:sesame@"]),
    st.one_of(
        st.text(max_size=12), st.sampled_from(["host", "[::1]", "[fe80::1%25x]", "10.0.0.1", "ÄÖ"])
    ),
    st.one_of(st.just(""), st.integers(-9, 99999).map(lambda port: f":{port}"), st.text()),
)
def test_address_of_any_url_works_or_is_refused_without_showing_the_key(scheme, key, host, rest):
    transport = StandIn().transport
    told = ""
    try:
        with AlarmClient(scheme + key + host + rest, transport=transport) as client:
            assert "sesame" not in client.url or "sesame" in host + rest
            client.score([Sample(prompt="p", completion="abc")])
    except (ValueError, AlarmError) as error:
        told = str(error)
    assert "sesame" not in told


@given(st.text())
def test_address_any_key_is_sendable_or_refused(key):
    told = "api_key: "
    try:
        authorization = find_address("http://host", key).authorization or "Bearer "
        authorization.encode("ascii")
        assert "\n" not in authorization
    except ValueError as error:
        told = str(error)
    assert told.startswith("api_key: ")
