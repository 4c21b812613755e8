import base64
import os
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr
from served import serving

from alarm_service.api_keys import Keys, read_keys
from alarm_service.cli.main import main
from alarm_service.settings import Settings, SettingsError

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
async def test_request_with_the_key_is_served(authorization: bytes) -> None:
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
async def test_request_without_key_is_401_except_health(authorization: bytes) -> None:
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
async def test_api_key_cannot_be_bypassed_by_path(path: str) -> None:
    async with serving(api_key=KEY) as server:
        answer = await server.client.get(f"http://localhost{path}")
        assert answer.status_code in (401, 404)


async def test_server_without_keys_requires_none() -> None:
    async with serving() as server:
        assert (await server.client.get("/models")).status_code == 200


def test_keys_find_returns_index_of_whole_keys_only() -> None:
    keys = Keys(["first", "second", "first"])
    assert len(keys) == 2
    assert [keys.find(key) for key in (b"first", b"second")] == [0, 1]
    assert [keys.find(key) for key in (b"", b"firs", b"first ", b"FIRST", b"third")] == [None] * 5


async def test_request_with_any_of_several_keys_is_served(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# team one\n  {KEY}  # until May\n\n\t# team two\nother\n#third\nnot#e\n")
    async with serving(api_key_file=file, api_key="third; fourth") as server:
        for key in (KEY, "other", "not#e", "third", "fourth"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert (await server.client.get("/models", headers=headers)).status_code == 200
        for key in ("# team one", "fifth", ""):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert (await server.client.get("/models", headers=headers)).status_code == 401


@pytest.mark.parametrize("text", ["", "\n# nobody yet\n"])
def test_key_file_without_a_key_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError, match="has no key"):
        read_keys(Settings(api_key_file=file))


def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--api-key-file .*nowhere cannot be read"):
        read_keys(Settings(api_key_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("option", ["api_key", "admin_key"])
@pytest.mark.parametrize("key", ["se\x01cret", "se\tcret", "secret\x7f", "se\u200bcret", "se cret"])
def test_key_with_a_control_character_is_refused_by_its_option_and_not_quoted(
    option: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"ALARM_{option.upper()}", key)
    assert main(["health"]) == 1
    told = capsys.readouterr().err
    assert f"ALARM_{option.upper()}: the key has U+" in told
    assert "cret" not in told


def test_key_file_with_a_control_character_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfine\nse\x00cret\n")
    with pytest.raises(SettingsError, match=r"keys, line 3: the key has U\+0000") as told:
        read_keys(Settings(api_key_file=file))
    assert "cret" not in str(told.value)


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", " \n\n"])
def test_key_file_line_ends_and_byte_order_mark_are_stripped(ending: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"\ufefffirst{ending}".encode())
    keys = read_keys(Settings(api_key_file=file, api_key=(SecretStr(f"second{ending}"),)))
    assert [keys.find(key) for key in (b"second", b"first")] == [0, 1]


def test_key_file_pipe_can_be_read_several_times(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    os.mkfifo(pipe)
    settings = Settings(api_key_file=pipe)
    writing = threading.Thread(target=pipe.write_text, args=("first\nsecond\n",))
    writing.start()
    for _ in range(3):
        assert read_keys(settings).find(b"second") == 1
    writing.join()
