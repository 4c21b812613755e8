"""Both clients against a stand-in server: the same calls, the same requests, the same results."""

import inspect
import json
import ssl
from collections import Counter
from types import SimpleNamespace

import httpx
import pytest
from client_stand_in import StandIn, refusal

from alarm_client._operations import SAFE
from alarm_client._payloads import OVER_REQUESTS
from alarm_client._retry import Retries
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ProtocolError,
    StatusError,
    TooLarge,
)
from alarm_client.types import Sample, Usage
from alarm_client.version import __version__
from alarm_models.combination.all_rules import RULES

SAMPLES = [Sample(prompt="p", completion="x" * (index % 7)) for index in range(300)]
LENGTHS = [float(index % 7) for index in range(300)]
AT_ONCE = Retries(first=0.0, longest=0.0, max_reconnects=2)


@pytest.fixture(params=[AlarmClient, AsyncAlarmClient])
def ask(request):
    """Ask a stand-in once with either client: `await ask(stand_in, "score", samples)`."""

    async def ask(stand_in, name, *args, options=None, **kwargs):
        options = {"url": "http://server", "retries": AT_ONCE, **(options or {})}
        client = request.param(transport=stand_in.transport, **options)
        answer = getattr(client, name)(*args, **kwargs)
        if inspect.isawaitable(answer):
            answer = await answer
            await client.aclose()
        else:
            client.close()
        return answer

    return ask


async def test_score_of_one_sample_sends_one_request(ask):
    server = StandIn()
    result = await ask(server, "score", [Sample(prompt="p", completion="abc")], "rm")
    assert (result.model, result.scalars(), server.paths) == ("rm", [3.0], ["/score"])


@pytest.mark.parametrize(
    ("rule", "args"),
    [("gdpo", ()), ("gdpo", ("mini",)), ("hierarchical", (None, {"rule": "gdpo"}))],
)
@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[:100]])
async def test_call_that_needs_several_requests_is_refused_for_a_rule_over_one(
    ask, rule, args, samples
):
    server = StandIn(max_samples=64, rule=rule)
    with pytest.raises(ValueError, match=r"'gdpo' normalizes rewards over one request.*fewer"):
        await ask(server, "hierarchical_reward", samples, *args)
    assert (await ask(server, "score", samples)).scalars() == LENGTHS[: len(samples)]
    server = StandIn(rule=rule)
    assert len((await ask(server, "hierarchical_reward", samples, *args)).rewards) == len(samples)


async def test_call_that_was_too_large_asks_once_for_the_rule(ask):
    server = StandIn(max_samples=3)
    result = await ask(server, "hierarchical_reward", SAMPLES[:10])
    assert len(result.rewards) == 10
    assert Counter(server.paths) == {"/hierarchical_reward": 7, "/models": 1}
    server = StandIn(max_samples=3)
    await ask(server, "hierarchical_reward", SAMPLES[:10], None, {"rule": "mo_grpo"})
    assert "/models" not in server.paths


async def test_call_that_was_too_large_is_split_for_servers_that_list_no_recipes(ask):
    server = StandIn(max_samples=3)

    def without_models(request):
        path = request.url.path
        return refusal(404, "not_found", "no path") if path == "/models" else server(request)

    handler = SimpleNamespace(transport=httpx.MockTransport(without_models))
    assert len((await ask(handler, "hierarchical_reward", SAMPLES[:10])).rewards) == 10


def test_rule_of_a_large_call_is_that_of_now():
    server = StandIn(max_samples=64, rule="gdpo")
    client = AlarmClient(transport=server.transport)
    with pytest.raises(ValueError, match="'gdpo'"):
        client.hierarchical_reward(SAMPLES)
    server.rule = "mo_grpo"
    assert len(client.hierarchical_reward(SAMPLES).rewards) == len(SAMPLES)
    server.rule = "gdpo"
    with pytest.raises(ValueError, match="'gdpo'"):
        client.hierarchical_reward(SAMPLES)


def test_rules_over_requests_are_those_of_the_server():
    assert set(OVER_REQUESTS) == {one.name for one in RULES.values() if one.normalizes_requests}


async def test_hierarchical_reward_sends_all_options(ask):
    server = StandIn()
    sample = {"prompt": "p", "completion": "abc", "token_offsets": [[0, 1], [1, 3], [3, 3]]}
    result = await ask(server, "hierarchical_reward", [sample], "qa", {"threshold": 9.0}, "all")
    assert (result.recipe, result.rewards[0].token_rewards) == ("qa", (0.0, 0.0, 3.0))
    sent = json.loads(server.requests[0].content)
    assert (sent["overrides"], sent["aspects"]) == ({"threshold": 9.0}, "all")


async def test_score_without_samples_is_empty(ask):
    result = await ask(StandIn(), "score", [])
    assert (result.scores, result.fingerprint) == ((), "f")


async def test_request_has_key_and_remaining_time(ask):
    server = StandIn()
    options = {"api_key": "k", "timeout": 100.0}
    await ask(server, "score", SAMPLES[:1], options=options, timeout=20.0)
    headers = server.requests[0].headers
    assert headers["authorization"] == "Bearer k"
    assert headers["content-type"] == "application/json"
    assert 0 < int(headers["x-request-timeout-ms"]) <= 20_000


async def test_models_returns_limits(ask):
    assert (await ask(StandIn(max_samples=9), "models")).limits.max_samples == 9


async def test_large_call_is_split_and_merged_in_order(ask):
    assert len(SAMPLES) > SAFE.max_samples
    server = StandIn(max_samples=64)
    result = await ask(server, "score", SAMPLES)
    assert result.scalars() == LENGTHS
    assert result.usage == Usage(600, 300)
    assert server.paths == ["/models"] + ["/score"] * 5


async def test_large_call_within_limits_is_one_request(ask):
    server = StandIn()
    assert (await ask(server, "score", SAMPLES)).scalars() == LENGTHS
    assert server.paths == ["/models", "/score"]


async def test_too_large_response_splits_the_request_in_two(ask):
    server = StandIn(max_samples=3)
    result = await ask(server, "score", SAMPLES[:10])
    assert result.scalars() == LENGTHS[:10]
    # 10 -> 5 + 5 -> 2 + 3 each
    assert len(server.paths) == 7


async def test_too_large_single_sample_raises(ask):
    with pytest.raises(TooLarge, match="too many samples"):
        await ask(StandIn(max_samples=0), "score", SAMPLES[:1])


async def test_busy_server_and_broken_connection_are_retried(ask):
    script = [
        refusal(429, "full", "full", retry_after="0"),
        httpx.ReadError("reset"),
        refusal(503, "loading", "loading"),
    ]
    server = StandIn(script)
    assert (await ask(server, "score", SAMPLES[:2])).scalars() == [0.0, 1.0]
    assert len(server.requests) == 4


async def test_invalid_request_raises_the_servers_message(ask):
    server = StandIn([refusal(422, "schema", "samples.0.prompt: got null")])
    with pytest.raises(InvalidRequest, match=r"samples\.0\.prompt: got null") as caught:
        await ask(server, "score", SAMPLES[:1])
    assert (caught.value.status, caught.value.code, len(server.requests)) == (422, "schema", 1)


async def test_failed_part_fails_the_whole_call(ask):
    server = StandIn(max_samples=64, script=[])
    server.change = lambda answer: answer.update(fingerprint=str(len(server.requests)))
    with pytest.raises(ProtocolError, match="changed during the call"):
        await ask(server, "score", SAMPLES)


async def test_servers_with_different_recipes_are_not_asked_a_third_time(ask):
    server = StandIn(max_samples=150, script=[])
    server.change = lambda answer: answer.update(fingerprint="ab"[len(server.requests) % 2])
    with pytest.raises(ProtocolError, match="changed during the call"):
        await ask(server, "score", SAMPLES)
    assert server.paths.count("/score") == 4


async def test_recipe_reloaded_between_two_parts_is_asked_again(ask):
    server = StandIn(max_samples=64, script=[])
    server.change = lambda answer: answer.update(
        fingerprint="old" if len(server.requests) < 3 else "new"
    )
    result = await ask(server, "score", SAMPLES)
    assert (result.scalars(), result.fingerprint) == (LENGTHS, "new")


async def test_response_of_another_server_hints_at_the_url(ask):
    server = StandIn([httpx.Response(404, text="nginx")])
    with pytest.raises(NotFound, match=r"http://server/score answered 404: nginx .*ALaRM server"):
        await ask(server, "score", SAMPLES[:1])


async def test_unknown_model_error_has_no_hint_at_the_url(ask):
    server = StandIn([refusal(404, "not_found", "no model 'nope'; there are rm")])
    with pytest.raises(NotFound, match=r"no model 'nope'; there are rm \(request \w+-1\)$"):
        await ask(server, "score", SAMPLES[:1], "nope")


async def test_response_with_wrong_number_of_scores_raises(ask):
    server = StandIn(change=lambda answer: answer["scores"].pop())
    with pytest.raises(ProtocolError, match="2 samples were sent, 1 scores received"):
        await ask(server, "score", SAMPLES[:2])


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (httpx.ConnectError("refused"), AlarmConnectionError, "is `alarm serve` running at http"),
        (httpx.ConnectTimeout("slow"), AlarmConnectionError, "no connection within 5 s"),
        (httpx.RemoteProtocolError("cut"), AlarmConnectionError, "connection broke"),
        (httpx.ReadTimeout("slow"), DeadlineExceeded, "no response within"),
    ],
)
async def test_httpx_errors_are_mapped_to_client_errors(ask, raised, kind, words):
    with pytest.raises(kind, match=words) as caught:
        await ask(StandIn([raised] * 9), "score", SAMPLES[:1])
    assert caught.value.retryable


async def test_wait_ready_returns_when_ready(ask):
    server = StandIn()
    assert await ask(server, "wait_ready", timeout=5) is None
    assert server.paths == ["/health/ready"]


async def test_error_has_request_id(ask):
    server = StandIn([refusal(422, "schema", "no")])
    with pytest.raises(InvalidRequest) as caught:
        await ask(server, "score", SAMPLES[:1])
    sent = server.requests[0].headers["x-request-id"]
    assert caught.value.request_id == sent
    assert str(caught.value).endswith(f"(request {sent})")


async def test_error_has_request_id_of_the_server_if_any(ask):
    server = StandIn([refusal(422, "schema", "no", x_request_id="of-the-server")])
    with pytest.raises(InvalidRequest) as caught:
        await ask(server, "score", SAMPLES[:1])
    assert caught.value.request_id == "of-the-server"


async def test_protocol_error_has_request_id(ask):
    server = StandIn(change=lambda answer: answer["scores"].pop())
    with pytest.raises(ProtocolError) as caught:
        await ask(server, "score", SAMPLES[:2])
    assert caught.value.request_id == server.requests[0].headers["x-request-id"]


async def test_connection_error_and_timeout_have_request_id(ask):
    for raised in (httpx.ReadError("reset"), httpx.ReadTimeout("slow")):
        server = StandIn([raised] * 9)
        with pytest.raises(AlarmError) as caught:
            await ask(server, "score", SAMPLES[:1])
        assert caught.value.request_id == server.requests[-1].headers["x-request-id"]


async def test_request_ids_of_one_call_share_a_prefix(ask):
    server = StandIn([refusal(429, "full", "full", retry_after="0")], max_samples=64)
    await ask(server, "score", SAMPLES)
    ids = [request.headers["x-request-id"] for request in server.requests]
    assert len(set(ids)) == len(ids) == 7
    assert len({one.partition("-")[0] for one in ids}) == 1


async def test_redirect_is_reported_and_not_followed(ask):
    server = StandIn([httpx.Response(307, headers={"Location": "https://elsewhere/score"})])
    with pytest.raises(StatusError, match=r"redirects to 'https://elsewhere/score'"):
        await ask(server, "score", SAMPLES[:1])
    assert len(server.requests) == 1


async def test_request_user_agent_has_version(ask):
    server = StandIn()
    await ask(server, "models")
    assert server.requests[0].headers["user-agent"] == f"alarm-client/{__version__}"


async def test_client_closed_by_another_thread_reopens(ask):
    closed = RuntimeError("Cannot send a request, as the client has been closed.")
    assert (await ask(StandIn([closed]), "score", SAMPLES[1:2])).scalars() == [1.0]


async def test_untrusted_certificate_raises_without_retry(ask):
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed")
    server = StandIn([error])
    with pytest.raises(AlarmConnectionError, match=r"not trusted.*SSL_CERT_FILE") as caught:
        await ask(server, "score", SAMPLES[:1])
    assert (len(server.requests), caught.value.retryable) == (1, False)


async def test_asyncio_tls_error_is_a_connection_error(ask):
    server = StandIn([ssl.SSLError("bad record mac")])
    assert (await ask(server, "score", SAMPLES[1:2])).scalars() == [1.0]
