"""The tables of the page: cells of text, taken from comparisons and results as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cpmi.benchmarks import best_of_n
from cpmi.compare import Comparison, Row, correlation_table
from cpmi.metrics import Estimate
from cpmi.report.verdicts import duration, figure
from cpmi.results import EvalResult


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and the interval or the remark that stands beside it in smaller letters."""

    text: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The first cells of a row name it.

    Attributes:
        names: how many first cells of a row are names; they stand on the left, all others on the right.
        groups: headings over several columns each: text and number of columns.
        notes: below the table.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1
    groups: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


_DASH = Cell("–")


def _estimate(value: Estimate | None) -> Cell:
    if value is None or value.value is None:
        return _DASH
    text, _, interval = figure(value).partition(" ")
    return Cell(text, interval.strip("()"))


def summary_table(comparison: Comparison) -> Table:
    """Runs, and the outcome baseline where there is one: what they cost, how well they agree with people."""
    judged = any(row.quality for row in comparison.rows)
    gains = any(row.quality and row.quality.f1_gain for row in comparison.rows)
    costs = ("seconds", "time saved", "generated", "read")
    quality = ("step AUC", "within AUC", "first-error F1", *(("F1 gain",) if gains else ())) if judged else ()
    groups = (("", 3), ("Cost of a trajectory", len(costs)), ("Agreement with people", len(quality)))
    rows = []
    for row in comparison.rows:
        cells = [Cell(row.name), Cell(row.source), _counts(row), *_costs(row, comparison)]
        rows.append((*cells, *_quality(row)[: len(quality)]))
    caption = "Runs side by side"
    columns = ("run", "method", "rewarded", *costs, *quality)
    return Table(caption, columns, tuple(rows), 2, tuple(group for group in groups if group[1]))


def _counts(row: Row) -> Cell:
    missing = [f"{count:,} {word}" for count, word in ((row.failed, "failed"), (row.missing, "missing")) if count]
    return Cell(f"{row.rewarded:,}", ", ".join(missing))


def _costs(row: Row, comparison: Comparison) -> list[Cell]:
    if row.cost is None:
        return [_DASH] * 4
    n, cost = comparison.trajectories, row.cost
    saved = (
        _DASH if row.seconds_saved is None or row.name == comparison.baseline else Cell(f"{row.seconds_saved:.1f} %")
    )
    generated, scored = cost.tokens_generated / n, cost.tokens_scored / n
    return [Cell(duration(cost.seconds / n)), saved, Cell(f"{generated:,.0f}"), Cell(f"{scored:,.0f}")]


def _quality(row: Row) -> list[Cell]:
    quality = row.quality
    if quality is None:
        return [_DASH] * 4
    gain = quality.f1_gain
    cells = [_estimate(quality.roc_auc), _estimate(quality.within_auc), _estimate(quality.first_error_f1)]
    if gain is None or gain.value is None:
        return [*cells, _DASH]
    interval = "" if gain.low is None else f"{_minus(gain.low)} to {_minus(gain.high or 0.0)}"
    return [*cells, Cell(_minus(gain.value), interval)]


def _minus(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def correlations(comparison: Comparison) -> Table | None:
    """Rank correlations of every two runs; None for a single one."""
    if not comparison.correlations:
        return None
    columns, rows = correlation_table(comparison)
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    return Table("Rank correlation of the rewards of all steps", ("run", *columns[1:]), cells)


def benchmark_tables(results: Sequence[EvalResult]) -> list[Table]:
    """One for each benchmark: a row for each subset and source, a column for each metric."""
    return [
        _benchmark_table(name, [result for result in results if result.benchmark == name])
        for name in dict.fromkeys(result.benchmark for result in results)
    ]


def _benchmark_table(benchmark: str, results: Sequence[EvalResult]) -> Table:
    if benchmark == best_of_n.NAME:
        return _choice_table(results)
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = []
    for result in results:
        unscored = f"{result.n_unscored:,} unscored" if result.n_unscored else ""
        names = (Cell(result.source), Cell(result.subset), _threshold(result), Cell(f"{result.n:,}", unscored))
        rows.append((*names, *(_estimate(result.metrics.get(name)) for name in metrics)))
    columns = ("source", "subset", "threshold", "n", *map(_heading, metrics))
    return Table(benchmark, columns, tuple(rows), 3, notes=tuple(_notes(results)))


def _choice_table(results: Sequence[EvalResult]) -> Table:
    """Right answers in percent at some Ns, and the gain over the majority and the ties at each row's largest."""
    shown = sorted({n for result in results for n in best_of_n.shown_sizes(best_of_n.sizes_of(result))})
    rows = []
    for result in results:
        last = best_of_n.sizes_of(result)[-1]
        aggregation = result.settings.get("aggregation")
        unscored = f"{result.n_unscored:,} unscored" if result.n_unscored else ""
        names = (
            Cell(str(result.settings.get("rule"))),
            Cell(str(aggregation)) if aggregation else _DASH,
            Cell(result.source) if aggregation else _DASH,
            Cell(result.subset),
            Cell(f"{result.n:,}", unscored),
        )
        figures = (f"accuracy@{n}" for n in shown)
        metrics = (*figures, f"gain@{last}", f"ties@{last}")
        rows.append((*names, *(_percent(best_of_n.percent(result, name)) for name in metrics)))
    columns = ("rule", "aggregation", "rewards", "subset", "questions", *(f"N = {n}" for n in shown), "gain", "ties")
    notes = ("Right answers in percent; gain over the majority and ties at the largest N.", *_notes(results))
    return Table(best_of_n.NAME, columns, tuple(rows), 4, notes=notes)


def _percent(value: Estimate | None) -> Cell:
    if value is None or value.value is None:
        return _DASH
    interval = "" if value.low is None or value.high is None else f"{value.low:.1f} to {value.high:.1f}"
    return Cell(f"{value.value:.1f}".replace("-", "\N{MINUS SIGN}"), interval.replace("-", "\N{MINUS SIGN}"))


def _notes(results: Sequence[EvalResult]) -> Iterator[str]:
    """Each once, with the rows that it is about, unless it is about all."""
    for note in dict.fromkeys(note for result in results for note in result.notes):
        about = [f"{result.source}, {result.subset}" for result in results if note in result.notes]
        yield note if len(about) == len(results) else f"{'; '.join(about)}: {note}"


def _heading(metric: str) -> str:
    return " ".join(_SHORT.get(word, word) for word in metric.split("_"))


_SHORT = {word.lower(): word for word in ("ROC", "AUC", "PR", "F1", "PRM", "ECE", "Brier")}


def _threshold(result: EvalResult) -> Cell:
    """The protocol, and what came of it."""
    protocol = result.settings.get("threshold", "–")
    text = protocol if isinstance(protocol, str) else json.dumps(protocol, ensure_ascii=False)
    value = result.settings.get("threshold_value")
    if result.settings.get("upper_bound"):
        return Cell(text, "upper bound")
    return Cell(text, f"{value:.4g}" if isinstance(value, float) and f"{value:g}" not in text else "")
