import http.server
import shutil
import signal
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import PATIENCE_S, alarm_serve, recipe_of, until_event
from tiny import Checkpoint

from alarm_service.cli.commands import probe
from alarm_service.cli.main import main
from alarm_service.preflight import require_safe_exposure, require_usable_certificate
from alarm_service.settings import Settings, SettingsError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"host": "127.3.2.1"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "api_key": "sesame"},
        {"host": "0.0.0.0", "insecure": True},
        {"host": "0.0.0.0", "published": "127.0.0.1"},
    ],
)
def test_exposure_on_loopback_or_with_key_is_allowed(options: dict[str, Any]) -> None:
    require_safe_exposure(Settings(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": ""},
        {"host": "10.0.0.7"},
        {"host": "localhost.example.org"},
        {"host": "0.0.0.0", "published": "192.168.1.2"},
        {"host": "127.0.0.1", "published": "0.0.0.0"},
        {"host": "0.0.0.0", "published": ""},
    ],
)
def test_exposure_without_key_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"give a key .* or set --insecure"):
        require_safe_exposure(Settings(**options))


def test_serve_refuses_unsafe_exposure_before_it_listens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--recipe", "nobody"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("alarm: listening on 0.0.0.0 lets every machine that reaches it")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=alarm", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-out", chain, "-keyout", key], check=True, capture_output=True
    )
    return chain, key


def test_certificate_without_key_is_refused(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    for lonely in ({"tls_certificate": chain}, {"tls_key": key}):
        with pytest.raises(SettingsError, match="go together"):
            require_usable_certificate(Settings(**lonely))
    with pytest.raises(SettingsError, match="cannot be used"):
        require_usable_certificate(Settings(tls_certificate=key, tls_key=key))
    require_usable_certificate(Settings(tls_certificate=chain, tls_key=key))


def test_server_with_certificate_serves_https(
    certificate: tuple[Path, Path], llama: Checkpoint, tmp_path: Path
) -> None:
    chain, key = certificate
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(recipe_of(llama.folder))
    flags = ("--tls-certificate", str(chain), "--tls-key", str(key), "--api-key", "sesame")
    with alarm_serve(recipe, *flags) as process:
        assert process.url.startswith("https://127.0.0.1:")
        until_event(process, "ready")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{process.url}/health/ready")
        headers = {"Authorization": "Bearer sesame"}
        with httpx.Client(
            verify=ssl.create_default_context(cafile=chain), headers=headers
        ) as client:
            assert client.get(f"{process.url}/models", timeout=PATIENCE_S).status_code == 200
        port = int(process.url.rpartition(":")[2])
        assert probe(Settings(port=port, tls_certificate=chain)) == (True, "ready")
        assert process.stop(signal.SIGTERM)[0] == 0


def test_health_command_reports_readiness(
    llama: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(recipe_of(llama.folder))
    with alarm_serve(recipe, "--host", "0.0.0.0", "--insecure") as process:
        until_event(process, "ready")
        port = process.url.rpartition(":")[2]
        assert main(["health", "--host", "0.0.0.0", "--port", port]) == 0
        assert capsys.readouterr().out == "ready\n"
    assert main(["health", "--port", port]) == 1
    assert f"no server responds on 127.0.0.1 port {port}" in capsys.readouterr().out


def test_health_command_other_server_is_an_error() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever).start()
        told = probe(Settings(port=stranger.server_address[1]))
        stranger.shutdown()
    assert told == (False, "the response is not from a reward server")


class _Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass
