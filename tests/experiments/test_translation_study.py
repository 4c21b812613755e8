import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tolerance import computed

from translation_study.corpus import HELD_OUT, pairs_of, split
from translation_study.error_spans import corrupt, mark
from translation_study.intervals import gain, win_rate, win_rates_by_seed
from translation_study.methods import methods
from translation_study.preferences import label
from translation_study.settings import QUICK
from translation_study.stages import Run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_split_no_sentence_of_either_language_is_in_two_parts() -> None:
    shared = [(f"hola {one}", f"we all say hello {one // 2}") for one in range(1000)]
    pairs = shared + [(f"hola {one}", f"{one} times they said hi") for one in range(1000)]
    parts = split(pairs, QUICK)
    assert all(parts.values())
    seen: dict[str, str] = {}
    for name in (*HELD_OUT, "policy"):
        for text in {text for pair in pairs_of(parts[name]) for text in pair}:
            assert seen.setdefault(text, name) == name


def test_corrupt_marks_every_word_that_differs() -> None:
    reference = "I want to see the other houses today."
    marked = corrupt([("p", reference)] * 200, ["paper", "green"], seed=0)
    untouched = [one for one in marked if one.words == tuple(reference.split())]
    assert 30 < len(untouched) < 120
    for one in marked:
        assert len(one.words) == len(one.wrong)
        others = [word for word, bad in zip(one.words, one.wrong, strict=True) if not bad]
        assert set(others) <= set(reference.split())


def test_mark_counts_each_word_of_the_reference_once() -> None:
    found = mark("p", "The cat saw the the dog!", "the dog saw the cat")
    assert found.words == ("The", "cat", "saw", "the", "the", "dog!")
    assert found.wrong == (False, False, False, False, True, False)


def test_win_rate_resamples_prompts_with_their_samples() -> None:
    own = np.array([[[1.0, 1.0], [0.0, 0.0]]])  # one seed, two prompts, two samples
    found = win_rate(own, 1 - own, 200, is_lower_better=False)
    assert [found.value, found.low, found.high] == [0.5, 0.0, 1.0]


def test_label_flips_the_share_that_is_asked_for() -> None:
    pairs = label(["p"] * 400, [["good", "bad"]] * 400, [[2.0, 1.0]] * 400, 0.25)
    assert len(pairs) == 400
    flipped = [pair for pair in pairs if pair.flipped]
    assert 70 <= len(flipped) <= 130
    assert {pair.chosen for pair in flipped} == {"bad"}


def test_win_rate_leaves_ties_out_and_turns_where_lower_is_better() -> None:
    own, other = np.array([[1.0, 2.0, 3.0, 3.0]]), np.array([[0.0, 1.0, 4.0, 3.0]])
    assert win_rate(own, other, 50, is_lower_better=False).value == 2 / 3
    assert win_rates_by_seed(own, other, is_lower_better=True) == [1 / 3]


def test_gain_interval_of_equal_differences_is_a_point() -> None:
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    found = gain(values + 0.5, values[:1], 50)
    assert [found.value, found.low, found.high] == computed([0.5, 0.5, 0.5])


def test_methods_ablation_replaces_the_chosen_aspect() -> None:
    made = methods("errors", 1.0)
    assert [one.title for one in made if one.part == "ablation"] == [
        "hierarchical: grammar",
        "hierarchical: readability",
        "hierarchical: language",
        "hierarchical: all",
    ]
    others = [one for one in made if one.part != "ablation"]
    assert all(one.overrides["weights"]["errors"] == 1.0 for one in others)


def test_run_other_sizes_are_refused(tmp_path: Path) -> None:
    Run(tmp_path, QUICK)
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"steps": 7}))
    with pytest.raises(SystemExit, match="other settings"):
        Run(tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_quick_run_writes_tables_and_pictures(tmp_path: Path) -> None:
    """`$ALARM_EXPERIMENTS_PYTHON` has experiments/requirements.txt, `$ALARM_DATA` the corpus."""
    python, data = os.environ.get("ALARM_EXPERIMENTS_PYTHON"), os.environ.get("ALARM_DATA")
    if not python or not data:
        pytest.skip("set ALARM_EXPERIMENTS_PYTHON and ALARM_DATA (experiments/README.md)")
    command = [python, "-m", "translation_study", "run", "--quick", "--out", str(tmp_path / "run")]
    for _ in range(2):  # the second finds all stages done, and writes the same results
        subprocess.run(
            [*command, "--data", f"{data}/tatoeba_es_en.zip"],
            cwd=EXPERIMENTS,
            check=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    stages = json.loads((tmp_path / "run" / "results" / "stages.json").read_text())
    assert len({one["stage"] for one in stages}) == len(stages)
    page = (tmp_path / "run" / "RESULTS.md").read_text()
    for title in ("Means on the test set", "Win rates", "Ablation", "Over-optimization"):
        assert f"## {title}" in page
    for name in ("gains", "over-optimization"):
        assert (tmp_path / "run" / "results" / "figures" / f"{name}.png").stat().st_size > 5000
    written = list((tmp_path / "run" / "results" / "generations").glob("*.jsonl.gz"))
    assert len(written) == 1 + len(methods("errors", 1.0)) * len(QUICK.seeds)
