"""Writes RESULTS.md and its pictures from stored generations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from translation_study.intervals import Figure, gain, win_rate, win_rates_by_seed
from translation_study.methods import UNTRAINED, methods
from translation_study.metrics import GOLD, METRICS
from translation_study.recipe import ASPECTS
from translation_study.stored_results import LOWER, Results, read_results

__all__ = ["write_report"]

_PAPER_WINS = """\
| judge (the paper's Table 3) | row | holistic | grammar | weighted sum | hierarchical | mean |
|---|---|---:|---:|---:|---:|---:|
| holistic reward | holistic | – | 51.5 ± 0.8 | 50.2 ± 0.9 | 48.3 ± 0.7 | 50.0 |
| | grammar | 48.5 ± 0.8 | – | 48.7 ± 0.2 | 47.1 ± 0.2 | 48.1 |
| | weighted sum | 49.8 ± 0.9 | 51.3 ± 0.2 | – | 48.3 ± 0.2 | 49.8 |
| | hierarchical | 51.7 ± 0.7 | 52.9 ± 0.2 | 51.7 ± 0.2 | – | 52.1 |
| gpt-3.5-turbo | holistic | – | 51.0 ± 0.4 | 51.3 ± 1.8 | 49.0 ± 1.7 | 50.4 |
| | grammar | 49.0 ± 0.4 | – | 49.0 ± 2.8 | 47.9 ± 2.1 | 48.6 |
| | weighted sum | 48.7 ± 1.8 | 51.0 ± 2.8 | – | 48.0 ± 3.1 | 49.2 |
| | hierarchical | 51.0 ± 1.7 | 52.2 ± 2.1 | 52.0 ± 3.1 | – | 51.7 |
"""

_PAPER_MEANS = """\
| the paper's Table 4 | holistic | grammar error rate, % (lower is better) | length |
|---|---:|---:|---:|
| holistic | .919 | 1.203 | 36.7 |
| grammar | .908 | 1.190 | 36.5 |
| weighted sum | .918 | 1.197 | 36.5 |
| hierarchical | .928 | 1.203 | 37.0 |
"""

_PAPER_ABLATION = """\
| the paper's Table 5 | by the holistic reward | by gpt-3.5-turbo |
|---|---:|---:|
| grammar | 51.6 ± 0.6 | 50.6 ± 1.6 |
| language | 49.2 ± 0.5 | 48.7 ± 1.3 |
| readability | 49.5 ± 0.4 | 50.6 ± 1.1 |
| length | 49.7 ± 0.3 | 50.1 ± 1.8 |
"""


def write_report(stored: Path, page: Path) -> None:
    """Write the page; its pictures go to `stored`/figures."""
    results = read_results(stored)
    figures = stored / "figures"
    figures.mkdir(exist_ok=True)
    report = _Report(results)
    report.plot_gains(figures / "gains.png")
    report.plot_curves(figures / "over-optimization.png")
    where = os.path.relpath(stored, page.parent)
    page.write_text("\n".join(report.parts(where)) + "\n")


class _Report:
    """The page's parts, each computed from the results."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._draws = results.settings["draws"]
        self._chosen = results.found("select")["chosen"]
        done = [one for one in methods(self._chosen, 1.0) if one.title in results.values]
        self._main, self._controls, self._ablation = (
            [one.title for one in done if one.part == part]
            for part in ("main", "control", "ablation")
        )
        self._trained = [one.title for one in done]

    def parts(self, stored: str) -> Iterable[str]:
        """Yield paragraphs and tables; `stored` is the folder as the page links to it."""
        figures = f"{stored}/figures"
        yield "# Translation: results\n"
        yield (
            "This page is written from the stored generations by"
            " `python -m translation_study report`, and not edited by hand. [README.md](README.md)"
            " describes the experiment and what was fixed before it. Intervals are 95% bootstrap"
            " intervals over prompts and seeds.\n"
        )
        yield from self._answer()
        yield from self._setting()
        yield from self._means()
        yield f"\n![Gain in {GOLD} over the supervised policy]({figures}/gains.png)\n"
        yield from self._wins()
        yield "Reports of the commands on the same files:"
        for name in ("select", "calibrate", "evaluate"):
            yield f"[`alarm {name}`]({stored}/{name}/report.md)"
        yield from self._shapings()
        yield from self._ablations()
        yield "\n## Over-optimization\n"
        yield (
            f"Samples at temperature 1 of {self._results.settings['curve_prompts']} sentences, the"
            " same along training, mean over seeds: the proxy (holistic z) and the gold metric"
            f" ({GOLD}) over the distance from the supervised policy.\n"
        )
        yield f"![Gold and proxy over KL]({figures}/over-optimization.png)\n"
        yield from self._curve_table()
        yield from self._reasons()
        yield from self._examples()
        yield from self._times()

    def _answer(self) -> Iterable[str]:
        yield "## Does the paper's order come out?\n"
        yield f"| difference in mean | {GOLD} | holistic z |\n|---|---:|---:|"
        pairs = [
            ("hierarchical", other)
            for other in (UNTRAINED, "holistic", "aspect", "weighted sum")
            if other in self._results.values
        ]
        pairs += [
            (own, other)
            for own in ("hierarchical centred", "soft gate centred")
            for other in ("holistic", "hierarchical")
        ]
        pairs.append(("hierarchical centred", "weighted sum centred"))
        clear = []
        for own, other in pairs:
            if own not in self._results.values or other not in self._results.values:
                continue
            found = {name: self._gain(own, other, name) for name in (GOLD, "z")}
            yield f"| {own} − {other} | {found[GOLD].text(2)} | {found['z'].text(3)} |"
            if own == "hierarchical":
                clear.append((other, found[GOLD]))
        if not clear:
            return
        above = [other for other, found in clear if found.low > 0]
        below = [other for other, found in clear if found.high < 0]
        unclear = [other for other, found in clear if not found.is_clear]
        sentences = [
            f"clearly above {', '.join(above)}" if above else "",
            f"clearly below {', '.join(below)}" if below else "",
            f"not distinguishable from {', '.join(unclear)}" if unclear else "",
        ]
        yield f"\nBy {GOLD}, `hierarchical` is {'; '.join(one for one in sentences if one)}.\n"

    def _setting(self) -> Iterable[str]:
        results = self._results
        policy, holistic = results.found("policy"), results.found("recipe/holistic")
        errors, constants = results.found("recipe/errors"), results.found("calibrate")
        yield "## Setting\n"
        yield "| | |\n|---|---|"
        development = ", ".join(f"{name} {value}" for name, value in policy["development"].items())
        yield (
            f"| supervised policy | {policy['parameters']:,} parameters; development set:"
            f" {development} |"
        )
        yield (
            f"| holistic model | prefers the translation of higher {GOLD} in"
            f" {holistic['accuracy_true']:.1%} of {holistic['held_out_pairs']} pairs kept back;"
            f" agrees with the noisy labels in {holistic['accuracy_labels']:.1%} |"
        )
        yield (
            f"| model of error spans | precision {errors['precision']:.2f}, recall"
            f" {errors['recall']:.2f} on corrupted references kept back |"
        )
        by = "`alarm select`" if results.found("select")["by_alarm_select"] else "highest tau-b"
        yield f"| selected aspect | {self._chosen} ({by}) |"
        yield (
            f"| constants by `alarm calibrate` | mean {constants['mean']}, std {constants['std']},"
            f" threshold {constants['threshold']} |"
        )
        rates = [one["found"] for one in results.stages if one["stage"].startswith("rates/")]
        tried = ", ".join(f"{one['rate']:g}: {one['development'][GOLD]}" for one in rates)
        yield f"| learning rate | by `holistic`, {GOLD} on the development set: {tried} |"
        seeds = ", ".join(map(str, results.settings["seeds"]))
        yield f"| GRPO | {results.settings['steps']} steps, seeds {seeds} |"

    def _means(self) -> Iterable[str]:
        yield "\n## Means on the test set\n"
        yield (
            f"Of samples at temperature 1. {', '.join(METRICS)} are corpus scores, averaged over"
            f" seeds; *gain* is that of mean sentence {GOLD} over the supervised policy, *greedy*"
            f" the {GOLD} of greedy translations. `grammar` is the number of errors per word,"
            " `errors` the share of words that the model of error spans finds right. Of TER,"
            " grammar and repetition less is better.\n"
        )
        names = ("z", *ASPECTS, "length", "repetition")
        head = (*METRICS, f"gain in {GOLD}", "greedy", *names, "admitted")
        yield "| method | " + " | ".join(head) + " |"
        yield "|---|" + "---:|" * len(head)
        for method in (UNTRAINED, *self._trained):
            scores = self._results.corpus[method]
            cells = [f"{np.mean(scores[name]):.2f}" for name in METRICS]
            own = "" if method == UNTRAINED else self._gain(method, UNTRAINED, GOLD).text(2)
            cells += [own, self._greedy(method), *(self._mean(method, name) for name in names)]
            cells.append(f"{self._results.admitted[method]:.0%}")
            yield f"| {method} | " + " | ".join(cells) + " |"
        yield f"\n{_PAPER_MEANS}"

    def _greedy(self, method: str) -> str:
        found = [
            one["found"]["test_greedy"][GOLD]
            for one in self._results.stages
            if one["found"].get("method", UNTRAINED) == method and "test_greedy" in one["found"]
        ]
        return f"{np.mean(found):.2f}"

    def _mean(self, method: str, name: str) -> str:
        values = self._results.values[method][name]
        return "–" if np.isnan(values).all() else f"{np.nanmean(values):.3f}"

    def _wins(self) -> Iterable[str]:
        yield "\n## Win rates\n"
        yield (
            "Share of samples that the row wins, in percent, ties left out: mean over seeds ±"
            " standard deviation, as the paper has them. *all pairs* is the win rate against"
            " `holistic` over all pairs of seeds, with its interval. The first four methods are the"
            " paper's.\n"
        )
        titles = self._main
        judges = dict.fromkeys(("z", self._chosen, *METRICS))
        yield "| judge | row | " + " | ".join(titles) + " | mean | all pairs |"
        yield "|---|---|" + "---:|" * (len(titles) + 2)
        for judge in judges:
            for row in titles:
                cells, rates = [], []
                for column in titles:
                    if row == column:
                        cells.append("–")
                        continue
                    found = self._by_seed(row, column, judge)
                    rates.append(np.mean(found))
                    cells.append(_spread(found))
                base = "" if row == "holistic" else self._win(row, "holistic", judge).text(1, 100)
                average = f"{np.nanmean(rates) * 100:.1f}" if rates else "–"
                name = {"z": "holistic reward"}.get(judge, judge) if row == titles[0] else ""
                yield f"| {name} | {row} | " + " | ".join(cells) + f" | {average} | {base} |"
        yield f"\n{_PAPER_WINS}"

    def _shapings(self) -> Iterable[str]:
        if not self._controls:
            return
        yield "\n## The shaping, or the aspect?\n"
        yield (
            "The same rules with the paper's shaping, which pays for each segment (here, each word)"
            " right or wrong, and with `centred`, which does not.\n"
        )
        yield f"| rule | gain in {GOLD}, sigmoid | centred | words, sigmoid | centred |"
        yield "|---|---:|---:|---:|---:|"
        for rule in ("aspect", "weighted sum", "hierarchical"):
            pair = [rule, f"{rule} centred"]
            if set(pair) <= set(self._trained):
                gains = [self._gain(one, UNTRAINED, GOLD).text(2) for one in pair]
                lengths = [self._mean(one, "length") for one in pair]
                yield f"| {rule} | " + " | ".join((*gains, *lengths)) + " |"

    def _ablations(self) -> Iterable[str]:
        yield "\n## Ablation: the hierarchy with other aspects\n"
        titles = [one for one in ("hierarchical", *self._ablation) if one in self._results.values]
        yield (
            f"| aspect | mean win rate by the holistic reward | by {GOLD} | gain in {GOLD}"
            " | over the selected aspect | words |"
        )
        yield "|---|---:|---:|---:|---:|---:|"
        for title in titles:
            name = f"{self._chosen} (selected)" if title == "hierarchical" else title.split(": ")[1]
            cells = []
            for judge in ("z", GOLD):
                rates = [
                    np.mean(self._by_seed(title, other, judge))
                    for other in titles
                    if other != title
                ]
                cells.append(f"{np.nanmean(rates) * 100:.1f}" if rates else "–")
            cells.append(self._gain(title, UNTRAINED, GOLD).text(2))
            is_selected = title == titles[0]
            cells.append("" if is_selected else self._gain(title, titles[0], GOLD).text(2))
            cells.append(self._mean(title, "length"))
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield f"\n{_PAPER_ABLATION}"

    def _curve_table(self) -> Iterable[str]:
        yield f"| method | final KL | z, start → end | {GOLD}, start → end | highest (step) |"
        yield "|---|---:|---:|---:|---:|"
        for method, runs in self._ordered_curves():
            z = np.mean([[point.z for point in run] for run in runs], axis=0)
            kl = np.mean([run[-1].kl for run in runs])
            gold = np.mean([[point.gold for point in run] for run in runs], axis=0)
            best = int(np.argmax(gold))
            yield (
                f"| {method} | {kl:.2f} | {z[0]:.2f} → {z[-1]:.2f}"
                f" | {gold[0]:.1f} → {gold[-1]:.1f} | {gold[best]:.1f} ({runs[0][best].step}) |"
            )

    def _reasons(self) -> Iterable[str]:
        """Yield how the rewards agree with the gold metric over all translations."""
        yield "\n## What the rewards know\n"
        yield (
            "Between the supervised policy's translation of a sentence and a trained policy's: how"
            f" often a reward prefers the one of higher {GOLD} (pairs that neither ties). *given"
            " admitted*: pairs in which both pass the threshold, where aspects are added.\n"
        )
        yield f"| reward | agrees with {GOLD} | given admitted | ties |"
        yield "|---|---:|---:|---:|"
        for name in ("z", *ASPECTS, "length"):
            agree, passed, ties = self._agreement(name)
            label = {"z": "holistic"}.get(name, name)
            yield f"| {label} | {agree:.1%} | {passed:.1%} | {ties:.1%} |"

    def _agreement(self, name: str) -> tuple[float, float, float]:
        values = self._results.values
        threshold = self._results.found("calibrate")["threshold"]
        base = values[UNTRAINED]
        signs, golds, admitted = [], [], []
        for method in self._trained:
            turn = -1 if name in LOWER else 1
            for own_name, base_name, target in (
                (turn * values[method][name], turn * base[name], signs),
                (values[method][GOLD], base[GOLD], golds),
            ):
                target.append(np.sign(own_name - base_name).ravel())
            both = (values[method]["z"] >= threshold) & (base["z"] >= threshold)
            admitted.append(both.ravel())
        sign, gold, passed = map(np.concatenate, (signs, golds, admitted))
        differs = gold != 0
        decided = differs & (sign != 0) & ~np.isnan(sign)
        right = sign == gold
        inside = decided & passed
        return (
            float(right[decided].mean()) if decided.any() else float("nan"),
            float(right[inside].mean()) if inside.any() else float("nan"),
            float((sign[differs] == 0).mean()) if differs.any() else float("nan"),
        )

    def _examples(self) -> Iterable[str]:
        yield "\n## Translations\n"
        yield "The first sentences of the test set, the first sample of seed 0.\n"
        for source, reference, texts in self._results.examples:
            yield f"- *{source}* (reference: {reference})"
            for method in (UNTRAINED, *self._main):
                yield f"    - {method}: {texts[method]}"

    def _times(self) -> Iterable[str]:
        stages = self._results.stages
        yield "\n## Wall times and versions\n"
        yield "| stage | seconds | of these on the CPU of the trainer |\n|---|---:|---:|"
        for one in stages:
            if not one["stage"].startswith("grpo/"):
                yield f"| {one['stage']} | {one['seconds']:.0f} | {one['cpu_seconds']:.0f} |"
        runs = [one for one in stages if one["stage"].startswith("grpo/")]
        if runs:
            for what, choose in (("mean", np.mean), ("total", np.sum)):
                seconds, spent = (
                    choose([r[key] for r in runs]) for key in ("seconds", "cpu_seconds")
                )
                yield f"| {len(runs)} runs of GRPO, {what} | {seconds:.0f} | {spent:.0f} |"
        failed = [one["found"].get("failed", 0.0) for one in runs]
        if failed:
            yield f"\nSamples without a reward, over all runs: {np.mean(failed):.2%}."
        versions = ", ".join(f"{name} {value}" for name, value in stages[-1]["versions"].items())
        yield f"\n{versions}."

    def _gain(self, method: str, base: str, name: str) -> Figure:
        values = self._results.values
        return gain(values[method][name], values[base][name], self._draws)

    def _by_seed(self, row: str, column: str, judge: str) -> list[float]:
        values = self._results.values
        return win_rates_by_seed(
            values[row][judge], values[column][judge], is_lower_better=judge in LOWER
        )

    def _win(self, row: str, column: str, judge: str) -> Figure:
        values = self._results.values
        return win_rate(
            values[row][judge],
            values[column][judge],
            self._draws,
            is_lower_better=judge in LOWER,
        )

    def _ordered_curves(self) -> list[tuple[str, list]]:
        curves = self._results.curves
        return [(one, curves[one]) for one in self._trained if one in curves]

    def plot_gains(self, file: Path) -> None:
        """Plot each method's gain in the gold metric with its interval."""
        titles = self._trained
        found = [self._gain(title, UNTRAINED, GOLD) for title in titles]
        fig, axes = plt.subplots(figsize=(7, 0.4 * len(titles) + 1.2), layout="constrained")
        for at, (title, one) in enumerate(zip(titles, found, strict=True)):
            color = "C0" if title in self._main else "C7"
            axes.plot([one.low, one.high], [at, at], color=color, lw=2)
            axes.plot(one.value, at, "o", color=color)
        axes.axvline(0, color="0.7", lw=1, zorder=0)
        axes.set_yticks(range(len(titles)), titles)
        axes.invert_yaxis()
        axes.set_xlabel(f"gain in mean sentence {GOLD} over the supervised policy")
        fig.savefig(file, dpi=110)
        plt.close(fig)

    def plot_curves(self, file: Path) -> None:
        """Plot proxy and gold over KL, mean over seeds."""
        fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
        for at, (method, runs) in enumerate(self._ordered_curves()):
            if method not in self._main:
                continue
            kl = np.mean([[point.kl for point in run] for run in runs], axis=0)
            for axis, name in zip(axes, ("z", "gold"), strict=True):
                own = np.mean([[getattr(point, name) for point in run] for run in runs], axis=0)
                axis.plot(kl, own, "o-", ms=4, color=f"C{at}", label=method)
        axes[0].set_ylabel("proxy: holistic z")
        axes[1].set_ylabel(f"gold: {GOLD}")
        for axis in axes:
            axis.set_xlabel("KL from the supervised policy, nats per translation")
        axes[0].legend(fontsize=8)
        fig.savefig(file, dpi=110)
        plt.close(fig)


def _spread(rates: Sequence[float]) -> str:
    if np.isnan(rates).all():
        return "ties"
    spread = f" ± {np.nanstd(rates, ddof=1) * 100:.1f}" if len(rates) > 1 else ""
    return f"{np.nanmean(rates) * 100:.1f}{spread}"
