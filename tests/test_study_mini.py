"""Input files of the worked study, created from questions in the format of qa_feedback.json."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from alarm_service.evaluation.dataset import read_groups, read_policies

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(training: Callable[[str], ModuleType]) -> ModuleType:
    return training("study_mini")


def question(text: str, corrected: str) -> dict[str, object]:
    return {
        "question": text,
        **{f"prediction {index}": f"{text} answer {index}" for index in range(1, 5)},
        "preference": [1, 2, 0, 0, 0, 1],  # 1v2, 1v3, 1v4, 2v3, 2v4, 3v4
        "gold": f"{text} gold",
        "feedback": {"errors": [], "corrected-prediction": corrected},
    }


def test_study_input_files_are_readable_by_the_commands(study: ModuleType, tmp_path: Path) -> None:
    rows = [question("Why?", "Why? corrected"), question("How?", "")]
    prompts = [
        {"question": one["question"], "text": f"question: {one['question']}"} for one in rows
    ]
    (tmp_path / "qa_feedback.json").write_text(json.dumps(rows))
    (tmp_path / "qa_prompts.json").write_text(json.dumps(prompts))
    study.write_inputs(study.load_questions(tmp_path), tmp_path / "inputs")
    answers = read_groups(tmp_path / "inputs" / "answers.jsonl")
    assert answers.num_prompts == 2
    people = [(one.first, one.second, one.outcome) for one in answers.preferred[:3]]
    assert people == [(0, 1, 1.0), (2, 0, 1.0), (2, 3, 1.0)]
    names = ("model", "corrected", "human")
    policies = read_policies({one: tmp_path / "inputs" / f"{one}.jsonl" for one in names})
    assert policies.num_left_out == 1  # nobody corrected the second
    assert [one.completion for one in policies.samples] == [
        "Why? answer 1",
        "Why? corrected",
        "Why? gold",
    ]


def test_reports_linked_from_the_study_exist() -> None:
    text = (ROOT / "docs" / "study" / "README.md").read_text()
    for name in ("select", "calibrate", "evaluate"):
        assert f"]({name}/README.md)" in text
        assert (ROOT / "docs" / "study" / name / "README.md").is_file()
