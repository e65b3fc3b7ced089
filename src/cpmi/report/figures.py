"""What each figure shows: the same panels for the page and for ``cpmi plot``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cpmi.metrics import JudgedTrajectory
from cpmi.report.choice_figure import CAPTION, blocks, choice_panels, left_out
from cpmi.report.cost_figure import cost_panel
from cpmi.report.curves import (
    LAST_POSITION,
    Reliability,
    Steps,
    by_position,
    histogram,
    reliability,
    steps_of,
)
from cpmi.report.drawing import DASHES, MUTED, RIGHT, WRONG, Panel, few_marks, legend_below
from cpmi.report.material import Material, Run
from cpmi.report.threshold_figures import threshold_panel

Kind = Literal["distribution", "roc", "pr", "reliability", "position", "cost"]


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A figure, or the reason why there is none.

    Attributes:
        caption: how to read it.
        notes: which panels are missing, and why.
    """

    kind: Kind | Literal["best-of-n"]
    heading: str
    caption: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()


def charts(material: Material) -> list[Chart]:
    """All figures, in the order of the page."""
    return [chart(kind, material) for kind in get_args(Kind)]


def choice_chart(material: Material) -> Chart | None:
    """The curves of best-of-N, where there are results of it."""
    if not blocks(material.results):
        return None
    heading = "Right answers by the number of candidates"
    return Chart("best-of-n", heading, CAPTION, tuple(choice_panels(material.results)), left_out(material.results))


def chart(kind: Kind, material: Material) -> Chart:
    """One figure."""
    makers: dict[Kind, Callable[[Material], Chart]] = {
        "distribution": _distribution,
        "roc": _roc,
        "pr": _precision_recall,
        "reliability": _reliability,
        "position": _position,
        "cost": _cost,
    }
    return makers[kind](material)


# --- what is there to draw ------------------------------------------------------------------------------------------


def _rewarded(material: Material) -> Iterator[tuple[Run, Steps]]:
    """Each run with its annotated steps; with all its steps, as if nobody had, where quality cannot be measured."""
    for run in material.runs:
        if material.judged:
            cases = material.cases(run)
        else:
            rewards = [np.array(record.rewards, np.float64) for record in run.records.values()]
            cases = [JudgedTrajectory(each, np.full(len(each), -1)) for each in rewards]
        steps = steps_of(cases)
        if material.judged:
            keep = steps.labels >= 0
            steps = Steps(steps.rewards[keep], steps.labels[keep], steps.positions[keep])
        if len(steps.rewards):
            yield run, steps


def _why_no_labels(material: Material, *, both: bool) -> str | None:
    """Why the rewards cannot be held against what people say; ``both``: steps of both kinds are needed."""
    if not material.judged:
        return "There is no trajectory that every run rewarded and people annotated."
    labels = steps_of(material.cases(None)).labels
    if both and not (labels == 0).any():
        return "People found no wrong step in these trajectories, so there is nothing to find."
    if both and not (labels == 1).any():
        return "People found no right step in these trajectories, so there is nothing to tell wrong ones from."
    return None


# --- distribution ---------------------------------------------------------------------------------------------------

_KINDS = ((1, 1, RIGHT, "right steps"), (0, -1, WRONG, "wrong steps"), (-1, 1, MUTED, "steps"))


def _distribution(material: Material) -> Chart:
    panels = [
        Panel(run.name, _distribution_label(run, steps), partial(_draw_distribution, steps))
        for run, steps in _rewarded(material)
    ]
    caption = (
        "Right steps grow upward, wrong steps downward; dotted lines are medians. The better a run tells them apart, "
        "the farther the two lie from each other. The outermost bars hold what lies beyond them."
    )
    if (note := _why_no_labels(material, both=False)) is not None:
        caption = f"All rewards: {note[0].lower()}{note[1:]} The outermost bars hold what lies beyond them."
    return Chart("distribution", "Rewards of right and of wrong steps", caption, tuple(panels), _no_rewards(panels))


def _no_rewards(panels: list[Panel]) -> tuple[str, ...]:
    return () if panels else ("No run has rewards.",)


def _distribution_label(run: Run, steps: Steps) -> str:
    parts = []
    for label, _, _, name in _KINDS:
        kind = steps.rewards[steps.labels == label]
        if len(kind):
            parts.append(f"{len(kind)} {name} with median {np.median(kind):.3g}")
    return f"Histogram of the rewards of {run.name}: {', '.join(parts)}."


def _draw_distribution(steps: Steps, ax: Axes) -> None:
    edges, shares = histogram(steps)
    for label, side, color, name in _KINDS:
        if label in shares:
            kind = steps.rewards[steps.labels == label]
            ax.stairs(side * shares[label], edges, fill=True, color=color, alpha=0.75, linewidth=0)
            median = float(np.clip(np.median(kind), edges[0], edges[-1]))
            ax.plot([median] * 2, [0, side * 1.08 * shares[label].max()], color=color, linestyle=DASHES[2])
            words = f"{len(kind):,} {name}"
            ax.text(0.015, 0.99 if side > 0 else 0.01, words, transform=ax.transAxes, color=color, weight="bold",
                    va="top" if side > 0 else "bottom")  # fmt: skip
    top = 1.3 * max(share.max() for share in shares.values())
    ax.set_ylim(-top if 0 in shares else 0, top)
    ax.axhline(0, color=MUTED, linewidth=0.7)
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
    few_marks(ax.xaxis)
    ax.set_xlabel("reward")
    ax.set_ylabel("share of the steps")


# --- what a threshold finds -----------------------------------------------------------------------------------------


def _roc(material: Material) -> Chart:
    caption = (
        "Go through all thresholds: how many wrong steps are found (up), at the price of how many right steps called "
        "wrong (right). Chance is the diagonal. The outcome knows nothing of steps and still gets far, so only what "
        "lies above its line says anything about steps."
    )
    return _threshold_chart("roc", "Finding wrong steps: ROC curves", caption, material)


def _precision_recall(material: Material) -> Chart:
    caption = (
        "The positive class is the wrong step, and a low reward means wrong. Of the steps called wrong, how many are "
        "(up), when so many of the wrong ones are found (right). Guessing is the dotted line: the share of wrong steps."
    )
    return _threshold_chart("pr", "Finding wrong steps: precision and recall", caption, material)


def _threshold_chart(kind: Literal["roc", "pr"], heading: str, caption: str, material: Material) -> Chart:
    if (why := _why_no_labels(material, both=True)) is not None:
        return Chart(kind, heading, caption, (), (why,))
    same = [run.name for run in material.runs if run.constant]
    notes = tuple(f"{name} gives every step the same reward, so it finds as much as chance does." for name in same)
    return Chart(kind, heading, caption, (threshold_panel(kind, heading, material),), notes)


# --- reliability ----------------------------------------------------------------------------------------------------


def _reliability(material: Material) -> Chart:
    heading = "Do rewards mean what they say? Reliability"
    caption = (
        "Where rewards lie in [0, 1] they can be read as the probability that a step is right. Each dot is the steps "
        "with about the same reward; its size is their number. On the diagonal, of the steps that get 0.7, 70 % are "
        "right."
    )
    if (why := _why_no_labels(material, both=False)) is not None:
        return Chart("reliability", heading, caption, (), (why,))
    panels, notes = [], []
    for run in material.runs:
        if run.low < 0 or run.high > 1:
            reach = f"{run.low:.3g} to {run.high:.3g}".replace("-", "\N{MINUS SIGN}")
            notes.append(f"{run.name}: its rewards reach from {reach}, so they are no probabilities.")
        else:
            bins = reliability(material.cases(run))
            panels.append(Panel(run.name, _reliability_label(run, bins), partial(_draw_reliability, bins)))
    return Chart("reliability", heading, caption, tuple(panels), tuple(notes))


def _reliability_label(run: Run, bins: Reliability) -> str:
    dots = "; ".join(f"{p:.2f}: {o:.0%}" for p, o in zip(bins.predicted, bins.observed, strict=True))
    return f"Reliability of {run.name}. Share of right steps by mean reward: {dots}."


def _draw_reliability(bins: Reliability, ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=DASHES[2], linewidth=1)
    ax.plot(bins.predicted, bins.observed, color=RIGHT, linewidth=1.2)
    ax.scatter(bins.predicted, bins.observed, s=18 + 150 * bins.counts / bins.counts.sum(), color=RIGHT, zorder=3,
               clip_on=False, linewidths=0)  # fmt: skip
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("reward")
    ax.set_ylabel("right steps")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


# --- position -------------------------------------------------------------------------------------------------------


def _position(material: Material) -> Chart:
    caption = (
        f"Mean reward of a trajectory's first, second... step (the first {LAST_POSITION}), with its standard error. "
        "Where rewards fall with position by themselves, late steps look wrong that are not."
    )
    panels = [
        Panel(run.name, f"Mean reward of {run.name} by step position.", partial(_draw_position, steps), lines=1)
        for run, steps in _rewarded(material)
    ]
    return Chart("position", "Rewards by position", caption, tuple(panels), _no_rewards(panels))


def _draw_position(steps: Steps, ax: Axes) -> None:
    for label, _, color, name in _KINDS:
        line = by_position(steps, label)
        if len(line.positions):
            look = {"marker": "o" if label else "X", "linestyle": DASHES[0] if label else DASHES[1], "markersize": 5}
            ax.errorbar(line.positions, line.means, line.errors, color=color, label=name, elinewidth=1, **look)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    few_marks(ax.yaxis)
    ax.set_xlabel("position of the step")
    ax.set_ylabel("mean reward")
    ax.margins(y=0.15)
    legend_below(ax, 3)


# --- cost -----------------------------------------------------------------------------------------------------------


def _cost(material: Material) -> Chart:
    heading = "What quality costs"
    caption = (
        "First-error F1 with its 95 % interval (up), against the seconds that a trajectory took (right, each mark ten "
        "times the one before). The shaded band is what the better baseline gives, for nothing."
    )
    if (why := _why_no_labels(material, both=False)) is not None:
        return Chart("cost", heading, caption, (), (why,))
    panel = cost_panel(material)
    notes = () if panel else ("First-error F1 needs trajectories with an error and trajectories without one.",)
    return Chart("cost", heading, caption, (panel,) if panel else (), notes)
