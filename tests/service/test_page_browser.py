"""The server's page in a real browser, against stand-in models; skipped where there is none."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from served import app_of
from standin import FIGURE_1, Letters, Words
from tcp import over_tcp

from alarm_models.combination.all_rules import RULES, Rule, Shaping
from alarm_models.recipe.schema import HierarchySpec, Recipe
from alarm_service.schemas import SampleIn, sample_in

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

KEY = "sesame"
#: Seven words, past the threshold of 5; three words; a sample that fails.
HIGH, LOW, BAD = "AB B C AAC b c x", "Ax Bx Cx", "choke"


#: The first recipe with the numbers of its aspects, before shaping, times this.
SCALE = 3
SCALED = FIGURE_1.model_copy(
    update={
        "name": "scaled",
        "aspects": {
            name: aspect.model_copy(
                update={"positive": SCALE * aspect.positive, "negative": SCALE * aspect.negative}
            )
            for name, aspect in FIGURE_1.aspects.items()
        },
    }
)


_MINIMUMS = {"a": 0.0, "b": 0.0}
#: Constants of the rules that require some.
CONSTANTS: dict[str, dict[str, Any]] = {
    "gr3": {"length_penalty": 0.1},
    "qglas": {"length_weight": 0.4},
    "dro": {"minimums": _MINIMUMS, "pass_share": 0.5},
    "soft_gate": {"temperature": 2.0},
    "cascade": {"order": ("a", "b", "c"), "minimums": _MINIMUMS},
    "veto": {"floor": -4.0, "minimums": _MINIMUMS},
    "uncertainty": {"beta": 0.5},
}


def recipe_of(rule: str) -> Recipe:
    hierarchy = HierarchySpec(rule=Rule(rule), threshold=5, **CONSTANTS.get(rule, {}))
    return FIGURE_1.model_copy(update={"name": f"by-{rule}", "hierarchy": hierarchy})


@contextmanager
def serving(**settings: Any) -> Iterator[str]:
    models = {"words": Words()} | {letter: Letters(letter) for letter in "abc"}
    recipes = [FIGURE_1, SCALED, *map(recipe_of, RULES)]
    with over_tcp(app_of(recipes, models, **settings)) as port:
        url = f"http://127.0.0.1:{port}"
        while httpx.get(f"{url}/health/ready").status_code != 200:
            pass
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: "Browser", url: str) -> Iterator["Page"]:
    """Open the page, whose example is scored; the last test fails if a script ever did."""
    with watched(browser) as page:
        page.goto(url)
        page.locator("#sum h2").wait_for()
        yield page


@contextmanager
def watched(browser: "Browser") -> Iterator["Page"]:
    """Open an empty tab; no script may fail, and no other host may be asked."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: faults.extend([one.url] if "127.0.0.1" not in one.url else []))
    page.on("console", lambda one: faults.extend([one.text] if "Policy" in one.text else []))
    yield page
    page.close()
    assert faults == []


def submit(page: "Page", *completions: str, **overrides: Any) -> None:
    """Fill the form and wait for the answer."""
    while page.locator("#completions textarea").count() > len(completions):
        page.locator("#completions button").first.click()
    while page.locator("#completions textarea").count() < len(completions):
        page.locator("#add").click()
    for at, completion in enumerate(completions):
        page.locator("#completions textarea").nth(at).fill(completion)
    page.locator("#overrides").fill(json.dumps(overrides) if overrides else "")
    with page.expect_response("**/hierarchical_reward"):
        page.get_by_role("button", name="Score").click()
    page.locator("#results:not([aria-busy])").wait_for()


def numbers(page: "Page") -> dict[str, str]:
    """Return the waterfall: title of a step -> its number."""
    steps = page.locator(".step").all()
    return {
        step.locator("strong").inner_text(): step.locator(".number").inner_text() for step in steps
    }


def test_page_opens_with_a_scored_example(page: "Page") -> None:
    assert page.locator("#group tbody tr").count() == 4
    assert page.locator("#recipe").input_value() == "figure-1"


def test_page_shows_the_sum_and_the_gate(page: "Page") -> None:
    submit(page, HIGH, LOW, holistic_weight=2, shaping="none", weights={"c": 0.5})
    assert numbers(page) == {
        "holistic": "+14.000",
        "a": "+3.000",
        "b": "+1.000",
        "c": "−1.000",
        "reward": "+17.000",
    }
    assert "gate open" in page.locator(".gate").inner_text()
    assert page.locator(".difference").inner_text() == (
        "11.000 more than completion 2, whose gate is shut: "
        "holistic +8.000, a +3.000, b +1.000, c −1.000."
    )
    page.get_by_role("button", name=LOW).press("Enter")
    assert numbers(page)["a"] == "(+1.000)"
    assert numbers(page)["reward"] == "+6.000"
    assert "distance −2.000" in page.locator(".gate").inner_text()


def test_page_knows_the_rules_that_add_up_and_that_have_a_gate(page: "Page") -> None:
    sums, gated = page.evaluate(
        """async () => {
          const { SUMS, GATED } = await import("/page/sum.js");
          return [Object.keys(SUMS), [...GATED]];
        }"""
    )
    assert set(sums) == {name for name, rule in RULES.items() if rule.adds_up}
    assert set(gated) == {name for name, rule in RULES.items() if "threshold" in rule.accepts}


def test_page_request_has_words_in_code_points_and_no_empty_list(page: "Page") -> None:
    empty, words = page.evaluate(
        """async () => {
          const { requestOf } = await import("/page/request.js");
          const completions = ["", "é 😀 b"];
          return requestOf({ prompt: "?", completions, recipe: null, overrides: "" }).samples;
        }"""
    )
    assert "token_offsets" not in empty
    assert words["token_offsets"] == [[0, 1], [2, 3], [4, 5]]


def test_page_reward_is_the_servers_for_every_rule(page: "Page") -> None:
    samples = [
        {"prompt": "?", "completion": text, "group": "g", "fields": {"reference": LOW}}
        for text in (HIGH, LOW)
    ]
    for rule in RULES:
        form = {"lines": "\n".join(map(json.dumps, samples)), "overrides": ""}
        found = page.evaluate(_PARTS, form | {"recipe": f"by-{rule}"})["rewards"]
        assert len(found) == 2
        for one in found:
            # Rules that are no sums are one step, from nothing to the server's reward.
            assert one["start"] == (
                pytest.approx(one["reward"], abs=1e-6) if RULES[rule].adds_up else 0
            )
            assert one["shown"] == one["written"]


#: Scores samples and adds up the parts, with the page's own modules.
_PARTS = """async (form) => {
  const { requestOf } = await import("/page/request.js");
  const { overridesOf } = await import("/page/samples.js");
  const { paramsOf, partsOf, sumView } = await import("/page/sum.js");
  const { signed } = await import("/page/dom.js");
  const { recipes } = await (await fetch("models")).json();
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(requestOf(form));
  const response = await fetch("hierarchical_reward", { method: "POST", headers, body });
  const answer = await response.json();
  if (!response.ok) return answer;
  const recipe = recipes.find((one) => one.name === form.recipe);
  const params = paramsOf(recipe, overridesOf(form.overrides));
  const numbers = (one) => [...(one?.querySelectorAll?.(".number") ?? [])];
  const last = (view) => view.flatMap(numbers).at(-1);
  return { rewards: answer.rewards.filter((one) => !one.error).map((one) => ({
    ...partsOf(one, params),
    reward: one.reward,
    shown: last(sumView(one, params)).textContent,
    written: signed(one.reward),
  })) };
}"""


def test_page_sliders_give_the_servers_rewards(page: "Page") -> None:
    changes: list[dict[str, Any]] = [
        {"rule": rule, "threshold": threshold, "holistic_weight": 0.5, "weights": {"a": 2, "b": -1}}
        for rule in ("hierarchical", "weighted_sum", "holistic_only", "aspect_only")
        for threshold in (3, 5, 7.5)
    ]
    changes += [{"threshold": 3, "shaping": shaping} for shaping in Shaping]
    for pair in page.evaluate(_RECOMBINED, {"completions": [HIGH, LOW, BAD], "changes": changes}):
        (here, on_here), (served, on_served) = pair["here"], pair["served"]
        assert here == pytest.approx(served, abs=1e-6)
        assert on_here == pytest.approx(on_served, abs=1e-6)


#: Scores once, recombines under each change, and asks the server for the same.
_RECOMBINED = """async ({ completions, changes }) => {
  const { requestOf } = await import("/page/request.js");
  const { paramsOf } = await import("/page/sum.js");
  const { recombined } = await import("/page/recombine.js");
  const { recipes } = await (await fetch("models")).json();
  const headers = { "Content-Type": "application/json" };
  const scored = async (overrides) => {
    const form = { prompt: "?", completions, recipe: null, overrides: JSON.stringify(overrides) };
    const body = JSON.stringify(requestOf(form));
    return (await (await fetch("hierarchical_reward", { method: "POST", headers, body })).json())
      .rewards;
  };
  const old = await scored({});
  const params = paramsOf(recipes[0], {});
  const pairs = [];
  for (const change of changes) {
    const served = await scored(change);
    old.forEach((one, at) => {
      if (one.error) return;
      const here = recombined(one, params, paramsOf(recipes[0], change));
      pairs.push({
        here: [here.reward, here.token_rewards],
        served: [served[at].reward, served[at].token_rewards],
      });
    });
  }
  return pairs;
}"""


def test_page_scale_gives_the_rewards_of_the_scaled_recipe(page: "Page") -> None:
    form = {"prompt": "?", "completions": [HIGH, LOW], "overrides": "{}"}
    for one in page.evaluate(_SCALED, {"form": form, "scaled": SCALED.name, "scale": SCALE}):
        assert one["here"] == pytest.approx(one["served"], abs=1e-6)


#: Scores by both recipes, and shapes the first one's aspects again with the scale of the second.
_SCALED = """async ({ form, scaled, scale }) => {
  const { requestOf } = await import("/page/request.js");
  const { paramsOf } = await import("/page/sum.js");
  const { recombined } = await import("/page/recombine.js");
  const { recipes } = await (await fetch("models")).json();
  const headers = { "Content-Type": "application/json" };
  const rewards = async (recipe) => {
    const body = JSON.stringify(requestOf({ ...form, recipe }));
    return (await (await fetch("hierarchical_reward", { method: "POST", headers, body })).json())
      .rewards;
  };
  const [first, second] = [await rewards(recipes[0].name), await rewards(scaled)];
  const params = paramsOf(recipes[0], {});
  const changed = paramsOf(recipes[0], {});
  for (const shape of Object.values(changed.shapes)) shape.scale = scale;
  return first.map((one, at) => ({
    here: recombined(one, params, changed).reward,
    served: second[at].reward,
  }));
}"""


def test_page_slider_changes_gate_and_group(page: "Page") -> None:
    submit(page, HIGH, LOW, shaping="none")
    slider = page.get_by_role("slider", name="threshold")
    slider.fill("2")
    page.get_by_role("button", name=LOW).click()
    assert numbers(page)["reward"] == "+5.000"
    page.get_by_role("button", name="Reset").click()
    assert numbers(page)["reward"] == "+3.000"


def test_page_list_of_a_group_stays_where_it_was_scrolled_to(page: "Page") -> None:
    found = page.evaluate(
        """async () => {
          const { groupView } = await import("/page/group.js");
          const reward = { reward: 1, admitted: true, holistic: { normalized: 1 } };
          const texts = Array.from({ length: 200 }, (_, at) => `text ${at}`);
          const shown = document.createElement("section");
          document.body.append(shown);
          shown.append(...groupView(texts, texts.map(() => reward), 0, () => {}, 3200));
          const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
          await frame();
          await frame();
          const scrolled = shown.querySelector(".scrolling").scrollTop;
          const has = [...shown.querySelectorAll("button")].some(
            (one) => one.innerText === "text 100");
          shown.remove();
          return [scrolled, has];
        }"""
    )
    assert found == [3200, True]


def test_page_shaping_is_chosen_and_kept_as_an_override(page: "Page") -> None:
    submit(page, HIGH)
    before = numbers(page)["a"]
    constants = page.locator("#constants")
    for name in "abc":
        constants.get_by_label(f"shaping of {name}").select_option("mean")
    page.wait_for_function("before => !document.body.innerText.includes(before)", arg=before)
    shown = numbers(page)
    with page.expect_response("**/hierarchical_reward"):
        constants.get_by_role("button", name="Use as overrides").click()
    page.locator("#results:not([aria-busy])").wait_for()
    assert json.loads(page.locator("#overrides").input_value()) == {"shaping": "mean"}
    assert numbers(page) == shown
    constants.get_by_label("scale of a").fill("2")
    page.locator("#constants button[disabled]").wait_for()


def test_page_scores_json_lines_of_one_group(page: "Page") -> None:
    lines = [json.dumps({"prompt": "?", "completion": f"{word} A", "id": word}) for word in WORDS]
    captured = json.dumps({"request": "r", "sample": {"prompt": "?", "completion": HIGH}})
    submit_lines(page, *lines, captured)
    heading = page.locator("#group tbody tr:not([aria-hidden])").first
    assert HIGH in heading.inner_text()
    rows = page.locator("#group tbody tr:not([aria-hidden])").count()
    assert rows < len(lines) == 60
    page.locator("#group button[aria-pressed=true]").press("End")
    chosen = page.locator("#group button[aria-pressed=true]")
    assert chosen.inner_text() == f"{WORDS[-1]} A"
    page.locator("#from-form").check()


#: Completions of two words, of which all but the longest group fit in one view.
WORDS = [f"w{at}" for at in range(60)]


def submit_lines(page: "Page", *lines: str) -> None:
    page.locator("#from-lines").check()
    page.locator("#lines").fill("\n".join(lines))
    page.locator("#overrides").fill("")
    with page.expect_response("**/hierarchical_reward"):
        page.get_by_role("button", name="Score").click()
    page.locator("#results:not([aria-busy])").wait_for()


def test_page_says_what_is_wrong_in_the_input_and_where(page: "Page") -> None:
    good = {"prompt": "?", "completion": "A"}
    said = page.evaluate(
        """async (inputs) => {
          const { overridesOf, samplesOf } = await import("/page/samples.js");
          return inputs.map((form) => {
            try {
              overridesOf(form.overrides ?? "");
              return samplesOf({ prompt: "?", completions: ["A"], ...form }) && null;
            }
            catch (error) { return error.message; }
          });
        }""",
        [
            {"lines": f"{json.dumps(good)}\n\n{{oops"},
            {"lines": json.dumps({"prompt": "?"})},
            {"lines": json.dumps({"sample": {"prompt_sha256": "0"}, "redacted": True})},
            {"lines": f"{json.dumps(good)}\n{json.dumps({**good, 'prompt': 'other'})}"},
            {"completions": ["A", '[{"role": "assistant", "content": "A"}, {"content": "B"}]']},
            {"prompt": '[{"role": "user", "content": "A"'},
            {"tools": "{}"},
            {"lines": " \n"},
            {"overrides": '{"weights": {"b": -1e999}}'},
            {"overrides": '{"threshold": NaN}'},
            {"lines": json.dumps({"prompt": "1 / 0?", "completion": "Infinity"})},
            {"completions": ['[{"json": 1}]']},
        ],
    )
    parts = [
        "Line 3 is not valid JSON: ",
        'Line 1 has no "completion"',
        "Line 1 was captured with hashes",
        "Line 2 has another prompt than line 1",
        'Completion 2, message 2 of 2 has no "role"',
        "The prompt begins like chat messages, but it is not valid JSON",
        "Tools must be a JSON array",
        "There are no lines",
        'Overrides has a number that is too large to be sent ("b")',
        "Overrides is not valid JSON",
    ]
    assert said[-2:] == [None, None]
    for message, part in zip(said, parts, strict=False):
        assert part in message


def test_page_shows_what_models_read_and_what_was_dropped(page: "Page") -> None:
    rendering = {
        "model": "rm",
        "kind": "sequence",
        "texts": [{"tokens": ["<s>", "a", " b", " c"], "completion": [2, 4], "dropped": [[1, 3]]}],
        "num_tokens": 2,
        "truncated": True,
        "omitted": ["thinking"],
        "left_out": [[0, 2]],
        "error": None,
    }
    found = page.evaluate(
        """async (rendering) => {
          const { readView } = await import("/page/read.js");
          const shown = document.createElement("div");
          shown.append(...readView([rendering], "😀t b c", "rm", () => {}));
          return {
            said: shown.querySelector(".numbers").textContent,
            texts: [...shown.querySelectorAll(".read-text")].map((one) => one.innerHTML
              .replaceAll(/ title="[^"]*"/g, "")),
          };
        }""",
        rendering,
    )
    assert found["said"] == (
        "kind sequence · 2 tokens read · the completion has 2 · 2 truncated · left out: thinking"
    )
    assert found["texts"] == [
        "<span>&lt;s&gt;</span><del><span>a</span></del><del><mark> b</mark></del><mark> c</mark>",
        "<del>😀t</del> b c",
    ]


def test_page_scrolls_to_the_completion_that_a_model_read(page: "Page") -> None:
    text = {"tokens": ["long "] * 3000 + ["answer"], "completion": [3000, 3001], "dropped": []}
    rendering = {"model": "rm", "kind": "sequence", "texts": [text], "num_tokens": 3001}
    gap = page.evaluate(
        """(rendering) => import("/page/read.js").then(({ readView, scrollToCompletions }) => {
          const shown = document.createElement("section");
          document.body.append(shown);
          shown.append(...readView([rendering], "answer", "rm", () => {}));
          scrollToCompletions(shown);
          const [box, mark] = [".read-text", "mark"].map((one) =>
            shown.querySelector(one).getBoundingClientRect());
          shown.remove();
          return box.bottom - mark.bottom;
        })""",
        rendering | {"truncated": False, "omitted": [], "left_out": [], "error": None},
    )
    assert gap > 0


def test_page_asks_once_for_what_models_read(page: "Page") -> None:
    asked: list[list[str]] = []

    def note(request: Any) -> None:
        if request.url.endswith("/render"):
            asked.append([one["completion"] for one in request.post_data_json["samples"]])

    page.on("request", note)
    # The page asks a moment after the answer, so a request of the test before may come first.
    with page.expect_response(
        lambda one: one.url.endswith("/render") and HIGH in one.request.post_data
    ):
        submit(page, HIGH, LOW)
    read = page.locator("#read")
    for model, kind in (("b", "segments"), ("words", "sequence"), ("b", "segments")):
        read.get_by_role("radio", name=model).check()
        read.locator(".numbers", has_text=f"kind {kind}").wait_for()
    page.remove_listener("request", note)
    assert asked.count([HIGH]) == 1


def test_page_tokens_are_the_samples_own_before_those_of_a_tokenizer(page: "Page") -> None:
    placed = page.evaluate(
        """async () => {
          const { spansOf } = await import("/page/request.js");
          const samples = [{ completion: "a b", token_offsets: [[0, 3]] }, { completion: "a b" }];
          return [spansOf(samples, [[[0, 1]], [[0, 2], [2, 3]]]), spansOf(samples)];
        }"""
    )
    own, words = {"spans": [[0, 3]], "unit": "token"}, {"spans": [[0, 1], [2, 3]], "unit": "word"}
    assert placed == [[own, {"spans": [[0, 2], [2, 3]], "unit": "token"}], [own, words]]


def test_page_text_of_messages_is_the_servers(page: "Page") -> None:
    messages = [
        {"role": "assistant", "content": "So 😀.", "reasoning_content": "Hm."},
        {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "1"},
        {"role": "assistant", "content": None, "refusal": "No."},
    ]
    text = page.evaluate(
        """async (messages) => (await import("/page/samples.js")).textOf(messages)""", messages
    )
    sample = SampleIn.model_validate({"prompt": "?", "completion": messages})
    assert text == sample_in(sample).completion_text == "Hm.\n\nSo 😀.\n\n4\n\nNo."


def test_page_colors_segments_and_tells_nothing_from_zero(page: "Page") -> None:
    submit(page, "Ax Bx", "Bx By Bz C D E")
    page.locator("#text").get_by_role("radio", name="a", exact=True).check()
    assert "nothing to judge" in page.locator(".readout").inner_text()
    page.get_by_role("button", name="Ax Bx").click()
    piece = page.locator("#text .piece.segment.positive")
    assert piece.inner_text() == "A"
    piece.focus()
    assert page.locator(".readout").inner_text() == "“A”: good, score +1.000"
    page.get_by_role("radio", name="total").check()
    page.locator("#text .completion .piece").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".readout").inner_text() == "“Bx”: reward +2.000"


DRAWN = """async ([text, spans, reward, view]) => {
    const { textView } = await import("/page/text.js");
    const whole = { truncated: false, omitted: [], aspects: {}, ...reward };
    const [, body] = textView({ text, spans, unit: "token" }, whole, view, 9, () => {});
    return Array.from(body.querySelectorAll(".piece"), (one) => [one.textContent, one.className]);
}"""


def test_page_draws_every_token_also_those_of_one_character_or_none(page: "Page") -> None:
    spans = [[0, 0], [0, 1], [1, 2], [1, 2], [2, 2]]
    reward = {"token_rewards": [1, 0, 2, -1, -5]}
    assert page.evaluate(DRAWN, ["A😀", spans, reward, "total"]) == [
        ["⟨special⟩", "piece positive"],
        ["A", "piece"],
        ["😀", "piece positive"],  # 2 - 1
        ["⟨end⟩", "piece negative"],
    ]


def test_page_draws_overlapping_segments_and_findings_without_a_score(page: "Page") -> None:
    def drawn(*segments: tuple[int, int, str | None, float | None]) -> object:
        keys = ("start", "end", "label", "score")
        found = [dict(zip(keys, one, strict=True)) for one in segments]
        reward = {"aspects": {"a": {"segments": found}}}
        return page.evaluate(DRAWN, ["The cat sat.", [], reward, "a"])

    assert drawn((8, 11, "bad", -1.0), (0, 12, "good", 0.5), (4, 7, "bad", -2.0)) == [
        ["The ", "piece positive segment"],
        ["cat", "piece negative segment"],
        [" ", "piece positive segment"],
        ["sat", "piece negative segment"],
        [".", "piece positive segment"],
    ]
    assert drawn((0, 3, "Grammar", None), (4, 7, None, None)) == [
        ["The", "piece negative segment"],
        ["cat", "piece unjudged segment"],
    ]


def test_page_writes_out_characters_that_hide_or_reorder_text(page: "Page") -> None:
    submit(page, "AB \u202edne\x1b B\tc")
    assert page.locator("#text .completion").inner_text() == "AB ⟨U+202E⟩dne⟨U+001B⟩ B\tc"
    assert "⟨U+202E⟩" in page.locator("#group tbody button").inner_text()


def test_page_warns_of_zero_deviation_and_explains_errors(page: "Page") -> None:
    submit(page, LOW, LOW, BAD)
    text = page.locator("#group").inner_text()
    assert "The rewards are equal, or differ by 0.0001" in text
    assert "No reward: " in text
    assert "1 completion without a reward" in text
    submit(page, LOW, no_such_key=1)
    assert "overrides.no_such_key" in page.locator("#message").inner_text()


def test_page_link_and_python_send_the_same_request(page: "Page", url: str) -> None:
    submit(page, "Ünïcode 😀 A", LOW, threshold=1)
    printed: list[Any] = []
    page.get_by_role("button", name="Link").click()
    link = page.locator("#share-text").input_value()
    assert link.startswith(f"{url}/#")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Python").click()
    exec(page.locator("#share-text").input_value(), {"print": printed.append})
    assert [one.error for one in printed[0].rewards] == [None, None]
    page.keyboard.press("Escape")
    submit(page, LOW)
    with page.expect_response("**/hierarchical_reward"):
        page.goto(link)
    assert page.locator("#completions textarea").first.input_value() == "Ünïcode 😀 A"
    assert page.locator("#overrides").input_value() == '{"threshold": 1}'


def test_page_asks_for_the_key_once(browser: "Browser") -> None:
    with serving(api_key=KEY) as url, watched(browser) as page:
        page.goto(url)
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Enter")
        page.locator("#key-refused:not([hidden])").wait_for()
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Enter")
        page.locator("#sum h2").wait_for()
        submit(page, LOW)
        assert not page.locator("#ask-key").is_visible()
        stored = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert page.evaluate(stored) == [0, 0, ""]
