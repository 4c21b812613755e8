"""Evaluation data; errors name file, line and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from alarm_service.evaluation.dataset import named_files, read_groups, read_material, read_policies
from alarm_service.evaluation.errors import StudyError


def lines(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


def answer(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def texts(*completions: str) -> dict[str, Any]:
    return {"prompt": "?", "completions": list(completions)}


def test_dataset_line_is_a_prompt_with_completions(tmp_path: Path) -> None:
    first = {
        **texts("a", "b"),
        "fields": {"question": "q"},
        "values": {"stars": [4, None]},
        "preferences": [{"first": 1, "second": 0, "preferred": "first"}],
    }
    found = read_groups(lines(tmp_path / "f", first, texts("c")))
    assert [one.completion for one in found.samples] == ["a", "b", "c"]
    assert found.samples[0].fields == {"question": "q"}
    assert found.prompts == (0, 0, 1)
    assert str(found.values["stars"]) == "(4.0, nan, nan)"
    (preferred,) = found.preferred
    assert (preferred.first, preferred.second, preferred.outcome) == (1, 0, 1.0)


def test_dataset_groups_samples_by_prompt(tmp_path: Path) -> None:
    file = lines(tmp_path / "f", answer("p", "a"), answer("q", "b"), answer("p", "c"))
    assert read_groups(file).prompts == (0, 0, 1)


def test_dataset_policies_share_the_prompts_that_all_have(
    tmp_path: Path,
) -> None:
    one = lines(tmp_path / "one", answer("p", "a"), answer("q", "b"), answer("r", "c"))
    two = lines(tmp_path / "two", answer("r", "d"), answer("p", "e"), answer("p", "f"))
    found = read_policies({"one": one, "two": two})
    rows = zip(found.samples, found.prompts, found.policies, strict=True)
    assert [(sample.completion, prompt, policy) for sample, prompt, policy in rows] == [
        ("a", 0, 0),
        ("c", 1, 0),
        ("e", 0, 1),
        ("f", 0, 1),
        ("d", 1, 1),
    ]
    assert found.num_left_out == 1


def test_dataset_ids_match_prompts_that_differ(tmp_path: Path) -> None:
    one = lines(tmp_path / "one", answer("p", "a", id=7))
    two = lines(tmp_path / "two", answer("P!", "b", id=7))
    assert read_policies({"one": one, "two": two}).num_prompts == 1


def test_dataset_file_names_are_policy_names(tmp_path: Path) -> None:
    assert named_files(["sft=a.jsonl", "b.jsonl"]) == {"sft": Path("a.jsonl"), "b": Path("b.jsonl")}
    with pytest.raises(StudyError, match="a unique name"):
        named_files(["x/a.jsonl", "y/a.jsonl"])


def test_dataset_sampled_prompts_depend_on_the_seed_only(tmp_path: Path) -> None:
    file = lines(tmp_path / "f", *(texts(f"a{n}", f"b{n}") for n in range(50)))
    drawn = read_material([str(file)], 10, seed=1)
    assert drawn.num_prompts == 10
    assert len(drawn.samples) == 20
    assert drawn == read_material([str(file)], 10, seed=1)
    assert drawn != read_material([str(file)], 10, seed=2)
    assert read_material([str(file)], 99, seed=1).num_prompts == 50


def test_dataset_preferences_follow_sampled_prompts(tmp_path: Path) -> None:
    preferences = [{"first": 0, "second": 1, "preferred": "second"}]
    records = [{**texts(f"a{n}", f"b{n}"), "preferences": preferences} for n in range(9)]
    drawn = read_groups(lines(tmp_path / "f", *records)).some_prompts(3, seed=0)
    for one in drawn.preferred:
        (a, b) = drawn.samples[one.first].completion_text, drawn.samples[one.second].completion_text
        assert (a[0], b[0], a[1:]) == ("a", "b", b[1:])
    assert len(drawn.preferred_pairs) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"prompt": "p"}', "line 2: completions: Field required"),
        ('{"prompt": "p", "completion": 5}', "line 2: completion"),
        ('{"prompt": "p", "completions": []}', "line 2: completions: List should have at least 1"),
        ('{"prompt": "p", "completions": ["a"], "vales": {}}', "line 2: vales: Extra inputs"),
        (
            '{"prompt": "p", "completions": ["a"], "values": {"stars": [1, 2]}}',
            "line 2: .*values.stars has 2 for 1 completions",
        ),
        (
            '{"prompt": "p", "completions": ["a", "b"], "preferences": '
            '[{"first": 0, "second": 2, "preferred": null}]}',
            r"line 2: .*preferences\[0\] compares 0 and 2, but must compare two of 2 completions",
        ),
    ],
)
def test_dataset_wrong_line_is_reported_by_number_and_field(
    line: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(texts("a")) + "\n" + line + "\n")
    with pytest.raises(StudyError, match=message) as told:
        read_groups(file)
    assert str(file) in str(told.value)


def test_dataset_without_pairs_is_refused(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "one", answer("p", "a")), lines(tmp_path / "two", answer("q", "b"))
    with pytest.raises(StudyError, match="no common prompt"):
        read_policies({"one": one, "two": two})
    with pytest.raises(StudyError, match="give two or more files"):
        read_policies({"one": one})
    with pytest.raises(StudyError, match="is empty"):
        read_groups(lines(tmp_path / "none"))
