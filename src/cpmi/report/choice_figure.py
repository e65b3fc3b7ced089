"""What rewards do to answers: accuracy over the number of candidates, by each rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from cpmi.benchmarks.best_of_n import (
    BEST,
    MAJORITY,
    NAME,
    ONE,
    ORACLE,
    SOFTMAX,
    WEIGHTED,
    percent,
    shown_sizes,
    sizes_of,
)
from cpmi.errors import InputError
from cpmi.report.drawing import DASHES, INK, MUTED, Panel, legend_below, run_look
from cpmi.results import EvalResult

MOST_PANELS = 6
CAPTION = (
    "How often the chosen answer is right (up) when one of so many candidates is chosen (right). Gray: one sample, and "
    "the oracle, which finds a right one where there is any; black: the majority. Of each source of rewards, best-of-N "
    "(dots) and votes weighed by rewards, of the last step's reward where there is one for each step. The bars at the "
    "end are 95 % intervals."
)


def blocks(results: Sequence[EvalResult]) -> list[list[EvalResult]]:
    """The results of best-of-N, those over the same questions together, as ``cpmi evaluate`` writes them."""
    found: list[list[EvalResult]] = []
    for result in results:
        if result.benchmark == NAME:
            if result.settings.get("rule") == ONE or not found:
                found.append([])
            found[-1].append(result)
    return found


def choice_panels(results: Sequence[EvalResult]) -> list[Panel]:
    """A panel for all questions, and for each subset; at most ``MOST_PANELS``.

    Raises:
        InputError: there is no result of best-of-N.
    """
    parts = blocks(results)
    if not parts:
        raise InputError("nothing to draw: none of these is a result of cpmi evaluate best-of-n")
    shown = parts[:MOST_PANELS]
    titles = _titles([block[0].subset for block in shown])
    return [
        Panel(title, _label(block), partial(_draw, block), lines=-(-(3 + len(_drawn(block))) // 2))
        for title, block in zip(titles, shown, strict=True)
    ]


def left_out(results: Sequence[EvalResult]) -> tuple[str, ...]:
    """A note where there are more subsets than panels."""
    more = [block[0].subset for block in blocks(results)[MOST_PANELS:]]
    return (f"No room for: {', '.join(more)}; the table has them.",) if more else ()


def _titles(subsets: Sequence[str]) -> list[str]:
    """The subsets; one that comes again (of another file) with a number."""
    if len(subsets) == 1:
        return [""]
    seen: Counter[str] = Counter()
    titles = []
    for subset in subsets:
        seen[subset] += 1
        titles.append(subset if seen[subset] == 1 else f"{subset} ({seen[subset]})")
    return titles


def _drawn(block: Sequence[EvalResult]) -> list[EvalResult]:
    """Of each source best-of-N and one of the votes, by one aggregation: not the best one, which would be an oracle."""
    return [result for source in _sources(block) for result in _of_source(block, source)]


def _sources(block: Sequence[EvalResult]) -> list[str]:
    return list(dict.fromkeys(result.source for result in block if result.settings.get("aggregation")))


def _of_source(block: Sequence[EvalResult], source: str) -> Iterator[EvalResult]:
    own = [result for result in block if result.source == source and result.settings.get("aggregation")]
    aggregations = [str(result.settings["aggregation"]) for result in own]
    wanted = "last" if "last" in aggregations else aggregations[0]
    rules = {str(each.settings["rule"]): each for each in own if each.settings["aggregation"] == wanted}
    yield rules[BEST]
    yield rules[WEIGHTED] if WEIGHTED in rules else rules[SOFTMAX]


def _label(block: Sequence[EvalResult]) -> str:
    """The figures at the largest N, in words."""
    n = sizes_of(block[0])[-1]
    plain = [result for result in block if not result.settings.get("aggregation")]
    parts = [f"{_name(result)} {_value(result, n):.1f} %" for result in (*plain, *_drawn(block))]
    return f"Share of right answers over the number of candidates. With {n}: {', '.join(parts)}."


def _name(result: EvalResult) -> str:
    rule = str(result.settings["rule"])
    return f"{result.source}, {rule}" if result.settings.get("aggregation") else rule


def _value(result: EvalResult, n: int) -> float:
    figure = percent(result, f"accuracy@{n}")
    return float("nan") if figure is None or figure.value is None else figure.value


_PLAIN: dict[str, dict[str, Any]] = {
    ONE: {"color": MUTED, "linestyle": DASHES[2], "linewidth": 1.0},
    ORACLE: {"color": MUTED, "linestyle": DASHES[1], "linewidth": 1.0},
    MAJORITY: {"color": INK, "linestyle": DASHES[0], "linewidth": 1.4},
}


def _draw(block: Sequence[EvalResult], ax: Axes) -> None:
    sizes = sizes_of(block[0])
    plain = [result for result in block if not result.settings.get("aggregation")]
    for result in plain:
        _line(ax, result, sizes, _PLAIN[str(result.settings["rule"])])
    sources = _sources(block)
    for result in _drawn(block):
        look = run_look(sources.index(result.source))
        is_best = result.settings["rule"] == BEST
        more = {"marker": "o", "markersize": 3.5} if is_best else {"linewidth": 1.2}
        _line(ax, result, sizes, look | more | {"linestyle": DASHES[0] if is_best else DASHES[1]})
        _bar(ax, result, sizes[-1], look["color"])
    if len(sizes) > 1:
        ax.set_xscale("log", base=2)
    marks = shown_sizes(sizes)
    ax.xaxis.set_major_locator(FixedLocator(marks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([str(n) for n in marks])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    ax.set_xlabel("candidates")
    ax.set_ylabel("right answers")
    legend_below(ax, columns=2)


def _line(ax: Axes, result: EvalResult, sizes: Sequence[int], look: dict[str, Any]) -> None:
    ax.plot(sizes, [_value(result, n) for n in sizes], label=_name(result), **look)


def _bar(ax: Axes, result: EvalResult, n: int, color: str) -> None:
    figure = percent(result, f"accuracy@{n}")
    if figure is not None and figure.low is not None and figure.high is not None:
        ax.plot([n, n], [figure.low, figure.high], color=color, linewidth=0.8, alpha=0.7)
