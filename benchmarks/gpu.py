"""Measures the service on a GPU in under five minutes, offline, with the machine's own torch.

Each section runs in its own process with a time limit, in the order of `gpu_sections.SECTIONS`.
Writes what was measured to a JSON file, and as tables to a Markdown file beside it. A section that
fails, or runs out of time, keeps the rows it has and says so.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --device cpu --toy --out rehearsal.json    # a rehearsal
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from children import end_on_sigterm, stop
from gpu_sections import SECTIONS, Row, Section, Setting

#: Seconds that a section has to stop its own children when its time is up.
_STOP_S = 30

#: Time below which a section is not started, as a share of its limit.
_LEAST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a section measured; ``error`` is the end of its output unless it is done."""

    title: str
    status: str
    seconds: float
    rows: Sequence[Row]
    error: str | None = None


def main() -> None:
    """Run the sections, or one of them in this process, for the process that runs all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu with --toy")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to rehearse on a CPU")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help=", ".join(SECTIONS),
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file to write")
    parser.add_argument(
        "--limit-factor", type=float, default=1, help="multiplies the time limits of sections"
    )
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    require_device(options.device, is_toy=options.toy)
    if options.rows is not None:
        _write_rows(SECTIONS[options.only[0]], options)
        return
    end_on_sigterm()
    machine, outcomes = _machine(options), {}
    for name, outcome in _outcomes(options):
        outcomes[name] = outcome
        _write(options.out, machine, outcomes)  # now, in case the whole run is ended
    print(f"{options.out} and {options.out.with_suffix('.md')}")


def require_device(device: str, *, is_toy: bool) -> None:
    """End the process with one sentence if it cannot measure on this device."""
    if device == "cpu" and not is_toy:
        sys.exit("--device cpu needs --toy: the sizes for a GPU take hours on a CPU")
    if device != "cpu" and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no CUDA device: run this on a machine with a GPU, "
            "or rehearse it with --device cpu --toy"
        )


def _write_rows(section: Section, options: argparse.Namespace) -> None:
    """Run a section in this process and write each row to a file at once, as a line of JSON."""
    end_on_sigterm()
    with tempfile.TemporaryDirectory() as folder, options.rows.open("w") as file:
        for row in section.rows(Setting(options.device, options.toy, Path(folder))):
            print(json.dumps(row), file=file, flush=True)


def _outcomes(options: argparse.Namespace) -> Iterator[tuple[str, Outcome]]:
    """Run one section after another; each may also use what earlier ones left of their time."""
    deadline = time.monotonic()
    for name in options.only:
        section = SECTIONS[name]
        own_limit_s = section.limit_s * options.limit_factor
        deadline += own_limit_s
        limit_s = deadline - time.monotonic()
        if limit_s < _LEAST_SHARE * own_limit_s:
            outcome = Outcome(section.title, "not run: no time left", 0, [])
        else:
            outcome = _run(name, options, limit_s)
        print(f"{name}: {outcome.status}, {len(outcome.rows)} rows, {outcome.seconds:.0f} s")
        if outcome.error:
            print(outcome.error)
        sys.stdout.flush()
        yield name, outcome


def _run(name: str, options: argparse.Namespace, limit_s: float) -> Outcome:
    """Run a section in a child process; end it and its children after ``limit_s`` seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder, "rows"), Path(folder, "log")
        command = [sys.executable, __file__, "--only", name, "--rows", str(rows)]
        command += ["--device", options.device, *(["--toy"] if options.toy else [])]
        modules = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(folder, "modules"))}
        status = "failed"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | modules,
                start_new_session=True,
            )
            try:
                if process.wait(limit_s) == 0:
                    status = "done"
            except subprocess.TimeoutExpired:
                status = f"out of time after {limit_s:.0f} s"
            finally:
                stop(process, _STOP_S)
        return Outcome(
            SECTIONS[name].title,
            status,
            time.monotonic() - started,
            list(_read_rows(rows)),
            None if status == "done" else log.read_text(errors="replace").strip()[-4000:],
        )


def _read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a section; the last line may be cut off."""
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _write(path: Path, machine: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    sections = {name: asdict(outcome) for name, outcome in outcomes.items()}
    path.write_text(json.dumps({"machine": machine, "sections": sections}, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join(markdown(machine, outcomes)))


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    is_cpu = options.device == "cpu"
    return {
        "device": platform.machine() if is_cpu else torch.cuda.get_device_name(options.device),
        "toy": options.toy,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": hf.__version__,
        "cpu_cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def markdown(machine: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """Yield the lines of the results, a table per section."""
    yield ", ".join(f"{key} {value}" for key, value in machine.items()) + "."
    for outcome in outcomes.values():
        yield f"\n### {outcome.title}\n\n{outcome.status}, {outcome.seconds:.0f} s\n"
        if outcome.status == "failed" and outcome.error:
            yield f"`{outcome.error.splitlines()[-1]}`\n"
        columns = list(dict.fromkeys(key for row in outcome.rows for key in row))
        if columns:
            yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
        for row in outcome.rows:
            yield f"| {' | '.join(_shown(row.get(column)) for column in columns)} |"
    yield ""


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
