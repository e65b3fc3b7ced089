"""``cpmi label`` as a function: one job, from a file of trajectories to a run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.cpmi import CPMI, CPMISettings
from cpmi.labelers.negatives import SiblingAnswers
from cpmi.models import ModelSettings, open_model
from cpmi.records import Trajectory, read_trajectories
from cpmi.runs import Part, Progress, RunDirectory, Shard, attempt, run_part

if TYPE_CHECKING:
    from cpmi.protocols import Engine, StepRewarder


@dataclass(frozen=True, slots=True)
class LabelJob:
    """What to label, how, and where to put it.

    Attributes:
        limit: only the first so many trajectories of the file; the run can go on later with more.
        batch_size: trajectories handed to the engine at a time; what a kill loses at most.
        retry_errors: try trajectories again that ended in an error.
    """

    trajectories: Path
    output: Path
    model: ModelSettings
    method: str = "cpmi"
    settings: CPMISettings = field(default_factory=CPMISettings)
    shard: Shard = Shard()
    limit: int | None = None
    batch_size: int = 8
    retry_errors: bool = False


@dataclass(slots=True)
class InputScan:
    """One pass over the input before anything is spent: every line is checked, the shard's share counted.

    Attributes:
        sha256: of the file's bytes.
        trajectories: in the file.
        total: of these, how many are in the shard, within the limit.
    """

    sha256: str
    siblings: SiblingAnswers
    trajectories: int = 0
    total: int = 0

    @classmethod
    def of(cls, job: LabelJob) -> InputScan:
        if not job.trajectories.is_file():
            what = "is a folder, not a file" if job.trajectories.is_dir() else "no such file"
            raise InputError(f"{job.trajectories}: {what}")
        with job.trajectories.open("rb") as file:
            scan = cls(hashlib.file_digest(file, "sha256").hexdigest(), SiblingAnswers())
        scan.siblings = SiblingAnswers.collect(scan._count(job))
        if not scan.trajectories:
            raise InputError(f"{job.trajectories}: holds no trajectory")
        return scan

    def _count(self, job: LabelJob) -> Iterator[Trajectory]:
        for trajectory in read_trajectories(job.trajectories):
            if job.limit is None or self.trajectories < job.limit:
                self.total += job.shard.holds(trajectory.id)
            self.trajectories += 1
            yield trajectory


def label(job: LabelJob, on_progress: Callable[[Progress], None] = lambda _: None) -> Progress:
    """Do the job, or what is left of it.

    Raises:
        InputError: something in the input, the settings or the output folder is wrong; nothing was spent.
        CpmiError: the run cannot go on (a full disk); what is labeled is kept.
    """
    if job.method not in METHODS:
        raise InputError(f"method {job.method!r} is unknown; use one of {', '.join(METHODS)}")
    scan = InputScan.of(job)
    settings = _manifest(job, scan)
    if (done := _done_before(job, scan, settings)) is not None:
        return done
    model = open_model(job.model)
    with Grader() as grader:
        rewarder = METHODS[job.method](job, model, scan, grader)
        run = RunDirectory.create_or_resume(job.output, settings | rewarder.describe())
        with Part(run, job.shard, retry_errors=job.retry_errors) as part, attempt(run, job.shard) as outcome:
            progress = run_part(
                rewarder,
                islice(read_trajectories(job.trajectories), job.limit),
                part,
                job.shard,
                scan.total,
                batch_size=job.batch_size,
                complete=job.limit is None or job.limit >= scan.trajectories,
                on_progress=on_progress,
            )
            outcome.update(rewarded=progress.rewarded, failed=progress.failed, cost=asdict(progress.cost))
    return progress


def _done_before(job: LabelJob, scan: InputScan, settings: dict[str, Any]) -> Progress | None:
    """What there is to say if nothing is left to do; refuses a wrong folder before a model is loaded for nothing."""
    if not (job.output / "manifest.json").exists():
        RunDirectory.refuse_foreign(job.output)
        return None
    run = RunDirectory.open(job.output)
    run.require_same(settings)
    with Part(run, job.shard) as part:
        # A line may have been taken out by hand, so that the mark alone does not count.
        if part.is_done and len(part.ids) >= scan.total and not (job.retry_errors and part.errors):
            return Progress(scan.total, before=scan.total, failed_before=part.errors)
    return None


def _manifest(job: LabelJob, scan: InputScan) -> dict[str, Any]:
    """What is known of the run before the model is loaded; ``StepRewarder.describe`` adds the rest."""
    return {
        "method": job.method,
        "input": {
            "path": str(job.trajectories.resolve()),
            "sha256": scan.sha256,
            "trajectories": scan.trajectories,
        },
        "settings": asdict(job.settings),
        "shards": job.shard.count,
    }


def _cpmi(job: LabelJob, model: Engine, scan: InputScan, grader: Grader) -> StepRewarder:
    sampled = job.settings.negatives.uses("sampled")
    return CPMI(model, job.settings, grader=grader, siblings=scan.siblings, sampler=model if sampled else None)


METHODS: dict[str, Callable[[LabelJob, Engine, InputScan, Grader], StepRewarder]] = {"cpmi": _cpmi}
