"""The page of `alarm view` and the report of `alarm replay` in a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recorded import CAPTURE, CONSTANTS, captured, reward, sample, write_lines
from tcp import over_tcp

from alarm_service.captures.lines import CapturedLine, Constants
from alarm_service.evaluation.replay_comparison import ReplayComparison
from alarm_service.evaluation.replay_examples import ReplayExamples
from alarm_service.evaluation.replay_html import replay_html
from alarm_service.schemas import RewardOut
from alarm_service.viewer.html_file import html_file
from alarm_service.viewer.index import RewardIndex
from alarm_service.viewer.local_server import view_app
from alarm_service.viewer.selection import Pick

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@contextmanager
def opened(browser: "Browser", address: str) -> Iterator["Page"]:
    """Open a page; no script may fail, and nothing else may be asked."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda one: faults.extend([one.text] if "Policy" in one.text else []))
    page.on("request", lambda one: faults.extend([] if _is_of(one.url, address) else [one.url]))
    page.goto(address)
    page.locator("#about h2").wait_for()
    yield page
    page.close()
    assert faults == []


def _is_of(url: str, address: str) -> bool:
    return url.startswith(("data:", address))


def rewards(page: "Page") -> list[str]:
    """Return the rewards of the list, from the top."""
    return page.locator("#list .row > :nth-child(2)").all_inner_texts()


def waterfall(page: "Page", place: str) -> list[str]:
    return page.locator(f"{place} .step .number").all_inner_texts()


def test_view_file_sorts_filters_searches_and_shows_the_sum(
    browser: "Browser", tmp_path: Path
) -> None:
    file = tmp_path / "view.html"
    with RewardIndex([write_lines(tmp_path / "capture-1.jsonl", CAPTURE)]) as index:
        file.write_bytes(html_file(index, 100, Pick.EVEN).content)
    with opened(browser, file.as_uri()) as page:
        assert waterfall(page, "#sum") == ["+2.000", "+1.500", "+3.500"]
        assert page.locator("#text .piece.segment").all_inner_texts() == ["AB"]
        page.locator("[data-key=reward]").click()
        assert rewards(page) == ["−2.000", "−2.000", "+0.500", "+3.500", "none"]
        page.get_by_role("combobox", name="Gate").select_option("shut")
        assert rewards(page) == ["−2.000", "−2.000", "+0.500"]
        page.locator("#search").fill("FOURTH")
        page.locator("#count", has_text="1 of 5").wait_for()
        page.locator("#list .row").click()
        assert "fourth </script><b>" in page.locator("#text .completion").inner_text()
        assert "The rewards are equal, or differ by 0.0001" in page.locator("#group").inner_text()
        page.locator("#search").fill("")
        page.locator("#count", has_text="3 of 5").wait_for()
        page.locator("#list").press("End")
        page.locator("#about h2", has_text="Sample 2").wait_for()
        assert "not computed" in page.locator("#sum").inner_text()


def test_view_server_keeps_a_long_list_out_of_the_document(
    browser: "Browser", tmp_path: Path
) -> None:
    lines = [
        captured(str(at), sample("?", f"text {at}"), reward(at / 1000), time=86400 - at)
        for at in range(600)
    ]
    with (
        RewardIndex([write_lines(tmp_path / "capture-1.jsonl", lines)]) as index,
        over_tcp(view_app(index, "token")) as port,
        opened(browser, f"http://127.0.0.1:{port}/token/") as page,
    ):
        page.locator("#list").press("End")
        page.locator("#about h2", has_text="Sample 600").wait_for()
        assert page.locator("#list .row").count() < 100
        page.locator("[data-key=time]").click()
        assert page.locator("#list .row").first.inner_text().split()[:2] == ["600", "23:50:01"]
        page.locator("#search").fill("TEXT 345")
        page.locator("#count", has_text="1 of 600").wait_for()
        page.locator("#list .row").click()
        page.locator("#about h2", has_text="Sample 346").wait_for()


def test_replay_report_shows_both_sums_of_the_most_changed_sample(
    browser: "Browser", tmp_path: Path
) -> None:
    lines = [CapturedLine.model_validate(one) for one in CAPTURE[:4]]
    now = Constants.model_validate(CONSTANTS | {"threshold": 0, "weights": {"a": -4.0}})
    after = [reward(1, 0.5, reward=0.0), reward(0.25, 1.0, reward=-3.5, admitted=True)]
    after += [reward(-1), reward(-1)]
    comparison, examples = ReplayComparison("r"), ReplayExamples(now)
    found = [RewardOut.model_validate(one) for one in after]
    comparison.add(lines, found)
    examples.add(lines, found)
    # Means over four samples of |-4 x 0.5 - 3 x 0.5| and of |-4 x 1|.
    assert examples.mean_changes() == {"holistic": 0, "a": pytest.approx(7.5 / 4)}
    file = tmp_path / "report.html"
    file.write_text(replay_html(comparison.result("g"), examples))
    with opened(browser, file.as_uri()) as page:
        assert page.locator("#charts svg[role=img]").count() == 5
        assert page.locator("#most tbody tr").first.inner_text().split("\t")[:4] == [
            "−4.000", "+0.500", "−3.500", "2 → 2 of 2",
        ]  # fmt: skip
        assert waterfall(page, "[data-side=before]") == ["+0.500", "none", "+0.500"]
        assert waterfall(page, "[data-side=after]") == ["+0.500", "−4.000", "−3.500"]
        page.locator("#most button", has_text="AB first").click()
        assert waterfall(page, "[data-side=before]")[-1] == "+3.500"
