"""``cpmi label`` as a function: one job, from a file of trajectories to a run directory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.cpmi import CPMI, CPMISettings
from cpmi.labelers.likelihood import Likelihood, LikelihoodSettings
from cpmi.labelers.monte_carlo import MonteCarlo, MonteCarloSettings
from cpmi.labelers.negatives import SiblingAnswers
from cpmi.labelers.outcome import Outcome
from cpmi.labelers.pav import PAV, PAVSettings
from cpmi.labelers.posterior import FirstErrorPosterior, PosteriorSettings
from cpmi.labelers.rollouts import GRADING_THREADS
from cpmi.models import ModelSettings, open_model
from cpmi.parts import Part
from cpmi.prm import open_prm
from cpmi.ray_runs import Plan, RayRun, RaySettings
from cpmi.records import Trajectory, read_trajectories
from cpmi.rollout_file import RolloutFile, require_same_policy
from cpmi.running import Progress, run_part, write_part
from cpmi.runs import RunDirectory, Shard, attempt
from cpmi.storage import location

if TYPE_CHECKING:
    from cpmi.labelers.rollouts import RolloutStore
    from cpmi.protocols import Engine, Sampled, StepRewarder


@dataclass(frozen=True, slots=True)
class OutcomeSettings:
    """An outcome label has no settings."""


@dataclass(frozen=True, slots=True)
class PRMSettings:
    """Of a trained reward model: how one that was trained elsewhere is read, see ``cpmi.prm.families``."""

    family: str | None = None


MethodSettings = (
    CPMISettings
    | PosteriorSettings
    | MonteCarloSettings
    | PAVSettings
    | OutcomeSettings
    | LikelihoodSettings
    | PRMSettings
)


@dataclass(frozen=True, slots=True)
class LabelJob:
    """What to label, how, and where to put it.

    Attributes:
        model: the labeling model, the policy, or the reward model; outcome labels need none.
        settings: of the method, and which method it is.
        prover: for ``PAVSettings`` whose prover is another model.
        rollouts_from: a run of the same policy over the same trajectories, whose rollouts are taken instead of sampled.
        limit: only the first so many trajectories of the file; the run can go on later with more.
        batch_size: trajectories handed to the engine at a time, and then written; None: what suits method and engine.
        retry_errors: try trajectories again that ended in an error.
        features: of a reward model with a frozen decoder: a folder to take its states from and to keep them in.
        ray: compute on a Ray cluster; None: in this process.
    """

    trajectories: Path
    output: Path
    model: ModelSettings | None = None
    settings: MethodSettings = field(default_factory=PosteriorSettings)
    prover: ModelSettings | None = None
    rollouts_from: Path | None = None
    shard: Shard = Shard()
    limit: int | None = None
    batch_size: int | None = None
    retry_errors: bool = False
    features: Path | None = None
    ray: RaySettings | None = None

    def __post_init__(self) -> None:
        for name in ("trajectories", "output", "rollouts_from"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, location(path))

    @property
    def method(self) -> str:
        return next(name for name, method in METHODS.items() if isinstance(self.settings, method.settings))

    def trajectories_at_a_time(self) -> int:
        """The batch size where none is asked for.

        An engine that batches continuously runs dry at the end of each batch; rollouts are kept as they come, so that a
        large one risks nothing. Of a posterior, or of CPMI, a kill would lose the whole batch.
        """
        if self.batch_size is not None:
            return self.batch_size
        if isinstance(self.settings, PRMSettings):
            return 256  # cheap to lose; what begins alike is read once, if it is read together
        if isinstance(self.settings, LikelihoodSettings):
            return 64  # the candidates of a question share its tokens, if they are scored together
        remote = self.model is not None and self.model.name.startswith(("vllm:", "openai:"))
        return 64 if remote and METHODS[self.method].rolls_out else 8


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
    scan = InputScan.of(job)
    settings = _manifest(job, scan)
    if (done := _done_before(job, scan, settings)) is not None:
        return done
    source = None if job.rollouts_from is None else RunDirectory.open(job.rollouts_from)
    watch = _Watch(on_progress)
    rollouts = _Rollouts(watch.rollouts)
    with ExitStack() as opened:
        work = (_Here if job.ray is None else _OnRay)(job, scan, rollouts, opened)
        settings |= work.describe()
        if source is not None:
            require_same_policy(source, settings)
        run = RunDirectory.create_or_resume(job.output, settings)
        part = opened.enter_context(Part(run, job.shard, retry_errors=job.retry_errors))
        outcome = opened.enter_context(attempt(run, job.shard))
        opened.enter_context(rollouts.opened(run, job.shard, part.ids, job.rollouts_from))
        complete = job.limit is None or job.limit >= scan.trajectories
        progress = work.do(part, watch.progress, complete=complete)
        outcome.update(rewarded=progress.rewarded, failed=progress.failed, cost=asdict(progress.cost))
    return progress


class _Here:
    """The work, done in this process."""

    def __init__(self, job: LabelJob, scan: InputScan, rollouts: RolloutFile, opened: ExitStack) -> None:
        self._job, self._scan = job, scan
        self._rewarder = _open_rewarder(job, scan.siblings, rollouts, opened)

    def describe(self) -> dict[str, Any]:
        return self._rewarder.describe()

    def do(self, part: Part, on_progress: Callable[[Progress], None], *, complete: bool) -> Progress:
        return run_part(
            self._rewarder,
            islice(read_trajectories(self._job.trajectories), self._job.limit),
            part,
            self._job.shard,
            self._scan.total,
            batch_size=self._job.trajectories_at_a_time(),
            complete=complete,
            on_progress=on_progress,
        )


class _OnRay:
    """The work, done by actors on a Ray cluster, each with an engine of its own."""

    def __init__(self, job: LabelJob, scan: InputScan, rollouts: _Rollouts, opened: ExitStack) -> None:
        assert job.ray is not None  # noqa: S101
        self._job, self._scan, self._rollouts = job, scan, rollouts
        self._labeled, failed = _labeled_before(job)
        self._plan = Plan.of(
            job.trajectories,
            job.trajectories_at_a_time(),
            holds=job.shard.holds,
            limit=job.limit,
            labeled=self._labeled,
            failed=failed,
        )
        uses_siblings = isinstance(job.settings, CPMISettings | PosteriorSettings) and job.settings.negatives.uses(
            "sibling"
        )
        siblings = scan.siblings if uses_siblings else SiblingAnswers()
        opener = functools.partial(_open_rewarder, job)
        run = RayRun(job.ray, self._plan, opener, siblings, computes=_computes(job))
        self._run = opened.enter_context(run)

    def describe(self) -> dict[str, Any]:
        return self._run.describe()

    def do(self, part: Part, on_progress: Callable[[Progress], None], *, complete: bool) -> Progress:
        if part.ids != self._labeled:
            raise InputError(f"{part.path}: another process has written this part just now; run the same command again")
        progress = Progress(self._scan.total, before=self._plan.before, failed_before=self._plan.failed_before)
        rolls_out = METHODS[self._job.method].rolls_out
        self._run.begin(self._rollouts.known(), self._rollouts.put if rolls_out else None)
        write_part(self._run.batches(), part, progress, complete=complete, on_progress=on_progress)
        return progress


def _computes(job: LabelJob) -> bool:
    """Whether the engine would use a GPU of its machine."""
    return any(
        model is not None and model.device != "cpu" and not model.name.startswith(("openai:", "toy:"))
        for model in (job.model, job.prover)
    )


def _labeled_before(job: LabelJob) -> tuple[set[str], set[str]]:
    """The ids that are there and are to stay, and of these the failed ones."""
    if not (job.output / "manifest.json").exists():
        return set(), set()
    with Part(RunDirectory.open(job.output), job.shard) as part:
        return (part.ids - part.failed, set()) if job.retry_errors else (part.ids, part.failed)


class _Rollouts(RolloutFile):
    """Rollouts that can be sent to actors."""

    def known(self) -> list[tuple[tuple[str, str, int], Sampled]]:
        return list(self._known.items())


class _Watch:
    """Passes progress on, with the rollouts that come in between."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._latest: Progress | None = None

    def progress(self, progress: Progress) -> None:
        self._latest = progress
        self._on_progress(progress)

    def rollouts(self, count: int) -> None:
        if self._latest is not None:
            self._latest.rollouts += count
            self._on_progress(self._latest)


def _done_before(job: LabelJob, scan: InputScan, settings: dict[str, Any]) -> Progress | None:
    """What there is to say if nothing is left to do; refuses a wrong folder before a model is loaded for nothing."""
    if not (job.output / "manifest.json").exists():
        RunDirectory.refuse_foreign(job.output)
        return None
    run = RunDirectory.open(job.output)
    run.require_same(settings)
    with Part(run, job.shard) as part:
        # A line may have been taken out by hand, so that the mark alone does not count.
        if part.is_done and len(part.ids) >= scan.total and not (job.retry_errors and part.failed):
            wanted = islice(read_trajectories(job.trajectories), job.limit) if part.failed else ()
            failed = sum(trajectory.id in part.failed for trajectory in wanted)
            return Progress(scan.total, before=scan.total, failed_before=failed)
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


# --- methods --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tools:
    """What a method may work with; engines are open only where it needs them."""

    siblings: SiblingAnswers
    grader: Grader
    rollouts: RolloutStore
    engine: Engine | None
    prover: Engine | None
    opened: ExitStack

    def model(self) -> Engine:
        if self.engine is None:
            raise InputError("this method needs a model; name one with --model")
        return self.engine


def _open_rewarder(job: LabelJob, siblings: SiblingAnswers, rollouts: RolloutStore, opened: ExitStack) -> StepRewarder:
    """The method of a job with its engine."""

    def engine(settings: ModelSettings | None) -> Engine | None:
        if settings is None:
            return None
        model = open_model(settings)
        opened.callback(model.close)
        return model

    grader = opened.enter_context(Grader(workers=GRADING_THREADS if METHODS[job.method].rolls_out else 1))
    scores_itself = isinstance(job.settings, PRMSettings)
    labeler = None if scores_itself else engine(job.model)
    tools = _Tools(siblings, grader, rollouts, labeler, engine(job.prover), opened)
    return METHODS[job.method].open(job, tools)


def _cpmi(job: LabelJob, tools: _Tools) -> StepRewarder:
    assert isinstance(job.settings, CPMISettings)  # noqa: S101 - METHODS pairs them
    sampler = tools.model() if job.settings.negatives.uses("sampled") else None
    return CPMI(tools.model(), job.settings, grader=tools.grader, siblings=tools.siblings, sampler=sampler)


def _posterior(job: LabelJob, tools: _Tools) -> StepRewarder:
    assert isinstance(job.settings, PosteriorSettings)  # noqa: S101
    sampler = tools.model() if job.settings.negatives.uses("sampled") else None
    return FirstErrorPosterior(
        tools.model(), job.settings, grader=tools.grader, siblings=tools.siblings, sampler=sampler
    )


def _mc(job: LabelJob, tools: _Tools) -> StepRewarder:
    assert isinstance(job.settings, MonteCarloSettings)  # noqa: S101
    return MonteCarlo(tools.model(), job.settings, grader=tools.grader, store=tools.rollouts)


def _pav(job: LabelJob, tools: _Tools) -> StepRewarder:
    assert isinstance(job.settings, PAVSettings)  # noqa: S101
    return PAV(tools.model(), job.settings, prover=tools.prover, grader=tools.grader, store=tools.rollouts)


def _outcome(job: LabelJob, tools: _Tools) -> StepRewarder:
    del job
    return Outcome(grader=tools.grader)


def _likelihood(job: LabelJob, tools: _Tools) -> StepRewarder:
    assert isinstance(job.settings, LikelihoodSettings)  # noqa: S101
    return Likelihood(tools.model(), job.settings)


def _prm(job: LabelJob, tools: _Tools) -> StepRewarder:
    assert isinstance(job.settings, PRMSettings)  # noqa: S101
    if job.model is None:
        raise InputError("name a reward model")
    prm = open_prm(job.model, job.settings.family, job.features)
    tools.opened.callback(prm.close)
    return prm


@dataclass(frozen=True, slots=True)
class _Method:
    settings: type
    open: Callable[[LabelJob, _Tools], StepRewarder]
    rolls_out: bool = False


METHODS: dict[str, _Method] = {
    "posterior": _Method(PosteriorSettings, _posterior),
    "cpmi": _Method(CPMISettings, _cpmi),
    "mc": _Method(MonteCarloSettings, _mc, rolls_out=True),
    "pav": _Method(PAVSettings, _pav, rolls_out=True),
    "outcome": _Method(OutcomeSettings, _outcome),
    "likelihood": _Method(LikelihoodSettings, _likelihood),
    "prm": _Method(PRMSettings, _prm),
}
