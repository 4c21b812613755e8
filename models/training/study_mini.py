"""Creates the worked study in docs/study: the agreement of `mini`'s rewards with people.

Run it in the repository's root to rewrite the reports:

    .venv/bin/python models/training/study_mini.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from alarm_service.cli.main import main as alarm
from data import Pair, Question, is_held_out, load_questions

#: Commands of the study by name of their report; input files are in the current folder.
COMMANDS = {
    "select": "alarm select answers.jsonl --write chosen.toml",
    "calibrate": "alarm calibrate answers.jsonl --admit 0.27 --write calibrated.toml",
    "evaluate": "alarm evaluate model=model.jsonl corrected=corrected.jsonl human=human.jsonl",
}


def main() -> None:
    """Write the inputs, run the commands and keep their reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of qa_feedback.json and qa_prompts.json"
    )
    parser.add_argument(
        "--docs", type=Path, default=Path("docs/study"), help="output folder [default docs/study]"
    )
    parser.add_argument("--url", help="score with a server of `mini` instead of in this process")
    parser.add_argument("--inputs", type=Path, help="keep the input files in this folder")
    options = parser.parse_args()
    questions = [one for one in load_questions(options.data) if is_held_out(one.text)]
    with TemporaryDirectory() as temporary:
        folder = options.inputs or Path(temporary)
        write_inputs(questions, folder)
        for name, command in COMMANDS.items():
            run(name, command, folder, options.docs, options.url)


def write_inputs(questions: Sequence[Question], folder: Path) -> None:
    """Write the input files: four answers per question, and the answers of three policies."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "answers.jsonl", map(_with_preferences, questions))
    policies = {
        "model": [one.answers[0] for one in questions],
        "corrected": [one.references[1] for one in questions],
        "human": [one.references[0] for one in questions],
    }
    for name, texts in policies.items():
        rows = zip(questions, texts, strict=True)
        # Corrections may be empty; prompts that one policy lacks are left out for all.
        samples = [{"prompt": one.prompt, "completion": text} for one, text in rows if text.strip()]
        _write(folder / f"{name}.jsonl", samples)


def run(name: str, command: str, folder: Path, docs: Path, url: str | None) -> None:
    """Run a command in a folder, and keep its report and pictures."""
    sys.stderr.write(f"{command}\n")
    _, *words = command.split()
    out = folder / "reports" / name
    arguments = [_within(folder, word) for word in words] + ["--out", str(out)]
    arguments += [] if url is None else ["--url", url]
    if alarm(arguments) != 0:
        sys.exit(f"{command} failed")
    kept = docs / name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    report = (out / "report.md").read_text(encoding="utf-8")
    heading, _, rest = report.partition("\n\n")
    (kept / "README.md").write_text(f"{heading}\n\n    {command}\n\n{rest}", encoding="utf-8")
    for picture in sorted(out.glob("*.png")):
        shutil.copy(picture, kept)


def _within(folder: Path, word: str) -> str:
    """Prefix a file with the folder, in NAME=FILE.jsonl as in FILE.jsonl."""
    name, equals, file = word.rpartition("=")
    return f"{name}{equals}{folder / file}" if file.endswith((".jsonl", ".toml")) else word


def _with_preferences(question: Question) -> Mapping[str, object]:
    return {
        "prompt": question.prompt,
        "completions": question.answers,
        "preferences": [_preference(pair) for pair in question.pairs],
    }


def _preference(pair: Pair) -> Mapping[str, object]:
    return {"first": pair.better, "second": pair.worse, "preferred": "first"}


def _write(file: Path, records: Iterable[object]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


if __name__ == "__main__":
    main()
