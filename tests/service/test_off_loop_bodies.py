"""Large bodies are parsed in pieces, with the same result, while others are served."""

import asyncio
import gc
import json
import threading
import weakref
from array import array
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import Server, serving, until_set
from standin import FIGURE_1, PATIENCE_S

from alarm_models.process_tuning import collect_frozen
from alarm_models.types import PackedSpans, Span
from alarm_service import json_pieces as pieces
from alarm_service.api import off_loop_bodies as large

NAMES = st.sampled_from(["token_offsets", "segments", "a", 'b"', "c\\", ""])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(),
    st.sampled_from(["\\", '"', "[{,", '\\"', "\\\\"]),
    st.integers(30, 40).map(lambda num: [[at, at + 1] for at in range(num)]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda some: st.lists(some, max_size=6) | st.dictionaries(NAMES, some, max_size=4)
)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 24)
    monkeypatch.setattr(pieces, "_WINDOW_BYTES", 64)
    monkeypatch.setattr(pieces, "_MAX_LEVELS", 100)


def plain(value: Any) -> Any:
    """The same with spans as lists again."""
    if isinstance(value, list | PackedSpans):
        return [plain(one) if isinstance(value, list) else list(one) for one in value]
    return {name: plain(one) for name, one in value.items()} if type(value) is dict else value


def read(reader: Callable[[bytes], Any], body: bytes) -> str:
    try:
        return repr(plain(reader(body)))
    except (ValueError, RecursionError):
        return "no JSON"


@settings(deadline=None, derandomize=True, database=None)
@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_read_json_in_pieces_equals_json_loads(
    value: Any, indent: int | None, is_ascii: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PIECE_BYTES", 24)
        patch.setattr(pieces, "_WINDOW_BYTES", 64)
        patch.setattr(pieces, "_MAX_LEVELS", 100)
        body = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
        encoded = body.encode("utf-8", "surrogatepass")
        assert read(pieces.read_json, encoded) == read(json.loads, encoded)


@settings(deadline=None, derandomize=True, database=None)
@given(VALUES, st.data())
def test_read_json_in_pieces_refuses_what_json_loads_refuses(value: Any, data: Any) -> None:
    body = bytearray(json.dumps([value, value]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from(b'[]{},:"\\ 1a\n'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PIECE_BYTES", 24)
        patch.setattr(pieces, "_WINDOW_BYTES", 64)
        patch.setattr(pieces, "_MAX_LEVELS", 100)
        assert read(pieces.read_json, bytes(body)) == read(json.loads, bytes(body))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_read_json_of_other_encodings_equals_json_loads(encoding: str) -> None:
    body = json.dumps({"a": ["é" * 30, "b" * 30]}, ensure_ascii=False).encode(encoding)
    assert pieces.read_json(body) == json.loads(body)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "unit", ["\\n", "\\\\", "\\ud83d\\ude00", "\\\\ud83d", "\\ud83d", "é", "🙂", '\\"']
)
def test_read_json_of_long_text_splits_no_character(unit: str) -> None:
    for offset in range(30):
        body = f'["{"a" * offset}{unit * 30}"]'.encode()
        assert pieces.read_json(body) == json.loads(body)


def test_read_json_packs_spans_and_nothing_else() -> None:
    spans = [[at, at + 1] for at in range(20_000)]
    found = pieces.read_json(
        json.dumps({"token_offsets": spans, "segments": {"a": spans}, "labels": spans}).encode()
    )
    assert type(found["token_offsets"]) is type(found["segments"]["a"]) is PackedSpans
    assert found["labels"] == spans
    assert found["token_offsets"][-1] == Span(19_999, 20_000)
    for unsound in ([0, 1.0], [0, True], [-1, 0], [0, 1 << 41], [0], [0, 1, 2], "ab"):
        body = json.dumps({"token_offsets": [*spans, unsound]}).encode()
        assert pieces.read_json(body)["token_offsets"] == [*spans, unsound]


def test_read_json_without_packing_gives_lists(small_pieces: None) -> None:
    spans = [[at, at + 1] for at in range(40)]
    body = {"token_offsets": spans, "segments": {"a": spans}, "more": [{"token_offsets": spans}]}
    assert pieces.read_json(json.dumps(body).encode(), packs_spans=False) == body


def test_packed_spans_are_a_sequence_of_spans() -> None:
    spans = PackedSpans(array("q", [0, 1, 1, 3, 3, 3]))
    assert spans == (Span(0, 1), Span(1, 3), Span(3, 3))
    assert (spans[-1], spans[:2]) == (Span(3, 3), (Span(0, 1), Span(1, 3)))
    assert (len(spans), list(spans)[1].end, hash(spans)) == (3, 3, hash(tuple(spans)))
    assert spans != ((0, 1),)


@pytest.mark.parametrize(
    "body",
    [
        {"token_offsets": [[at, at + 1] for at in range(20_000)]},
        {"samples": [{"completion": "é" * 500, "id": at} for at in range(300)]},
        {"samples": [{"fields": {str(at): "a" for at in range(20_000)}}] * 2},
        [[[[["a"] * 50_000] * 2]]],
        {"a" * 100_000: 1, "b": [1, {"c": ["d"] * 20_000}]},
    ],
)
def test_read_json_reads_no_more_at_once_than_a_piece(
    body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sizes = pieces._Reader._read, []

    def noted(reader: pieces._Reader, text: bytes) -> Any:
        sizes.append(len(text))
        return read(reader, text)

    monkeypatch.setattr(pieces, "_PIECE_BYTES", 4096)
    monkeypatch.setattr(pieces._Reader, "_read", noted)
    assert plain(pieces.read_json(json.dumps(body).encode())) == body
    assert max(sizes) <= 4096 + len("[]")


BODIES: list[tuple[str, Any]] = [
    ("/score", {"samples": [{"prompt": "?", "completion": "A b", "id": 1}] * 3}),
    ("/score", {"samples": [{"prompt": [{"role": "user", "content": "é"}], "completion": ""}]}),
    ("/score", {"samples": [{"prompt": "?", "completion": "a"}, {}], "modle": 1}),
    ("/score", {"samples": [{"prompt": "\ud800", "completion": 5}]}),
    ("/score", {"samples": [{"prompt": "?", "completion": "a", "token_offsets": [[0, -1]] * 40}]}),
    ("/score", {"samples": 1}),
    ("/score", []),
    ("/hierarchical_reward", {"samples": [{"prompt": "?", "completion": "AB B C AAC b c x" * 9,
        "token_offsets": [[at, at + 1] for at in range(99)],
        "segments": {"sentences": [[at, at + 1] for at in range(50)]}}]}),
    ("/hierarchical_reward", {"samples": [{"prompt": "?", "completion": "boom"}] * 2}),
    ("/hierarchical_reward", {"samples": [{"prompt": "?", "completion": "ab",
        "token_offsets": [[at, at + 1] for at in range(99)]}]}),
    ("/get_reward", {"query": ["Q? A."], "labels": [[[1, 2]] * 99]}),
    ("/compat/slime/figure-1", {"prompt": "?", "response": "a b"}),
    ("/compat/slime/figure-1", {"prompt": "?"}),
]  # fmt: skip


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_large_body_has_the_same_response_as_small_ones(
    path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(server: Server) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        return await server.client.post(path, content=json.dumps(body), headers=headers)

    async with serving(FIGURE_1) as server:
        small = await answer(server)
        monkeypatch.setattr(large, "_LARGE_BYTES", 0)
        assert (await answer(server)).text == small.text


@pytest.mark.parametrize("content", [b"[", b'{"a": 1,}', b"\xff", b"[" * 100_000 + b"]" * 100_000])
async def test_large_body_that_is_not_json_is_400(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "_LARGE_BYTES", 0)
    async with serving() as server:
        headers = {"Content-Type": "application/json"}
        answer = await server.client.post("/score", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("path", "field", "most"), [("/score", "samples", 8), ("/get_reward", "query", 8 * 64)]
)
@pytest.mark.parametrize("count", [1000, 100_000])
async def test_large_body_with_too_many_items_is_413_before_validation(
    path: str, field: str, most: int, count: int
) -> None:
    async with serving(max_samples=8) as server:
        answer = await server.client.post(path, json={field: [{}] * count})
    assert answer.status_code == 413
    message = answer.json()["error"]["message"]
    assert message.startswith(f"{field} has {count} items, a request may have {most}")


async def test_large_body_does_not_block_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    held, release = threading.Event(), threading.Event()

    def held_read(body: bytes) -> Any:
        held.set()
        assert release.wait(PATIENCE_S)
        return pieces.read_json(body)

    monkeypatch.setattr(large, "read_json", held_read)
    body = {"samples": [*[{"prompt": "?", "completion": "x" * 1000}] * 200, {}]}
    async with serving() as server:
        reading = asyncio.create_task(server.client.post("/score", json=body))
        await until_set(held)
        assert not gc.isenabled()
        assert (await server.client.get("/health/live")).status_code == 200
        assert (await server.score("a b")).json()["scores"][0]["score"] == 2
        release.set()
        answer = await reading
    assert gc.isenabled()
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("samples[200].prompt: Field required")


async def test_large_bodies_freeze_what_they_parsed_and_collect_cycles_in_the_end() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    bodies = large.LargeBodies()
    try:
        cycle = Cycle()
        found = weakref.ref(cycle)
        await bodies.run(lambda: None)
        del cycle
        assert gc.get_freeze_count() > 0
        gc.collect()
        is_kept = found() is not None  # frozen, as is all that was there
        collect_frozen()
        is_collected = found() is None
        assert (is_kept, is_collected) == (True, True)
        assert gc.isenabled()
    finally:
        bodies.close()
        gc.unfreeze()
