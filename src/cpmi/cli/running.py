"""What the verbs that take long share: how they are stopped, and what they say in the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from cpmi.cli.app import print_json
from cpmi.errors import CpmiError

if TYPE_CHECKING:
    from types import FrameType

    from cpmi.labeling import LabelJob
    from cpmi.running import Progress


def run_job(job: LabelJob, doing: str, done: str, *, as_json: bool) -> None:
    """Do a job with its progress on display, and print what came of it.

    Args:
        doing, done: the verb, for the display and for the summary.

    Raises:
        CpmiError: not one trajectory could be rewarded.
    """
    from cpmi.display import progress_display
    from cpmi.labeling import label

    with stoppable(job.output, done), progress_display(doing) as update:
        progress = label(job, update)
    _print_summary(progress, job.output, done, as_json=as_json)
    refuse_nothing(progress, f"no trajectory could be {done}")


@contextmanager
def stoppable(output: Path, done: str) -> Iterator[None]:
    """Ctrl-C and a polite kill end what runs inside with exit status 130, and a line that says what is kept."""
    stop_like_ctrl_c()
    try:
        yield
    except KeyboardInterrupt:
        kept = f"; {output} keeps what is {done}, and the same command goes on there" if output.exists() else ""
        typer.echo(f"\nstopped{kept}", err=True)
        raise typer.Exit(130) from None


def refuse_nothing(progress: Progress, message: str) -> None:
    """An error where not one attempt went well.

    Raises:
        CpmiError: with the message.
    """
    if progress.done and progress.failed + progress.failed_before == progress.done:
        raise CpmiError(message)


def counts(progress: Progress) -> dict[str, Any]:
    """What a script wants to know of it."""
    names = ("total", "before", "failed_before", "rewarded", "failed")
    return {name: getattr(progress, name) for name in names} | {"errors": progress.errors}


def already_there(progress: Progress) -> str:
    """What earlier attempts did, to go behind the counts of this one."""
    before = f", {progress.before} already there" if progress.before else ""
    if progress.failed_before:
        before += f" ({progress.failed_before} of them failed; --retry-errors tries those again)"
    return before


def say_errors(progress: Progress) -> None:
    """The most frequent errors, a line each."""
    for error, count in progress.errors.most_common(5):
        typer.echo(f"  failed, {count}: {error}")


def stop_like_ctrl_c() -> None:
    """Take a polite kill as Ctrl-C, so that what is open is closed."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt


def _print_summary(progress: Progress, output: Path, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(counts(progress) | {"cost": asdict(progress.cost), "output": str(output)})
        return
    rewarded = f"{progress.rewarded} {done}, {progress.failed} failed"
    typer.echo(f"{rewarded}{already_there(progress)} of {progress.total} -> {output}")
    say_errors(progress)
