"""What the verbs that take long share: how they are stopped, and what they say in the end."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from cpmi.cli.app import print_json
from cpmi.errors import CpmiError

if TYPE_CHECKING:
    from types import FrameType

    from cpmi.labeling import LabelJob
    from cpmi.runs import Progress


def run_job(job: LabelJob, doing: str, done: str, *, as_json: bool) -> None:
    """Do a job with its progress on display, and print what came of it.

    Args:
        doing, done: the verb, for the display and for the summary.

    Raises:
        CpmiError: not one trajectory could be rewarded.
    """
    from cpmi.display import progress_display
    from cpmi.labeling import label

    stop_like_ctrl_c()
    try:
        with progress_display(doing) as update:
            progress = label(job, update)
    except KeyboardInterrupt:
        output = job.output
        kept = f"; {output} keeps what is {done}, and the same command goes on there" if output.exists() else ""
        typer.echo(f"\nstopped{kept}", err=True)
        raise typer.Exit(130) from None
    _print_summary(progress, job.output, done, as_json=as_json)
    if progress.done and progress.failed + progress.failed_before == progress.done:
        raise CpmiError(f"no trajectory could be {done}")


def stop_like_ctrl_c() -> None:
    """Take a polite kill as Ctrl-C, so that what is open is closed."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt


def _print_summary(progress: Progress, output: Path, done: str, *, as_json: bool) -> None:
    if as_json:
        counts = {name: getattr(progress, name) for name in ("total", "before", "failed_before", "rewarded", "failed")}
        print_json(counts | {"errors": progress.errors, "cost": asdict(progress.cost), "output": str(output)})
        return
    rewarded = f"{progress.rewarded} {done}, {progress.failed} failed"
    before = f", {progress.before} already there" if progress.before else ""
    if progress.failed_before:
        before += f" ({progress.failed_before} of them failed; --retry-errors tries those again)"
    typer.echo(f"{rewarded}{before} of {progress.total} -> {output}")
    for error, count in progress.errors.most_common(5):
        typer.echo(f"  failed, {count}: {error}")
