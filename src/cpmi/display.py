"""What the terminal shows: progress of a run, and trajectories with their steps colored by reward."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from cpmi.records import StepRewards, Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cpmi.running import Progress

_SECONDS_BETWEEN_LINES = 10.0


# --- progress -------------------------------------------------------------------------------------------------------


@contextmanager
def progress_display(title: str, things: str = "trajectories") -> Iterator[Callable[[Progress], None]]:
    """A progress bar on a terminal's standard error, a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(title, things) as update:
            yield update
    else:
        yield _lines(title, things)


@contextmanager
def _bar(title: str, things: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"))
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, rates="")
        start = 0.0

        def update(progress: Progress) -> None:
            nonlocal start
            start = start or time.monotonic()  # the first call comes when the model is loaded
            rates = _rates(progress, time.monotonic() - start, things)
            bar.update(task, total=progress.total, completed=progress.done, rates=rates)

        yield update


def _lines(title: str, things: str) -> Callable[[Progress], None]:
    start = last = 0.0

    def update(progress: Progress) -> None:
        nonlocal start, last
        now = time.monotonic()
        if not start:  # the first call comes when the model is loaded
            start = last = now
        elif now - last >= _SECONDS_BETWEEN_LINES or progress.done == progress.total:
            last = now
            line = f"{title}: {progress.done}/{progress.total}, {_rates(progress, now - start, things)}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal's module

    return update


def _rates(progress: Progress, seconds: float, things: str) -> str:
    """Speed of this attempt, and the time left at that speed."""
    here = progress.rewarded + progress.failed
    tokens = progress.cost.tokens_scored + progress.cost.tokens_generated
    rollouts = f"{progress.rollouts} rollouts" if progress.rollouts else ""
    if not here:
        return rollouts
    left = (progress.total - progress.done) * seconds / here
    failed = f", {progress.failed} failed" if progress.failed else ""
    speed = f"{here / seconds:.2f} {things}/s, {tokens / seconds:,.0f} tokens/s, {_duration(left)} left{failed}"
    return f"{rollouts}, {speed}" if rollouts else speed


@contextmanager
def training_display(*, shown: bool = True) -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """How far a training is: a bar on a terminal's standard error, a line every ten seconds elsewhere.

    Args:
        shown: False where another process of the same training shows it.
    """
    if not shown:
        yield lambda *_: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            tasks: dict[str, Any] = {}

            def update(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
                task = tasks.get(phase)
                if task is None:
                    task = tasks[phase] = bar.add_task(phase, total=total, figures="")
                bar.update(task, completed=done, total=total, figures=_figures(figures))

            yield update
    else:
        last = time.monotonic()

        def line(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                print(f"{phase}: {done}/{total}, {_figures(figures)}", file=sys.stderr, flush=True)  # noqa: T201

        yield line


def _figures(figures: Mapping[str, float]) -> str:
    names = {"loss": "loss", "eval_loss": "held-out loss"}
    shown = [f"{name} {figures[key]:.4f}" for key, name in names.items() if key in figures]
    if "tokens" in figures:
        shown.append(f"{figures['tokens']:,.0f} tokens")
    return ", ".join(shown)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# --- trajectories ---------------------------------------------------------------------------------------------------


class ColorScale(NamedTuple):
    """Which reward gets no color (as in the report: 0.5 for rewards in [0, 1], else 0), and how far from it the full
    one begins."""

    center: float
    size: float


def show_trajectories(pairs: Iterable[tuple[Trajectory, StepRewards]], scale: ColorScale, console: Console) -> None:
    """Print each trajectory: its steps from red (the lowest rewards) over plain to green, human labels beside them.

    Args:
        scale: see ``color_scale``.
    """
    from rich.padding import Padding

    for trajectory, record in pairs:
        console.print(_text(trajectory.id, "bold"))
        console.print(Padding(_text(trajectory.question.strip()), (0, 0, 0, 2)))
        console.print(Padding(_answers(trajectory, record), (0, 0, 0, 2)))
        if record.error is not None:
            console.print(Padding(_text(f"not labeled: {record.error}", "red"), (0, 0, 0, 2)))
        console.print(_steps(trajectory, record, scale))
        console.print()


def color_scale(records: Iterable[StepRewards]) -> ColorScale:
    """Nine in ten rewards are no farther from the center than its size: one outlier does not bleach the rest."""
    rewards = [reward for record in records for reward in record.rewards]
    center = 0.5 if rewards and min(rewards) >= 0 and max(rewards) <= 1 else 0.0
    sizes = sorted(abs(reward - center) for reward in rewards)
    return ColorScale(center, sizes[int(0.9 * (len(sizes) - 1))] if sizes else 1.0)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style)


def _answers(trajectory: Trajectory, record: StepRewards) -> Text:
    line = _text(f"right answer: {trajectory.gold_answer or 'unknown'}", "cyan")
    if trajectory.final_answer is not None:
        line.append(f"   this solution's: {trajectory.final_answer}")
    answers = record.details.get("answers")
    if isinstance(answers, list) and len(answers) > 1:
        line.append("   measured against: " + ", ".join(str(answer) for answer in answers[1:]))
    if "contrast" in record.details:
        line.append(f"   contrast: {record.details['contrast']}", "yellow")
    return line


def _steps(trajectory: Trajectory, record: StepRewards, scale: ColorScale) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    for justify in ("right", "left", "right", "left"):
        table.add_column(justify=justify)
    labels = trajectory.step_labels or (None,) * len(trajectory.steps)
    rewards = record.rewards or (None,) * len(trajectory.steps)
    for i, (step, label, reward) in enumerate(zip(trajectory.steps, labels, rewards, strict=True)):
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: (" ", "")}[label]
        color = _color(reward, scale)
        number = _text("" if reward is None else f"{reward:+.3f}", color)
        table.add_row(_text(f"{i:>4}"), _text(mark, style), number, _text(step.strip(), color))
    return table


def _color(reward: float | None, scale: ColorScale) -> str:
    """From red over the terminal's own color to green; a reward near the center keeps the terminal's color."""
    if reward is None or scale.size <= 0:
        return ""
    strength = max(-1.0, min(1.0, (reward - scale.center) / scale.size))
    if abs(strength) < 0.1:
        return ""
    shade = round(90 + 130 * abs(strength))
    return f"rgb({shade},60,60)" if strength < 0 else f"rgb(40,{shade},80)"


# --- tables ---------------------------------------------------------------------------------------------------------


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; as Markdown where the output is no terminal, since it is then pasted somewhere."""
    from rich.console import Console
    from rich.table import Table

    if sys.stdout.isatty():
        shown = Table(*columns)
        for row in rows:
            shown.add_row(*row)
        Console(highlight=False).print(shown)
        return
    for line in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(line)} |")  # noqa: T201
    print()  # noqa: T201


def show_notes(notes: Iterable[str]) -> None:
    """Print what a reader of the tables must know."""
    for note in notes:
        print(f"* {note}")  # noqa: T201
