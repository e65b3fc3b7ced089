"""``cpmi solve`` as a function: from a file of questions to a file of candidate solutions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.answers import answer_in, arrived_at
from cpmi.asking import STEP_BY_STEP, Asking, prompt
from cpmi.errors import InputError
from cpmi.models import ModelSettings, open_model
from cpmi.prm import open_prm
from cpmi.protocols import Completion, Sampled, SamplingParams
from cpmi.records import Cost, StepRewards, Trajectory
from cpmi.running import Progress
from cpmi.runs import RunDirectory, attempt
from cpmi.search import Beam, Search, Searched, SearchSettings
from cpmi.solutions import QUESTION_ID, Attempt, SolutionFile, done_before, refuse_foreign, run_folder
from cpmi.sources import Tally
from cpmi.steps import split_steps
from cpmi.tasks import read_questions

if TYPE_CHECKING:
    from cpmi.protocols import Engine

SAMPLING = SamplingParams(max_tokens=2048, temperature=0.8)
_IN_FLIGHT = 512  # questions handed to an engine at a time


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Solutions sampled one beside the other.

    Attributes:
        n: solutions of each question.
        seed: decides them, on engines that take a seed per request.

    Raises:
        InputError: no solutions are asked for.
    """

    n: int = 8
    asking: Asking = STEP_BY_STEP
    sampling: SamplingParams = SAMPLING
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"the number of solutions must be 1 or more, not {self.n}")


@dataclass(frozen=True, slots=True)
class SolveJob:
    """What to solve, how, and where to put it.

    Attributes:
        questions: a file, or ``hub:NAME``; see ``tasks.read_questions``.
        output: the file of candidates, ``.jsonl``.
        model: what proposes solutions.
        task: how the questions are read.
        split: of a hub data set.
        settings: of sampling, or of a search.
        prm: for a search: the reward model that leads it, and its family where it was trained elsewhere.
        limit: only the first so many questions; the job can go on later with more.
        at_once: questions under way in a search.
        retry_errors: try questions again that ended in an error.
    """

    questions: str
    output: Path
    model: ModelSettings
    task: str = "questions"
    split: str | None = None
    settings: SampleSettings | SearchSettings = field(default_factory=SampleSettings)
    prm: ModelSettings | None = None
    prm_family: str | None = None
    limit: int | None = None
    at_once: int = 32
    retry_errors: bool = False


@dataclass(slots=True)
class Solved:
    """What came of a job.

    Attributes:
        progress: counts of questions.
        candidates, finished: of all questions that are done, also before this attempt.
        unfinished: questions without a finished solution; what there is of them is in the file.
        sampling, rewarding: what all of it cost.
        tally: of reading the questions.
    """

    progress: Progress
    candidates: int
    finished: int
    unfinished: int
    sampling: Cost
    rewarding: Cost
    tally: Tally


def solve(job: SolveJob, on_progress: Callable[[Progress], None] = lambda _: None) -> Solved:
    """Do the job, or what is left of it.

    Raises:
        InputError: something in the questions, the settings or the output is wrong; nothing was spent.
        CpmiError: it cannot go on (a full disk, an engine that is gone); what is done is kept.
    """
    if isinstance(job.settings, SearchSettings) and job.prm is None:
        raise InputError("a search needs a reward model; name one with --prm")
    refuse_foreign(job.output)
    tally = Tally()
    questions = list(read_questions(job.questions, job.task, split=job.split, tally=tally))
    if not questions:
        raise InputError(f"{job.questions}: holds no question; {'; '.join(tally.lines())}")
    settings = _manifest(job, questions)
    if run_folder(job.output).exists():  # refused before a model is loaded for nothing
        RunDirectory.open(run_folder(job.output)).require_same(settings)
    wanted = questions[: job.limit]
    with ExitStack() as opened:
        file, engine, rewarder = None, None, None
        if not _is_done(job, wanted):
            engine = open_model(job.model)
            opened.callback(engine.close)
            settings["engine"] = engine.describe()
            if job.prm is not None:
                rewarder = open_prm(job.prm, job.prm_family)
                opened.callback(rewarder.close)
                settings["prm"] = rewarder.describe()
        file = opened.enter_context(SolutionFile.opened(job.output, settings, retry_errors=job.retry_errors))
        progress = Progress(len(wanted))
        progress.before = sum(each.id in file.attempts for each in wanted)
        progress.failed_before = sum(_failed(file, each) for each in wanted)
        on_progress(progress)
        todo = [each for each in wanted if each.id not in file.attempts]
        if engine is not None and todo:
            outcome = opened.enter_context(attempt(file.run))
            work = _Work(job, file, progress, on_progress)
            if rewarder is not None and isinstance(job.settings, SearchSettings):
                search = Search(engine, rewarder, job.settings)
                search.run(todo, at_once=job.at_once, on_done=work.searched)
            else:
                work.sample(engine, todo)
            outcome.update(rewarded=progress.rewarded, failed=progress.failed, cost=asdict(progress.cost))
        file.put_in_order(each.id for each in questions)
        return _summary(file, progress, tally)


def _is_done(job: SolveJob, wanted: Sequence[Trajectory]) -> bool:
    done = done_before(job.output, retry_errors=job.retry_errors)
    return all(each.id in done for each in wanted)


def _failed(file: SolutionFile, question: Trajectory) -> bool:
    known = file.attempts.get(question.id)
    return known is not None and known.error is not None


def _manifest(job: SolveJob, questions: Sequence[Trajectory]) -> dict[str, Any]:
    """What is known before a model is loaded; what the engines say of themselves comes later."""
    digest = hashlib.sha256()
    for each in questions:
        digest.update(repr((each.id, each.question, each.gold_answer, each.choices)).encode())
    return {
        "method": "sample" if isinstance(job.settings, SampleSettings) else job.settings.method,
        "input": {"path": job.questions, "task": job.task, "sha256": digest.hexdigest(), "questions": len(questions)},
        "settings": asdict(job.settings),
    }


class _Work:
    """Turns what engines give into candidates, and writes them."""

    def __init__(
        self, job: SolveJob, file: SolutionFile, progress: Progress, on_progress: Callable[[Progress], None]
    ) -> None:
        self._job, self._file, self._progress, self._on_progress = job, file, progress, on_progress

    # --- sampled ----------------------------------------------------------------------------------------------------

    def sample(self, engine: Engine, todo: Sequence[Trajectory]) -> None:
        settings = self._job.settings
        assert isinstance(settings, SampleSettings)  # noqa: S101 - the others search
        waiting = iter(todo)
        while batch := list(islice(waiting, _IN_FLIGHT)):
            prompts = [prompt(settings.asking.text(engine, each), settings.seed, each.id) for each in batch]

            def take(index: int, sampled: Sampled, batch: Sequence[Trajectory] = batch) -> None:
                self._sampled(batch[index], sampled)

            engine.sample(prompts, settings.n, settings.asking.sampling(settings.sampling), take)

    def _sampled(self, question: Trajectory, sampled: Sampled) -> None:
        candidates = [self._solution(question, i, each) for i, each in enumerate(sampled.completions)]
        finished = sum(each.finish_reason == "stop" for each in sampled.completions)
        record = Attempt(question.id, len(candidates), finished, sampled.cost, error=sampled.error)
        self._write(record, candidates)

    def _solution(self, question: Trajectory, number: int, completion: Completion) -> Trajectory:
        cut = completion.finish_reason == "length"
        text, choices = completion.text, question.choices
        answer = answer_in(text, choices) if cut else arrived_at(text, question.gold_answer or "", choices)
        return self._candidate(question, number, split_steps(text), answer, "length" if cut else "stop")

    def _candidate(
        self, question: Trajectory, number: int, steps: tuple[str, ...], answer: str | None, finish_reason: str
    ) -> Trajectory:
        tags = {**question.tags, QUESTION_ID: question.id, "finish_reason": finish_reason}
        name = f"{question.id}/{number}"
        return dataclasses.replace(question, id=name, steps=steps, final_answer=answer, step_labels=None, tags=tags)

    # --- searched ---------------------------------------------------------------------------------------------------

    def searched(self, question: Trajectory, found: Searched) -> None:
        """Write what a search came to; its solutions are in the order of their rewards, the best first."""
        candidates = [self._of_beam(question, i, beam) for i, beam in enumerate(found.beams)]
        rewards = [
            StepRewards(candidate.id, beam.rewards, "prm")
            if beam.rewards
            else StepRewards(candidate.id, (), "prm", error="the search had no rewards for it")
            for candidate, beam in zip(candidates, found.beams, strict=True)
        ]
        finished = sum(beam.end == "finished" for beam in found.beams)
        record = Attempt(
            question.id, len(candidates), finished, found.sampling, found.rewarding, found.rounds, found.error
        )
        self._write(record, candidates, rewards)

    def _of_beam(self, question: Trajectory, number: int, beam: Beam) -> Trajectory:
        last, choices = beam.steps[-1], question.choices
        is_finished = beam.end == "finished"
        answer = arrived_at(last, question.gold_answer or "", choices) if is_finished else answer_in(last, choices)
        return self._candidate(question, number, beam.steps, answer, "stop" if is_finished else "length")

    def _write(self, record: Attempt, candidates: Sequence[Trajectory], rewards: Sequence[StepRewards] = ()) -> None:
        self._file.add(record, candidates, rewards)
        self._progress.cost += record.sampling + record.rewarding
        if record.error is None:
            self._progress.rewarded += 1
        else:
            self._progress.failed += 1
            self._progress.errors[record.error] += 1
        self._on_progress(self._progress)


def _summary(file: SolutionFile, progress: Progress, tally: Tally) -> Solved:
    attempts = list(file.attempts.values())
    return Solved(
        progress,
        candidates=sum(each.candidates for each in attempts),
        finished=sum(each.finished for each in attempts),
        unfinished=sum(each.error is None and not each.finished for each in attempts),
        sampling=sum((each.sampling for each in attempts), Cost()),
        rewarding=sum((each.rewarding for each in attempts), Cost()),
        tally=tally,
    )
