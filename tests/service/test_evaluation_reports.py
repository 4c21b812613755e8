"""Reports and plots of missing values, ties and names that users chose."""

import io
from pathlib import Path

import numpy as np
import pytest

from alarm_models.study.agreement import agreement
from alarm_models.study.bootstrap import Estimate, Resampling
from alarm_models.study.comparison import compare
from alarm_models.study.pairs import pairs_within, preferences
from alarm_service.evaluation.plots import distributions, inconsistency_bars, win_rate_maps
from alarm_service.evaluation.report import (
    Grid,
    Outputs,
    Page,
    Paragraph,
    Picture,
    html_of,
    json_of,
    markdown_of,
    plain,
    plains,
    print_page,
)
from alarm_service.stdout_console import StdoutConsole

FEW = Resampling(num_draws=20)
NAN = float("nan")


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def test_plots_bars_of_aspects_without_decisions_are_drawn() -> None:
    pairs = pairs_within([0, 0, 1, 1])
    reference = preferences([1, 0, 1, 0], pairs)
    values = {"good": [1, 0, 1, 0], "flat": [0, 0, 0, 0], "missing": [NAN] * 4}
    found = {
        name: agreement(reference, preferences(one, pairs), pairs, FEW)
        for name, one in values.items()
    }
    less = {"good": found["good"]}
    assert (
        size_of(inconsistency_bars(found, ["good"]))[1] > size_of(inconsistency_bars(less, []))[1]
    )


def test_plots_with_missing_values_are_drawn() -> None:
    found = compare(
        [1, 2, NAN, NAN], [0, 1, 0, 1], [0, 0, 1, 1], is_lower_better=False, resampling=FEW
    )
    one = win_rate_maps(["a", "b"], {"reward": found.rates})
    four = win_rate_maps(["a", "b"], dict.fromkeys("wxyz", found.rates))
    assert size_of(four) == (3 * size_of(one)[0], 2 * size_of(one)[1])
    values = {"a": np.array([1.0, 2.0]), "b": np.array([NAN])}
    assert distributions({"reward": values})
    assert distributions({"reward": {"": np.array([NAN])}}, threshold=0.5)


def test_plots_of_values_that_differ_by_rounding_and_names_with_dollars_are_drawn() -> None:
    almost = np.array([3.4898373248074184, 3.489837324807418])
    assert distributions({"reward": {"dpo_$5_vs_$7": almost, "a$^$": almost}})


def test_page_is_printed_with_names_as_they_are_and_no_figure_is_cut() -> None:
    wide = [f"dpo[v{n}]" for n in range(20)]
    rows = [["[/x]", *(["100.0% [97.0%, 100.0%]"] * 20)]]
    page = Page("t", [Grid("[b]title[/b]", ["", *wide], rows, note="a [note]")])
    printed = io.StringIO()
    print_page(page, StdoutConsole(file=printed))
    text = printed.getvalue()
    assert all(name in text for name in (*wide, "[/x]", "[b]title[/b]", "a [note]"))
    assert text.count("100.0% [97.0%, 100.0%]") == 20


def test_numbers_of_any_size_keep_their_digits() -> None:
    assert [plain(one) for one in (0, 1.5, 12.34, -0.5)] == ["0.000", "1.500", "12.3", "-0.500"]
    assert [plain(one) for one in (1e-4, -0.00123456)] == ["0.0001", "-0.00123"]
    assert plains(Estimate(2e-4, 1e-4, 3e-4)) == "0.0002 [0.0001, 0.0003]"


def test_report_is_written_before_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    for as_json in (True, False):
        out = tmp_path / str(as_json)
        out.mkdir()
        with pytest.raises(BrokenPipeError):
            Outputs(out, as_json).give(Page("t", [Paragraph("text")]), {"a": 1})
        assert (out / "report.html").is_file()


def test_plots_of_equal_figures_are_equal() -> None:
    values = {"": np.arange(20.0)}
    assert distributions({"x": values}, 3.0) == distributions({"x": values}, 3.0)


PAGE = Page(
    "Of <b>",
    [
        Paragraph("mind | the *gap*", is_caution=True),
        Grid("Table", ("", "n"), [("<a>|b", "1")], "a note"),
        Picture("plot", "a plot", lambda: b"png"),
    ],
)


def test_markdown_report_escapes_markup() -> None:
    text = markdown_of(PAGE)
    assert "> mind \\| the \\*gap\\*" in text
    assert "| \\<a>\\|b | 1 |" in text
    assert "![a plot](plot.png)" in text


def test_html_report_escapes_markup() -> None:
    text = html_of(PAGE, {"plot": b"png"})
    assert "<h1>Of &lt;b&gt;</h1>" in text
    assert "<td>&lt;a&gt;|b</td>" in text
    assert 'src="data:image/png;base64,cG5n"' in text


def test_json_report_has_null_for_nan() -> None:
    assert json_of({"a": np.array([1.0, NAN]), "b": NAN}) == (
        '{\n  "a": [\n    1.0,\n    null\n  ],\n  "b": null\n}\n'
    )


def test_interval_format_has_the_digits_of_its_largest_bound() -> None:
    assert plains(Estimate(-13.94, -20.11, -7.705)) == "-13.9 [-20.1, -7.7]"
    assert plains(Estimate(0.052, -0.0111, 0.113)) == "0.052 [-0.011, 0.113]"
    assert plains(Estimate(NAN, NAN, NAN)) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (NAN, "–"), (0.12345, "0.123"), (73.96, "74.0")]
)
def test_number_format_is_short(value: float | None, text: str) -> None:
    assert plain(value) == text
