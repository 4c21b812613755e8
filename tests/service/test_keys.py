import base64

import pytest
from served import serving

KEY = "sésame"


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {KEY}".encode(),
        f"bearer  {KEY} ".encode(),
        basic("", KEY),
        basic("anybody", KEY),
    ],
)
async def test_a_key_opens_the_door(authorization: bytes) -> None:
    async with serving(api_key=KEY) as server:
        answer = await server.client.get("/models", headers={"Authorization": authorization})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer wrong",
        KEY.encode(),
        f"Digest {KEY}".encode(),
        basic(KEY, ""),
        basic("", "wrong"),
        b"Basic !",
        b"Basic \xff",
        f"Bearer {KEY}".encode("latin-1"),
    ],
)
async def test_without_the_key_all_but_health_is_401(authorization: bytes) -> None:
    async with serving(api_key=KEY) as server:
        headers = {"Authorization": authorization}
        for path in ("/models", "/metrics", "/openapi.json", "/docs", "/nowhere"):
            answer = await server.client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "unauthorized"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        posted = await server.client.post("/score", json={"samples": []}, headers=headers)
        assert posted.status_code == 401
        assert (await server.client.get("/health/live", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/health/../models", "//models", "/health/%2e%2e/models"])
async def test_no_path_leads_around_the_key(path: str) -> None:
    async with serving(api_key=KEY) as server:
        assert (await server.client.get(path)).status_code in (401, 404)


async def test_a_server_without_a_key_asks_for_none() -> None:
    async with serving() as server:
        assert (await server.client.get("/models")).status_code == 200
