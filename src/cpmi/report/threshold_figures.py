"""The figures of what thresholds find: ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from matplotlib.axes import Axes

from cpmi.benchmarks.baselines import OUTCOME
from cpmi.report.curves import Thresholds, by_threshold, steps_of
from cpmi.report.drawing import DASHES, MUTED, Panel, legend_below, run_look, short
from cpmi.report.material import Material

_CHANCE: dict[str, Any] = {"color": MUTED, "linestyle": DASHES[2], "linewidth": 1, "label": "chance"}
_BASELINE: dict[str, Any] = {"color": MUTED, "linestyle": DASHES[1], "linewidth": 1.2}


def threshold_panel(kind: Literal["roc", "pr"], heading: str, material: Material) -> Panel:
    """All runs and the outcome baseline in one panel; there must be right and wrong steps."""
    areas = ", ".join(f"{run.name} {_area(material, run.name)}" for run in material.runs)
    draw = _draw_roc if kind == "roc" else _draw_precision
    label = f"{heading}. Area under the ROC curve: {areas}."
    return Panel("", label, partial(draw, material), lines=len(material.runs) + 2)


def _area(material: Material, name: str) -> str:
    quality = material.quality(name)
    value = quality.roc_auc.value if quality else None
    return "not defined" if value is None else f"{value:.2f}"


def _draw_roc(material: Material, ax: Axes) -> None:
    _draw_lines(material, ax, lambda curve, look: ax.plot(curve.alarms, curve.found, **look))
    ax.plot([0, 1], [0, 1], **_CHANCE)
    ax.set_xlabel("right steps called wrong")
    ax.set_ylabel("wrong steps found")
    legend_below(ax)


def _draw_precision(material: Material, ax: Axes) -> None:
    _draw_lines(material, ax, lambda curve, look: ax.plot(curve.found[1:], curve.precision[1:], **look))
    labels = steps_of(material.cases(None)).labels
    ax.plot([0, 1], [(labels == 0).sum() / (labels >= 0).sum()] * 2, **_CHANCE)
    ax.set_xlabel("wrong steps found (recall)")
    ax.set_ylabel("of those called wrong, wrong")
    legend_below(ax)


def _draw_lines(material: Material, ax: Axes, draw: Callable[[Thresholds, dict[str, Any]], object]) -> None:
    for index, run in enumerate(material.runs):
        name = f"{short(run.name, 24)}, AUC {_area(material, run.name)}"
        draw(by_threshold(material.cases(run)), {"label": name, **run_look(index)})
    if material.has_outcome_baseline:
        name = f"{OUTCOME}, AUC {_area(material, OUTCOME)}"
        draw(by_threshold(material.cases(None)), {"label": name, **_BASELINE})
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
