"""``cpmi report`` and ``cpmi plot`` as functions: can these step rewards be trusted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cpmi.errors import InputError, require
from cpmi.export import refuse_overwriting
from cpmi.grader import Grader
from cpmi.records import write_whole
from cpmi.report.material import load
from cpmi.results import read_results

if TYPE_CHECKING:
    from cpmi.report.figures import Kind

__all__ = ["Report", "plot", "write_report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What was written.

    Attributes:
        output: the page.
        trajectories: how many it shows.
        runs: their names.
        notes: what is not as it should be, a sentence each.
    """

    output: Path
    trajectories: int
    runs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write_report(
    arguments: Sequence[Path],
    output: Path,
    trajectories: Path | None = None,
    *,
    title: str | None = None,
    grader: Grader,
    count: int = 1000,
    seed: int = 0,
) -> Report:
    """Write a page about runs, files of step rewards and results of evaluations.

    Args:
        arguments: run directories, files of step rewards, result files (``.json``), in any order.
        output: a ``.html`` file; its folder is made.
        trajectories: the labeled trajectories, if they are not where the run directories found them.
        count: resamples of the bootstrap.

    Raises:
        InputError: jinja2 or matplotlib is missing, an output that cannot be, input that cannot be read or compared.
        CpmiError: the page cannot be written.
    """
    require("jinja2", "report")
    require("matplotlib", "report")
    from cpmi.report.page import render

    if output.suffix not in (".html", ".htm"):
        raise InputError(f"{output}: the name of a report must end in .html")
    refuse_overwriting(output, arguments, trajectories)
    material = load(arguments, trajectories, grader=grader, count=count, seed=seed)
    write_whole(output, render(material, title).encode())
    names = tuple(run.name for run in material.runs)
    return Report(output, len(material.trajectories), names, material.notes)


def plot(
    kind: Kind | Literal["training", "best-of-n"],
    runs: Sequence[Path],
    output: Path,
    trajectories: Path | None = None,
    *,
    grader: Grader,
    count: int = 1000,
    seed: int = 0,
) -> tuple[str, ...]:
    """Write one figure of the page as ``.png``, ``.svg`` or ``.pdf``; return what a reader of it must know.

    Args:
        kind: of the page's figures; ``training``, for which ``runs`` are reward models; or ``best-of-n``, for which
            they are results of ``cpmi evaluate``.

    Raises:
        InputError: matplotlib is missing, there is nothing to draw, or as ``write_report``.
        CpmiError: the figure cannot be written.
    """
    require("matplotlib", "report")
    from cpmi.report.drawing import FORMATS, image
    from cpmi.report.figures import chart

    if output.suffix not in FORMATS:
        raise InputError(f"{output}: the name of a figure must end in .png, .svg or .pdf")
    if kind == "training":
        from cpmi.report.training_figure import training_panels

        write_whole(output, image(training_panels(runs), FORMATS[output.suffix]))
        return ()
    refuse_overwriting(output, runs, trajectories)
    if kind == "best-of-n":
        from cpmi.report.choice_figure import choice_panels, left_out

        results = [result for run in runs for result in read_results(run)]
        write_whole(output, image(choice_panels(results), FORMATS[output.suffix]))
        return left_out(results)
    material = load(runs, trajectories, grader=grader, count=count, seed=seed)
    if not material.runs:
        raise InputError("name at least one run; a figure is not made from results")
    drawn = chart(kind, material)
    if not drawn.panels:
        raise InputError(f"nothing to draw: {' '.join(drawn.notes)}")
    write_whole(output, image(drawn.panels, FORMATS[output.suffix]))
    return (*drawn.notes, *material.notes)
