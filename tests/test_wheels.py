"""The client's wheel, as installed on a trainer's node without a checkout."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

CLIENTS = Path(__file__).parents[1] / "clients"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(CLIENTS)]
    subprocess.run([*PIP, *build], check=True)
    (built,) = folder.glob("alarm_client-*.whl")
    return built


def test_client_wheel_has_every_source_file(wheel: Path) -> None:
    sources = (CLIENTS / "alarm_client").rglob("*.*")
    expected = {str(path.relative_to(CLIENTS)) for path in sources if path.suffix != ".pyc"}
    with ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected


def test_client_wheel_requires_only_httpx(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    assert [line for line in lines if line.startswith("Requires-Dist")] == [
        "Requires-Dist: httpx>=0.28"
    ]


def test_installed_client_wheel_finds_its_packaged_files(wheel: Path, tmp_path: Path) -> None:
    install = ["install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "alarm_client.trainers", "path", "easyr1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert Path(done.stdout.strip()).is_file()
