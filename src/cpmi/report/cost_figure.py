"""The figure of quality against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes

from cpmi.metrics import Estimate
from cpmi.report.drawing import FAINT, MARKERS, MUTED, Panel, legend_below, run_look, short
from cpmi.report.material import Material


@dataclass(frozen=True, slots=True)
class _Point:
    """A run: where it stands among the runs, its seconds per trajectory, its first-error F1."""

    index: int
    name: str
    seconds: float
    f1: Estimate


def cost_panel(material: Material) -> Panel | None:
    """Seconds per trajectory against first-error F1; None where no run has an F1."""
    points = _points(material)
    if not points:
        return None
    hurdle = material.hurdle()
    words = "; ".join(f"{p.name} {_f1(p.f1)} for {p.seconds:.3g} seconds" for p in points)
    baseline = f" The better baseline: {_f1(hurdle)}." if hurdle.value is not None else ""
    label = f"First-error F1 against seconds per trajectory: {words}.{baseline}"
    return Panel("", label, partial(_draw, points, hurdle), lines=math.ceil((len(points) + 1) / _columns(points)))


def _columns(points: Sequence[_Point]) -> int:
    return 1 if max(len(point.name) for point in points) > 16 else 2


def _points(material: Material) -> list[_Point]:
    comparison = material.comparison
    points = []
    for index, row in enumerate(comparison.rows if comparison else ()):
        f1 = row.quality.first_error_f1 if row.quality else None
        if comparison and row.cost is not None and f1 is not None and f1.value is not None:
            points.append(_Point(index, row.name, row.cost.seconds / comparison.trajectories, f1))
    return points


def _f1(f1: Estimate) -> str:
    interval = "" if f1.low is None else f" ({f1.low:.2f} to {f1.high:.2f})"
    return "not defined" if f1.value is None else f"{f1.value:.2f}{interval}"


def _draw(points: Sequence[_Point], hurdle: Estimate, ax: Axes) -> None:
    zero = _zero(points)
    if hurdle.value is not None:
        if hurdle.low is not None and hurdle.high is not None:
            ax.axhspan(hurdle.low, hurdle.high, color=FAINT, alpha=0.6, linewidth=0)
        ax.axhline(hurdle.value, color=MUTED, linewidth=1, label="better baseline")
    for point in points:
        _draw_point(ax, point, point.seconds or zero)
    ax.set_xscale("log")
    _label_costs(ax, [point.seconds or zero for point in points], zero)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("seconds per trajectory")
    ax.set_ylabel("first-error F1")
    legend_below(ax, _columns(points))


def _draw_point(ax: Axes, point: _Point, x: float) -> None:
    value, low, high = point.f1.value or 0.0, point.f1.low, point.f1.high
    reach = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
    color = run_look(point.index)["color"]
    marker = MARKERS[point.index % len(MARKERS)]
    ax.errorbar([x], [value], reach, color=color, marker=marker, markersize=7, capsize=3, linestyle="none",
                label=short(point.name, 26))  # fmt: skip


def _zero(points: Sequence[_Point]) -> float:
    """Where a cost of 0 stands on a logarithmic axis: a power of ten, at most a tenth of the smallest other one."""
    positive = [point.seconds for point in points if point.seconds > 0]
    return 10.0 ** (math.floor(math.log10(min(positive))) - 1) if positive else 0.1


def _label_costs(ax: Axes, costs: Sequence[float], zero: float) -> None:
    first, last = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
    marks = [10.0**power for power in range(first, max(last, first + 1) + 1)]
    ax.set_xlim(marks[0] / 1.6, marks[-1] * 1.6)
    has_zero = zero in costs
    ax.set_xticks(marks, ["0" if has_zero and mark == zero else _power(mark) for mark in marks])
    ax.set_xticks([], minor=True)


def _power(mark: float) -> str:
    """A power of ten."""
    power = round(math.log10(mark))
    return f"{mark:,.10g}" if -3 <= power <= 4 else "10" + str(power).translate(_RAISED)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
