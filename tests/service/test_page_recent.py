"""The page's recent samples and its comparison of recipes, in a real browser."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from served import app_of, samples
from standin import FIGURE_1, Letters, Words, recipe
from tcp import over_tcp

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

#: Prefers short answers: the order of completions is the other way.
SHORT = recipe("short", holistic={"model": "words", "weight": -1.0})


@pytest.fixture(scope="module")
def page() -> Iterator["Page"]:
    """Open the page of a server with two recipes that has rewarded a few samples."""
    models = {"words": Words()} | {letter: Letters(letter) for letter in "abc"}
    with (
        over_tcp(app_of([FIGURE_1, SHORT], models, log_texts=True)) as port,
        playwright.sync_playwright() as started,
    ):
        url = f"http://127.0.0.1:{port}"
        while httpx.get(f"{url}/health/ready").status_code != 200:
            pass
        for _ in range(10):
            body = {"samples": samples("A b c w w w", "A b c w w w", "w", "w choke")}
            assert httpx.post(f"{url}/hierarchical_reward", json=body).status_code == 200
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda one: faults.append(one.text) if "Policy" in one.text else None)
        page.goto(url)
        page.locator("#sum h2").wait_for()
        yield page
        browser.close()
        assert faults == []


def test_page_shows_recent_samples_with_texts_and_errors(page: "Page") -> None:
    page.locator("#recent > summary").click()
    page.locator("#recent svg").first.wait_for()
    told = page.locator("#recent").inner_text()
    assert "figure-1: the last 34 samples" in told  # 30, and the example
    assert "model_failed: 10" in told
    assert page.locator("#recent svg[aria-label*=Histogram]").count() == 2
    assert page.locator("#recent circle").count() == 34
    row = page.locator(".signs tr", has_text="groups whose rewards are all equal")
    assert row.locator(".number").all_inner_texts() == ["0.000", "0.500"]
    page.locator(".kept summary", has_text="Worst").click()
    assert page.locator(".kept li").last.inner_text().endswith("w")
    with page.expect_response("**/recent?*"):
        page.locator("#recipe").dispatch_event("change")
    assert page.locator(".kept[open] summary").all_inner_texts() == ["Worst of these samples"]


def test_page_compares_rewards_and_ranks_with_another_recipe(page: "Page") -> None:
    page.get_by_role("button", name="Compare").click()
    rows = page.locator(".compared tbody tr")
    rows.first.wait_for()
    assert page.locator("#compare-with").input_value() == "short"
    before = [int(row.locator(".number").nth(4).inner_text()) for row in rows.all()]
    after = [int(row.locator(".number").nth(5).inner_text()) for row in rows.all()]
    assert sorted(before) == sorted(after) == [1, 2, 3, 4]
    assert before != after
    assert "pairs ordered the other way" in page.locator("#compare-body").inner_text()


def test_page_ranks_and_ticks_are_round(page: "Page") -> None:
    ranks, ticks = page.evaluate(
        """async () => {
          const { ranksOf } = await import("/page/compare.js");
          const { ticks } = await import("/page/charts.js");
          return [ranksOf([2, null, 5, 2]), ticks(-3, 7.2, 4)];
        }"""
    )
    assert ranks == [2, None, 1, 2]
    assert ticks == [0, 5]
