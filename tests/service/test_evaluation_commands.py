"""select, calibrate and evaluate from the command line, on rewards that can be counted by hand."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from tcp import over_tcp

from alarm_models.recipe.loader import load_recipe
from alarm_models.types import Sample
from alarm_service.api.app import create_app
from alarm_service.cli.main import main
from alarm_service.evaluation import calibrate, scoring
from alarm_service.settings import Settings

#: The holistic reward is the number of words; `brevity` falls with it, and `same` follows it.
RECIPE = """
name = "words"
[models.words]
kind = "length"
[holistic]
model = "words"
[hierarchy]
threshold = 1.0
[aspects.same]
model = "words"
weight = 0.0
shaping = "none"
mean = 0.0
[aspects.brevity]
model = "words"
scale = -1.0
shaping = "none"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "words.toml"
    file.write_text(RECIPE)
    return file


def words(count: int) -> str:
    return " ".join(["word"] * count)


def groups(file: Path, num_prompts: int = 12, **more: Any) -> Path:
    """Prompts with answers of 1, 2 and 3 words."""
    record = {"completions": [words(1), words(2), words(3)]} | more
    file.write_text(
        "".join(json.dumps({"prompt": f"p{n}", **record}) + "\n" for n in range(num_prompts))
    )
    return file


def policy(file: Path, *counts: int) -> Path:
    lines = [{"prompt": f"p{n}", "completion": words(count)} for n, count in enumerate(counts)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run a command and return its JSON."""
    assert main([*map(str, arguments), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_select_recommends_what_follows_the_holistic_reward(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = groups(tmp_path / "in", values={"stars": [3, 1, 3]})
    found = run(capsys, "select", file, "--recipe", recipe)
    (one,) = found["consistencies"]
    assert one["selection"]["chosen"] == ["same"]
    # brevity rewards fewer words, so it goes against the holistic reward on every pair.
    assert one["agreements"]["same"]["untied"]["value"] == 0
    assert one["agreements"]["brevity"]["untied"]["value"] == 1
    assert one["selection"]["findings"]["brevity"]["verdict"] == "opposes"
    # Of 36 pairs, stars tie (1st, 3rd), go against (1st, 2nd), agree on (2nd, 3rd).
    stars = one["agreements"]["stars"]
    assert (stars["num_pairs"], stars["num_tied"], stars["num_against"]) == (36, 12, 12)
    assert stars["inconsistency"] == pytest.approx(1 / 3)
    assert stars["untied"]["value"] == 0.5
    assert found["win_rates"] is None


def test_select_grammar_fewer_errors_are_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "grammar.toml"
    aspect = '[models.grammar]\nkind = "grammar"\n[aspects.grammar]\nmodel = "grammar"\n'
    recipe.write_text(f"{RECIPE}{aspect}positive = 0.0\nnegative = -1.0\n")
    file = tmp_path / "in"
    row = {"prompt": "p", "completions": ["I has a an apple.", "I have an apple and a pear."]}
    file.write_text(json.dumps(row) + "\n")
    found = run(capsys, "select", file, "--recipe", recipe, "--draws", 10)
    assert set(found["lower_is_better"]) == {"brevity", "grammar"}
    # The holistic reward prefers the longer text, which has no errors.
    assert found["consistencies"][0]["agreements"]["grammar"]["num_against"] == 0


def test_select_compares_scores_with_human_preferences(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preferences = [
        {"first": 0, "second": 2, "preferred": "first"},
        {"first": 0, "second": 1, "preferred": None},
    ]
    file = groups(tmp_path / "in", preferences=preferences)
    found = run(capsys, "select", file, "--recipe", recipe, "--against", "preferences")
    people = found["consistencies"][1]
    assert people["agreements"]["holistic"]["num_pairs"] == 12
    assert people["agreements"]["holistic"]["inconsistency"] == 1
    assert people["selection"]["chosen"] == ["brevity"]
    assert found["chosen_by"] == "preferences"


def test_select_compares_two_policies(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy, sampled = policy(tmp_path / "g", 3, 3, 1, 2), policy(tmp_path / "s", 1, 2, 2, 2)
    found = run(capsys, "select", f"greedy={greedy}", f"sampled={sampled}", "--recipe", recipe)
    assert found["sides"] == ["greedy", "sampled"]
    wins = found["win_rates"]["holistic"]
    assert (wins["wins"], wins["losses"], wins["ties"]) == (2, 1, 1)
    assert wins["rate"]["value"] == pytest.approx(2 / 3)
    assert found["win_rates"]["brevity"]["rate"]["value"] == pytest.approx(1 / 3)


def test_select_two_completions_per_prompt_have_win_rates(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = groups(tmp_path / "in", completions=[words(3), words(1)])
    found = run(capsys, "select", file, "--recipe", recipe)
    assert found["win_rates"]["holistic"]["rate"]["value"] == 1
    assert found["win_rates"]["brevity"]["rate"]["value"] == 0


def test_select_writes_recipe_with_reasons(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.toml"
    arguments = [groups(tmp_path / "in"), "--recipe", recipe, "--write", out, "--device", "cpu"]
    assert main(["select", *map(str, arguments)]) == 0
    written = load_recipe(str(out))
    assert {name: one.weight for name, one in written.aspects.items()} == {"same": 1, "brevity": 0}
    reason = "chosen: disagrees with the holistic reward in only 0.0%"
    assert f"weight = 1.0 # {reason}" in out.read_text()


def test_calibrate_finds_constants_and_writes_them(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calibrated.toml"
    file = groups(tmp_path / "in")
    found = run(capsys, "calibrate", file, "--recipe", recipe, "--admit", "0.4", "--write", out)
    # 1, 2 and 3 words: mean 2, variance 2/3; a third is admitted, from z = 0.61 on.
    assert found["found"]["mean"] == 2
    assert found["found"]["std"] == pytest.approx((2 / 3) ** 0.5)
    assert found["found"]["admitted_share"] == pytest.approx(1 / 3)
    assert found["found"]["threshold"] == pytest.approx(0.5 * 1.5**0.5)
    assert found["additions"]["brevity"]["mean"] == -3
    shapings = found["shapings"]["brevity"]
    assert [fit["shaping"] for fit in shapings["fits"]][-3:] == ["centred", "mean", "per_length"]
    assert (shapings["num_completions"], shapings["recommended"]) == (12, None)  # all are equal
    written = load_recipe(str(out))
    assert written.holistic.mean == 2
    assert written.hierarchy.threshold == pytest.approx(found["found"]["threshold"], abs=1e-5)
    # `same` names a mean, so it is normalized; `brevity` names none, and stays as it is.
    assert written.aspects["same"].mean == 2
    assert written.aspects["brevity"].mean == 0
    # What the aspects add is reported with the constants that are written.
    assert found["additions"]["same"]["mean"] == pytest.approx(1.5**0.5)
    again = run(capsys, "calibrate", file, "--recipe", out, "--admit", "0.4")
    assert again["additions"]["same"]["mean"] == pytest.approx(1.5**0.5, abs=1e-5)


def test_equal_samples_are_scored_once_so_that_they_tie(recipe: Path) -> None:
    first, second = Sample("p", "a"), Sample("p", "b")
    served = load_recipe(str(recipe))
    places, distinct = scoring._distinct([first, second, replace(first)], ["words"], served)
    assert (list(places), list(distinct)) == ([0, 1, 0], [first, second])


@pytest.mark.parametrize(
    ("value", "written"), [(1.23456789e-7, 1.23457e-7), (12.3456789, 12.345679), (0.0, 0.0)]
)
def test_constants_of_any_scale_keep_six_digits(value: float, written: float) -> None:
    assert calibrate._change(value, "").value == written


def test_evaluate_compares_policies_by_every_reward(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"{name}={policy(tmp_path / name, *counts)}" for name, counts in {
        "a": (1, 2, 3, 4), "b": (2, 2, 2, 5), "c": (9, 9, 9, 9)}.items()]  # fmt: skip
    found = run(capsys, "evaluate", *files, "--recipe", recipe)
    holistic, brevity = found["comparisons"]["holistic"], found["comparisons"]["brevity"]
    assert [one["mean"]["value"] for one in holistic["spreads"]] == [2.5, 2.75, 9]
    assert holistic["rates"][0][1]["rate"]["value"] == pytest.approx(1 / 3)  # 1 of 3, 1 tie
    assert brevity["rates"][0][1]["rate"]["value"] == pytest.approx(2 / 3)  # fewer words win
    assert found["lower_is_better"] == ["brevity"]
    # The whole reward is z - words = 0 for all: everything past the threshold ties.
    assert found["comparisons"]["reward"]["rates"][0][2]["ties"] == 4


def test_select_same_seed_gives_same_numbers(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        f"a={policy(tmp_path / 'a', *range(1, 40))}",
        f"b={policy(tmp_path / 'b', *([20] * 39))}",
    ]
    arguments = ("evaluate", *files, "--recipe", recipe, "--sample", 20, "--seed")
    assert run(capsys, *arguments, 5) == run(capsys, *arguments, 5)
    assert run(capsys, *arguments, 5) != run(capsys, *arguments, 6)


def test_html_report_is_self_contained(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    arguments = [groups(tmp_path / "in"), "--recipe", recipe, "--out", out, "--device", "cpu"]
    assert main(["select", *map(str, arguments)]) == 0
    page = (out / "report.html").read_text()
    assert "http" not in page
    assert 'src="data:image/png;base64,' in page
    assert "brevity" in page
    assert (out / "inconsistency-holistic.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "result.json").read_text())["recipe"] == "words"


def test_html_report_escapes_names(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    file = groups(tmp_path / "in", values={"<script>": [1, 2, 3]})
    arguments = [file, "--recipe", recipe, "--out", out, "--device", "cpu"]
    assert main(["select", *map(str, arguments)]) == 0
    assert "<script>" not in (out / "report.html").read_text()


@pytest.fixture
def url(recipe: Path) -> Iterator[str]:
    app = create_app([load_recipe(str(recipe))], Settings(api_key="sesame", device="cpu"))
    with over_tcp(app) as port:
        yield f"http://127.0.0.1:{port}"


def test_evaluation_by_server_equals_in_process(
    recipe: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("calibrate", groups(tmp_path / "in", 200), "--recipe", recipe)
    here = run(capsys, *arguments)
    assert run(capsys, *arguments, "--url", url, "--api-key", "sesame") == here


def test_evaluation_refused_by_server_is_reported(
    recipe: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", groups(tmp_path / "in"), "--recipe", recipe, "--url", url]
    assert main(list(map(str, arguments))) == 1
    assert "returned 401" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lower", "nobody"], "unknown names ['nobody']; known are holistic, same, brevity"),
        (["--against", "preferences"], "no line of the file has `preferences`"),
        (["--recipe", "nobody"], "neither a built-in recipe"),
    ],
)
def test_evaluation_with_unknown_word_names_it(
    arguments: list[str],
    message: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [] if "--recipe" in arguments else ["--recipe", str(recipe)]
    assert main(["select", str(groups(tmp_path / "in")), *own, *arguments, "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err


def test_report_without_matplotlib_is_refused_first(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    arguments = ["select", tmp_path / "nowhere", "--recipe", recipe, "--out", tmp_path / "out"]
    assert main(list(map(str, arguments))) == 1
    assert "pip install 'alarm-service[study]'" in capsys.readouterr().err


def a_score(**more: Any) -> dict[str, Any]:
    plain = {"score": 1.0, "segments": None, "num_tokens": 1, "truncated": False, "error": None}
    return plain | more


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([a_score()], "returned 1 scores for 36 samples"),
        ([a_score()] * 37, "returned 37 scores for 36 samples"),
        ([a_score(score="1")] * 36, "returned an invalid response"),
        ([a_score(num_tokens="1")] * 36, "returned an invalid response"),
        ([a_score(judged=[[0]])] * 36, "returned an invalid response"),
        ([a_score(num_tokens=-1)] * 36, "returned an invalid response"),
        ({}, "returned an invalid response"),
        (None, "answered no JSON: <html>"),
    ],
)
def test_evaluation_by_other_server_is_reported_with_its_address(
    scores: Any,
    told: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, keys = FastAPI(), set()

    @app.post("/score")
    async def score(request: Request) -> Response:
        keys.add(request.headers.get("Authorization"))
        usage = {"num_tokens": 1, "num_computed_tokens": 1}
        answer = {"model": "m", "fingerprint": "f", "scores": scores, "usage": usage}
        return Response("<html>") if scores is None else JSONResponse(answer)

    monkeypatch.setenv("ALARM_API_KEY", "sesame\r\n")
    with over_tcp(app) as port:
        address = f"http://127.0.0.1:{port}"
        arguments = ["calibrate", groups(tmp_path / "in"), "--recipe", recipe, "--url", address]
        assert main([*map(str, arguments)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"alarm: {address}/score ")
    assert told in last
    assert keys == {"Bearer sesame"}


def test_written_recipe_resolves_paths_relative_to_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "mine.py").write_text(
        "def reward(sample): return len(sample.completion)\n"
    )
    recipe = tmp_path / "here" / "own.toml"
    recipe.write_text(
        '[models.m]\nkind = "python"\nfunction = "mine:reward"\npath = "./"\n'
        '[holistic]\nmodel = "m"\n[aspects.a]\nmodel = "m"\n'
    )
    written = tmp_path / "there" / "own.toml"
    file = groups(tmp_path / "in")
    run(capsys, "calibrate", file, "--recipe", recipe, "--write", written)
    run(capsys, "calibrate", file, "--recipe", written)
