"""Selection of the environment's proxy for a server."""

import os

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_server import reward_server

from alarm_client._address import find_address
from alarm_client._proxies import is_exempt, proxy_of
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import AlarmConnectionError, AlarmError
from alarm_client.types import Sample

SAMPLES = [Sample(prompt="p", completion="abc")]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_meant"),
    [
        ("rewards.example", "", False),
        ("rewards.example", "*", True),
        ("rewards.example", "rewards.example", True),
        ("rewards.example", "REWARDS.EXAMPLE", True),
        ("rewards.example", "example", True),
        ("rewards.example", ".example", True),
        ("rewards.example", "*.example", True),
        ("rewards.example", "xample", False),
        ("rewards.example", "a, b  rewards.example", True),
        ("rewards.example", "rewards.example:8000", True),
        ("rewards.example", "rewards.example:9000", False),
        ("rewards.example", "fd00::/8,10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:8000", True),
        ("10.1.2.3", "10.1.2.4/31", False),
        ("10.1.2.3", "fd00::/8", False),
        ("10.1.2.3", "10.0.0.0/99", False),
        ("fd00::1", "fd00:0:0::/48", True),
        ("fd00::1", "fd00::1", True),
        ("fd00::1", "[fd00::1]:8000", True),
        ("fd00::1", "[fd00::1]:9", False),
        ("fd00::1", "[fd00::]/8", True),
        ("fe00::1", "fd00::/8", False),
        ("rewards.example", ",,/:[]::/,*.,", False),
    ],
)
def test_is_exempt_matches_hosts_addresses_and_ranges(host, no_proxy, is_meant):
    assert is_exempt(host, 8000, no_proxy) is is_meant


@given(st.text(), st.sampled_from(["rewards.example", "10.1.2.3", "fd00::1"]))
def test_is_exempt_with_random_text_never_raises(no_proxy, host):
    assert is_exempt(host, 8000, no_proxy) in (True, False)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://rewards.example", "http://proxy:3128"),
        ({"http_proxy": "proxy:3128"}, "http://rewards.example", "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://rewards.example", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://rewards.example", "http://proxy:3128"),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "http://rewards.example", "socks5://proxy:1080"),
        ({"ALL_PROXY": "http://proxy"}, "http://127.0.0.1:8000", None),
        ({"HTTP_PROXY": "http://proxy", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3", None),
        ({"HTTP_PROXY": " "}, "http://rewards.example", None),
    ],
)
def test_proxy_of_uses_the_scheme_of_the_server(monkeypatch, variables, url, proxy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(find_address(url, None)) == proxy


@pytest.mark.parametrize("no_proxy", ["localhost,fd00:10:244::/56", "::/0x", "[", "a b:c::d/e"])
def test_call_with_any_no_proxy_uses_the_proxy(monkeypatch, no_proxy):
    with reward_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", no_proxy)
        with AlarmClient("http://rewards.example") as client:
            assert client.hierarchical_reward(SAMPLES).scalars() == [3.0]


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks4://any:sesame@proxy:1080", r"ALL_PROXY has the unsupported scheme 'socks4'"),
        ("gopher://any:sesame@proxy", r"ALL_PROXY has the unsupported scheme 'gopher'"),
        ("http://any:sesame@proxy:port", r"HTTP_PROXY.*is not a URL"),
        ("http://any:sesame@[::1", r"HTTP_PROXY.*is not a URL"),
        ("http://any:sesame@pro\x01xy", r"HTTP_PROXY.*is not a URL"),
    ],
)
async def test_invalid_proxy_is_refused_by_name_without_its_password(monkeypatch, proxy, words):
    monkeypatch.setenv("all_proxy", proxy)
    with (
        AlarmClient("http://rewards.example") as client,
        pytest.raises(AlarmConnectionError, match=words) as caught,
    ):
        client.score(SAMPLES)
    async with AsyncAlarmClient("http://rewards.example") as other:
        with pytest.raises(AlarmConnectionError, match=words):
            await other.score(SAMPLES)
    with pytest.raises(AlarmConnectionError, match=words):
        client.wait_ready()
    assert not caught.value.retryable
    assert not client.has_answered
    assert "sesame" not in str(caught.value)


def test_socks_proxy_without_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv("all_proxy", "socks5://proxy:1080")
    with (
        AlarmClient("http://rewards.example") as client,
        pytest.raises(AlarmConnectionError, match=r"httpx\[socks\].*NO_PROXY"),
    ):
        client.score(SAMPLES)


def test_missing_ca_file_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with (
        AlarmClient("https://rewards.example") as client,
        pytest.raises(AlarmConnectionError, match="SSL_CERT_FILE"),
    ):
        client.score(SAMPLES)


@pytest.mark.parametrize(
    "raised",
    [
        httpx.InvalidURL("no"),
        httpx.UnsupportedProtocol("no"),
        httpx.LocalProtocolError("Illegal header value b'Bearer sesame'"),
        UnicodeEncodeError("ascii", "sesame", 0, 1, "ordinal not in range"),
        UnicodeError("label empty or too long"),
        ValueError("no"),
        TypeError("no"),
    ],
)
def test_unsendable_request_raises_without_retry(raised):
    calls = []

    def refuse(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise raised

    with (
        AlarmClient("http://host", transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(AlarmError, match=r"^http://host/score: ") as caught,
    ):
        client.score(SAMPLES)
    assert (len(calls), caught.value.retryable) == (1, False)
    assert "sesame" not in str(caught.value)


def test_unreachable_proxy_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("all_proxy", "http://any:sesame@127.0.0.1:1")
    with (
        AlarmClient("http://rewards.example", connect_timeout=0.1) as client,
        pytest.raises(AlarmConnectionError, match=r"through the environment's proxy 127.0.0.1:1 "),
    ):
        client.score(SAMPLES)
