"""The figure of a training: its losses over the epochs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from cpmi.errors import InputError
from cpmi.report.drawing import MUTED, Panel, legend_below, run_look, short

_MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class _Training:
    """Losses by epoch, as (epoch, loss).

    Attributes:
        constant: the held-out loss of the best constant.
    """

    name: str
    loss: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...]
    constant: float | None


def training_panels(folders: Sequence[Path]) -> list[Panel]:
    """A panel for each reward model: the loss it was trained with, and that of the trajectories held out.

    Raises:
        InputError: a folder that ``cpmi train`` did not write.
    """
    trainings = [_read(folder) for folder in folders]
    titled = len(trainings) > 1
    return [
        Panel(short(each.name) if titled else "", _words(each), partial(_draw, each), lines=2 if each.held_out else 1)
        for each in trainings
    ]


def _read(folder: Path) -> _Training:
    file = folder / "training.json"
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["report"]
        history = report["history"]
        loss, held_out = (
            tuple((float(row["epoch"]), float(row[name])) for row in history if name in row)
            for name in ("loss", "eval_loss")
        )
        constant = report["constant_loss"]
        constant = float(constant) if held_out or constant is not None else None
        return _Training(folder.resolve().name, loss, held_out, constant)
    except OSError as error:
        raise InputError(f"{folder}: no reward model of cpmi train (no readable training.json)") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file}: not as cpmi train writes it ({error!r})") from error


def _words(training: _Training) -> str:
    parts = [f"Losses of {training.name} over its epochs."]
    if training.loss:
        parts.append(f"In training from {training.loss[0][1]:.3f} to {training.loss[-1][1]:.3f}.")
    if training.held_out:
        best = min(loss for _, loss in training.held_out)
        parts.append(f"Held out, best {best:.3f}; a constant {training.constant:.3f}.")
    return " ".join(parts)


def _draw(training: _Training, ax: Axes) -> None:
    thin = training.loss[:: max(1, len(training.loss) // _MOST_POINTS)]
    if thin:
        ax.plot(*zip(*thin, strict=True), label="training", alpha=0.8, **run_look(0) | {"linewidth": 1.0})
    if training.held_out:
        ax.plot(*zip(*training.held_out, strict=True), label="held out", marker="o", markersize=3.5, **run_look(3))
    if training.constant is not None:
        ax.axhline(training.constant, color=MUTED, linewidth=0.9, linestyle=":", label="held out, a constant")
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    legend_below(ax, columns=2)
