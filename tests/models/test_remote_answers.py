"""Malformed responses of other servers fail their samples and never give a wrong score."""

import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from remote_servers import Calls, completions, sglang, tei, values, vllm
from tcp import over_tcp

from alarm_models.errors import AddressError, CheckpointError, SampleError
from alarm_models.recipe.specs import GrammarSpec, RemoteSpec, usable_key
from alarm_models.reward_models.languagetool import LanguageTool
from alarm_models.reward_models.remote import connections as client
from alarm_models.reward_models.remote.model import RemoteModel
from alarm_models.types import EndpointFailure, Sample, Score

KEY = "sk-0123456789"


@dataclass
class Instead:
    """What is answered in place of the API, once there is something."""

    make: Callable[[], Response] | None = None
    num_asked: int = 0


def alarm(_: Calls) -> FastAPI:
    """Another alarm server, with one model."""
    app = FastAPI()

    @app.get("/models")
    async def models() -> Any:
        row = {"name": "rm", "fingerprint": "f", "kind": "sequence"}
        return {"models": [row], "recipes": [{"holistic": "rm"}]}

    @app.post("/score")
    async def score(body: dict[str, Any]) -> Any:
        return {"fingerprint": "f", "scores": [row() for _ in body["samples"]]}

    return app


def row(**more: Any) -> dict[str, Any]:
    plain = {"score": 1.5, "segments": None, "num_tokens": 3, "truncated": False, "error": None}
    return plain | more


@asynccontextmanager
async def opened(
    make: Callable[[Calls], FastAPI], **more: Any
) -> AsyncIterator[tuple[RemoteModel, Instead]]:
    """Open a model on an API that will answer something else when told to."""
    app, instead = make(Calls()), Instead()

    @app.middleware("http")
    async def answer(request: Request, call_next: Any) -> Any:
        if instead.make is None:
            return await call_next(request)
        instead.num_asked += 1
        return instead.make()

    with over_tcp(app) as port:
        template = {} if make is alarm else {"template": "{completion}"}
        base = {"api": make.__name__, "url": f"http://127.0.0.1:{port}", "max_retries": 0}
        model = RemoteModel(RemoteSpec.model_validate(base | template | more), {})
        await model.open()
        try:
            yield model, instead
        finally:
            await model.close()


def body(value: object, status: int = 200, **headers: str) -> Callable[[], Response]:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda: Response(content, status, headers)


async def endless(part: bytes, pause_s: float) -> AsyncIterator[bytes]:
    import asyncio

    while True:
        yield part
        await asyncio.sleep(pause_s)


async def test_answer_that_drips_is_given_up_after_the_time_of_an_attempt() -> None:
    async with opened(sglang, timeout_s=0.5) as (model, instead):
        instead.make = lambda: StreamingResponse(endless(b" ", 0.02))
        (outcome,) = await model.score(completions("a"))
        assert isinstance(outcome, SampleError)
        assert outcome.message == "sglang at 127.0.0.1 took longer than 0.5 s"


async def test_answer_without_an_end_is_given_up_after_its_bytes() -> None:
    async with opened(sglang, max_answer_bytes=1 << 20) as (model, instead):
        instead.make = lambda: StreamingResponse(endless(b" " * 65536, 0))
        (outcome,) = await model.score(completions("a"))
        assert isinstance(outcome, SampleError)
        assert outcome.message == "sglang at 127.0.0.1 answered with more than 1048576 bytes"


async def test_answer_that_unpacks_to_more_than_its_bytes_is_given_up() -> None:
    packed = gzip.compress(b" " * (1 << 24))
    async with opened(sglang, max_answer_bytes=1 << 20) as (model, instead):
        instead.make = body(packed, **{"Content-Encoding": "gzip"})
        (outcome,) = await model.score(completions("a"))
        assert isinstance(outcome, SampleError)
        assert "more than 1048576 bytes" in outcome.message


async def test_request_that_an_answer_is_too_long_for_is_halved() -> None:
    async with opened(sglang, max_answer_bytes=1024) as (model, instead):
        instead.make = None
        assert values(await model.score(completions(*["a" * 12] * 32))) == [2] * 32


def vllm_rows(*rows: tuple[object, object]) -> dict[str, Any]:
    return {"data": [{"index": index, "probs": probs} for index, probs in rows]}


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (vllm, vllm_rows((0, [1.0]), (0, [2.0]))),
        (vllm, vllm_rows((0, [1.0]), (2, [2.0]))),
        (vllm, vllm_rows((0, [1.0]), (-1, [2.0]))),
        (vllm, vllm_rows((0, [1.0]), ("1", [2.0]))),
        (vllm, vllm_rows((0, [1.0]), (True, [2.0]))),
        (vllm, vllm_rows((0, [1.0]), (1, [2.0]), (1, [3.0]))),
        (vllm, vllm_rows((0, ["1.0"]), (1, [2.0]))),
        (vllm, vllm_rows((0, "1"), (1, "2"))),
        (sglang, [{"embedding": ["1.5"]}, {"embedding": [1]}]),
        (sglang, [{"embedding": [True]}, {"embedding": [1]}]),
        (sglang, [{"embedding": [None]}, {"embedding": [1]}]),
        (sglang, [{"embedding": {"0": 1}}, {"embedding": [1]}]),
        (sglang, [{"embedding": []}, {"embedding": []}]),
        (sglang, [{"embedding": [1]}] * 3),
        (sglang, {"embedding": [[1], [2]]}),
        (sglang, None),
        (sglang, b"[" * 200_000),
        (sglang, b'[{"embedding": [' + b"9" * 5000 + b"]}]"),
        (sglang, b"\xff\xfe{}"),
        (sglang, b""),
        (tei, [[{"label": "a", "score": 1}, {"label": "a", "score": 2}]] * 2),
        (tei, [[{"label": "a", "score": "1"}]] * 2),
        (tei, [[{"label": ["a"], "score": 1}]] * 2),
        (alarm, {"fingerprint": "f", "scores": [row(score="1")] * 2}),
        (alarm, {"fingerprint": "f", "scores": [row(num_tokens=-1)] * 2}),
        (alarm, {"fingerprint": "f", "scores": [row(num_tokens="3")] * 2}),
        (alarm, {"fingerprint": "f", "scores": [row(outputs={"a": "1"})] * 2}),
        (alarm, {"fingerprint": "f", "scores": [row()] * 3}),
        (alarm, {"fingerprint": ["f"], "scores": [row()] * 2}),
        (alarm, {"scores": [row()] * 2}),
        (alarm, []),
    ],
)
async def test_answer_of_another_shape_gives_no_score(
    make: Callable[[Calls], FastAPI], answer: object
) -> None:
    more = {"weights": {"ok": 1.0}} if make is tei else {}
    async with opened(make, **more) as (model, instead):
        instead.make = body(answer)
        outcomes = await model.score(completions("a", "b"))
        assert values(outcomes) == ["model_failed"] * 2
        for outcome in outcomes:
            assert isinstance(outcome, SampleError)
            assert len(outcome.message) < 300


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-1e999", "1" + "0" * 400])
async def test_number_that_is_not_finite_is_not_a_score(literal: str) -> None:
    for make, text in (
        (sglang, f'[{{"embedding": [{literal}]}}]'),
        (alarm, json.dumps({"fingerprint": "f", "scores": [row(score=0)]}).replace(
            '"score": 0', f'"score": {literal}')),
    ):  # fmt: skip
        async with opened(make) as (model, instead):
            instead.make = body(text.encode())
            assert values(await model.score(completions("a"))) == ["non_finite"]


@pytest.mark.parametrize("span", [(0, 9), (5, 2), (90, 91)])
async def test_segment_beyond_the_completion_fails_its_sample(span: tuple[int, int]) -> None:
    segment = {"start": span[0], "end": span[1], "label": "ok", "score": 1.0}
    answer = {"fingerprint": "f", "scores": [row(segments=[segment]), row()]}
    async with opened(alarm) as (model, instead):
        instead.make = body(answer)
        assert values(await model.score(completions("abcd", "b"))) == ["model_failed", 1.5]


async def test_unknown_error_code_becomes_model_failed() -> None:
    errors = [
        {"code": "group_conflict", "message": "a\nb" * 500},
        {"code": "too_long", "message": ""},
    ]
    answer = {"fingerprint": "f", "scores": [row(error=one) for one in errors]}
    async with opened(alarm) as (model, instead):
        instead.make = body(answer)
        outcomes = await model.score(completions("a", "b"))
        assert values(outcomes) == ["model_failed", "too_long"]
        assert isinstance(outcomes[0], SampleError)
        assert outcomes[0].message.startswith("group_conflict: a ba b")
        assert len(outcomes[0].message) < 250


@pytest.mark.parametrize("status", [200, 400, 401, 503])
async def test_refusal_text_is_bounded_printable_and_without_the_key(status: int) -> None:
    said = f"\x1b[31mIncorrect key {KEY}\n" + "x" * 1000
    failures: list[EndpointFailure] = []
    async with opened(sglang, api_key=KEY) as (model, instead):
        model.observe_failures(failures.append)
        instead.make = body(said.encode(), status)
        (outcome,) = await model.score(completions("a"))
        (failure,) = failures
        assert failure.reason == ("unknown_format" if status == 200 else "no_answer")
        assert ("Incorrect" in failure.message) == (status in (401, 503))
        assert KEY not in failure.message
        assert isinstance(outcome, SampleError)
        assert "Incorrect key [key] xxx" in outcome.message
        assert outcome.message.isprintable()
        assert len(outcome.message) < 260


async def test_key_at_the_cut_of_an_excerpt_is_not_shown_in_part() -> None:
    async with opened(sglang, api_key=KEY) as (model, instead):
        instead.make = body(("x" * 195 + KEY).encode(), 400)
        (outcome,) = await model.score(completions("a"))
        assert "sk-" not in str(outcome)


async def test_server_that_answers_no_json_at_the_start_is_not_waited_for() -> None:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(path: str) -> Response:
        return Response(b"<html>" + b"x" * 1000)

    with over_tcp(app) as port:
        url = f"http://user:hidden@127.0.0.1:{port}"
        spec = RemoteSpec.model_validate({"api": "tei", "url": url, "template": "{prompt}"})
        with pytest.raises(CheckpointError, match="answered no JSON: <html>x") as told:
            await RemoteModel(spec, {}).open()
        assert type(told.value) is CheckpointError
        assert "hidden" not in str(told.value)


async def test_languagetool_that_drips_or_is_endless_fails_its_sample() -> None:
    app = FastAPI()

    @app.post("/v2/check")
    async def check(request: Request) -> Response:
        is_slow = b"slow" in await request.body()
        return StreamingResponse(endless(b" " if is_slow else b" " * (1 << 20), 0.02 * is_slow))

    import asyncio

    with over_tcp(app) as port:
        url = f"http://127.0.0.1:{port}"
        # Reading what is too long has a time limit that a busy machine keeps.
        for text, timeout_s, told in (
            ("slow", 0.5, "took longer than 0.5 s"),
            ("long", 60, "more than"),
        ):
            spec = GrammarSpec(engine="languagetool", url=url, timeout_s=timeout_s)
            server = LanguageTool(spec)
            with pytest.raises(SampleError, match=told):
                await asyncio.to_thread(server.find, text)
            server.close()


def languagetool_of(answer: object) -> FastAPI:
    app = FastAPI()

    @app.post("/v2/check")
    async def check() -> Response:
        return body(answer)()

    return app


@pytest.mark.parametrize(
    "answer",
    [
        {"matches": [{"offset": "1", "length": 1, "rule": {"id": "A"}}]},
        {"matches": [{"offset": -1, "length": 1, "rule": {"id": "A"}}]},
        {"matches": [{"offset": 1, "length": True, "rule": {"id": "A"}}]},
        {"matches": [[]]},
        {"matches": None},
        [],
        b"[" * 200_000,
    ],
)
def test_languagetool_of_another_shape_finds_no_error(answer: object) -> None:
    with over_tcp(languagetool_of(answer)) as port:
        spec = {"engine": "languagetool", "url": f"http://127.0.0.1:{port}"}
        server = LanguageTool(GrammarSpec.model_validate(spec))
        with pytest.raises(SampleError, match="returned an invalid response"):
            server.find("a text")
        server.close()


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables of proxies; others are not set."""

    def set_only(**variables: str) -> None:
        for name in ("http", "https", "all", "no"):
            monkeypatch.delenv(f"{name}_proxy", raising=False)
            monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_only


RANGES = "localhost,fd00:10:244::/56,10.0.0.0/8,.example.com,host:8000,[fd11::1]:90,*.org"


@pytest.mark.parametrize(
    ("url", "is_proxied"),
    [
        ("http://rewards.test", True),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost", False),
        ("http://[fd00:10:244::7]:80", False),
        ("http://[fd00:11::7]:80", True),
        ("http://10.1.2.3", False),
        ("http://11.1.2.3", True),
        ("http://a.example.com", False),
        ("http://example.com", False),
        ("http://anexample.com", True),
        ("http://host:8000", False),
        ("http://host:8001", True),
        ("http://[fd11::1]:90", False),
        ("http://[fd11::1]:91", True),
        ("http://a.org", False),
        ("https://rewards.test", False),
    ],
)
async def test_request_goes_through_the_proxy_of_the_environment(
    url: str, is_proxied: bool, proxies: Callable[..., None]
) -> None:
    proxies(HTTP_PROXY="http://proxy.test:3128", NO_PROXY=RANGES)
    assert client._proxy(url) == ("http://proxy.test:3128" if is_proxied else None)


async def test_remote_model_goes_through_its_proxy(proxies: Callable[..., None]) -> None:
    with over_tcp(sglang(Calls())) as port:  # a proxy that answers itself
        proxies(http_proxy=f"127.0.0.1:{port}", NO_PROXY="fd00:10:244::/56")
        spec = {"api": "sglang", "url": "http://rewards.test", "template": "{completion}"}
        model = RemoteModel(RemoteSpec.model_validate(spec), {})
        await model.open()
        assert values(await model.score(completions("a" * 12))) == [2]
        await model.close()


@pytest.mark.parametrize("no_proxy", ["fd00:10:244::/56", "::1", "[", "::/0", " , ", "*", "%"])
async def test_exceptions_without_a_proxy_keep_no_model_from_being_opened(
    no_proxy: str, proxies: Callable[..., None]
) -> None:
    proxies(NO_PROXY=no_proxy, no_proxy=no_proxy)
    async with opened(sglang) as (model, _):
        assert values(await model.score(completions("a" * 12))) == [2]


@pytest.mark.parametrize(
    "proxy", ["ftp://proxy", "http://[::1", "http://proxy:port", "http://user:hidden@proxy:99999"]
)
async def test_unusable_proxy_is_named_by_its_variable(
    proxy: str, proxies: Callable[..., None]
) -> None:
    proxies(ALL_PROXY=proxy)
    spec = {"api": "sglang", "url": "http://rewards.test", "template": "{completion}"}
    with pytest.raises(AddressError, match="ALL_PROXY cannot be used") as told:
        await RemoteModel(RemoteSpec.model_validate(spec), {}).open()
    assert "hidden" not in str(told.value)


@pytest.mark.skipif(find_spec("socksio") is not None, reason="SOCKS proxies can be used")
async def test_socks_proxy_without_its_package_names_the_package(
    proxies: Callable[..., None],
) -> None:
    proxies(ALL_PROXY="socks5h://user:hidden@proxy:1080")
    spec = {"api": "sglang", "url": "http://rewards.test", "template": "{completion}"}
    with pytest.raises(AddressError, match=r"ALL_PROXY .*pip install 'httpx\[socks\]'") as told:
        await RemoteModel(RemoteSpec.model_validate(spec), {}).open()
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    ["http://host:port", "http://[::1", "http://h:99999", "http://:80", "http://a\x01b",
     "http://host/?x=1", "http://host\u200b:80", "http://ho st"],
)  # fmt: skip
def test_unusable_address_is_refused_by_the_recipe(url: str) -> None:
    with pytest.raises(ValueError, match=r"url"):
        RemoteSpec.model_validate({"api": "alarm", "url": url})
    with pytest.raises(ValueError, match=r"url"):
        GrammarSpec.model_validate({"engine": "languagetool", "url": url})


@pytest.mark.parametrize(
    "key", ["se\ncret", "se\rcret", "se\x00cret", "sécret", "secret\u200b", "  "]
)
def test_key_unfit_for_a_header_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as told:
        RemoteSpec.model_validate({"api": "alarm", "url": "http://h", "api_key": key})
    assert not any(part in str(told.value) for part in ("cret", "sec"))


@pytest.mark.parametrize("key", ["secret\n", "secret\r\n", "  secret\t"])
async def test_key_with_white_space_around_it_is_stripped(key: str) -> None:
    assert usable_key(key) == "secret"
    spec = RemoteSpec.model_validate({"api": "alarm", "url": "http://h", "api_key": key})
    assert spec.api_key is not None
    assert spec.api_key.get_secret_value() == "secret"


async def test_remote_score_is_unchanged_by_bounded_reading() -> None:
    async with opened(alarm) as (model, _):
        assert await model.score([Sample("p", "q")]) == [Score(1.5, None, 3, False)]


async def test_client_reads_an_answer_in_parts_whole() -> None:
    app = FastAPI()

    @app.post("/")
    async def answer() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b'{"a":', b" 1", b"}"):
                yield part

        return StreamingResponse(parts(), 201)

    with over_tcp(app) as port:
        url = f"http://127.0.0.1:{port}/"
        one = client.open_async_client(url, limits=httpx.Limits())
        response = await client.ask_async(one, "POST", url, timeout_s=30)
        assert (response.status_code, client.parsed(response)) == (201, {"a": 1})
        await one.aclose()


def test_clients_are_built_in_one_place() -> None:
    """Which alone knows of proxies, keys and bounds."""
    root = Path(__file__).parents[2]
    files = [*(root / "models/alarm_models").rglob("*.py"), *(root / "service").rglob("*.py")]
    built = {
        file.name
        for file in files
        if re.search(r"httpx\.(Async)?Client\(|httpx\.(get|post|request)\(", file.read_text())
    }
    assert built == {"connections.py"}
