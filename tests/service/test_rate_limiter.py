import pytest
from served import samples, serving

from alarm_service.api.rate_limit import RateLimiter, TokenBucket
from alarm_service.errors import RateLimited

KEYS = "first-key;second-key"


def allowance(per_minute: float = 60) -> TokenBucket:
    return TokenBucket(per_minute, per_minute, 0)


def test_token_bucket_allows_a_minute_at_once_then_refills() -> None:
    sixty = allowance()
    assert [sixty.consume(1, now=0) for _ in range(60)] == [0] * 60
    assert sixty.consume(1, now=0) == 1
    assert sixty.consume(1, now=0.75) == 0.25
    assert sixty.consume(1, now=1) == 0


def test_token_bucket_refused_cost_is_not_charged() -> None:
    sixty = allowance()
    sixty.consume(60, now=0)
    assert [sixty.consume(30, now=10) for _ in range(3)] == [20] * 3
    assert sixty.consume(10, now=10) == 0


def test_token_bucket_capacity_is_a_minute() -> None:
    sixty = allowance()
    assert sixty.consume(60, now=3600) == 0
    assert sixty.consume(1, now=3600) == 1


def test_token_bucket_larger_cost_passes_when_full_and_goes_negative() -> None:
    sixty = allowance()
    assert sixty.consume(90, now=0) == 0
    assert sixty.consume(1, now=0) == 31
    assert sixty.consume(90, now=60) == 30
    assert sixty.consume(90, now=90) == 0


def test_rate_limiter_has_one_bucket_per_caller() -> None:
    limits = RateLimiter(1, "requests", now=lambda: 0)
    limits.consume(0, 1)
    limits.consume(1, 1)
    with pytest.raises(RateLimited, match=r"1 requests a minute; .* again in 60\.0 s") as told:
        limits.consume(0, 1)
    assert told.value.retry_after_s == 60


async def test_key_over_its_rate_limit_gets_429_with_retry_after() -> None:
    async with serving(api_key=KEYS, max_requests_per_minute=2) as server:

        async def status(key: str, path: str = "/models") -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return (await server.client.get(path, headers=headers)).status_code

        assert [await status("first-key") for _ in range(3)] == [200, 200, 429]
        assert [await status("second-key") for _ in range(3)] == [200, 200, 429]
        assert await status("no-key") == 401
        assert await status("first-key", "/metrics") == 200
        assert await status("first-key", "/health/live") == 200
        refused = await server.client.get("/models", headers={"Authorization": "Bearer first-key"})
        assert refused.json()["error"]["code"] == "rate_limited"
        assert refused.json()["error"]["retryable"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 30


async def test_callers_without_keys_share_a_rate_limit_that_the_page_does_not_use() -> None:
    async with serving(max_requests_per_minute=1) as server:
        for path in ("/", "/page/text.js", "/"):
            assert (await server.client.get(path)).status_code == 200
        assert (await server.client.get("/models")).status_code == 200
        refused = await server.client.get("/models")
        assert refused.status_code == 429
        message = refused.json()["error"]["message"]
        assert message.startswith("callers without a key together may send 1 requests a minute")


async def test_rate_limit_tokens_are_counted_by_body_bytes() -> None:
    async with serving(max_tokens_per_minute=100) as server:
        body = {"samples": samples("a " * 190)}  # over 400 bytes
        assert (await server.client.post("/score", json=body)).status_code == 200
        refused = await server.client.post("/score", json={"samples": samples("a")})
        assert refused.status_code == 429
        assert "may send 100 tokens a minute" in refused.json()["error"]["message"]
        assert (await server.client.get("/models")).status_code == 200
