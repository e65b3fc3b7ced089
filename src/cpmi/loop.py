"""``cpmi loop`` as a function: a reward model that is trained while the policy goes on solving new questions.

In each round the policy solves questions it has not met, the reward models of the round before choose the solutions
they are least sure of, these alone are labeled, and new reward models are trained on all labels so far. A round is made
of the jobs that ``cpmi solve``, ``score``, ``label``, ``targets`` and ``train`` do, each of which can go on where it
stopped; so can the loop.

The choice follows "Efficient Process Reward Model Training via Active Learning" (ActPRM, arXiv 2504.10559): what an
ensemble of heads is unsure of, looking no further than the first step that it takes for wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpmi.aggregation import Aggregation, aggregate
from cpmi.errors import CpmiError, InputError
from cpmi.labelers.cpmi import CPMISettings
from cpmi.labelers.posterior import PosteriorSettings
from cpmi.labeling import LabelJob, OutcomeSettings, PRMSettings, label
from cpmi.metrics import roc_auc
from cpmi.models import ModelSettings
from cpmi.normalizers import TargetSettings
from cpmi.records import Trajectory, read_trajectories, rewards_by_id, write_records, write_whole
from cpmi.running import Progress
from cpmi.runs import RunDirectory, attempt
from cpmi.solve import SampleSettings, SolveJob, solve
from cpmi.targets import write_targets
from cpmi.tasks import read_questions
from cpmi.training import train

if TYPE_CHECKING:
    from cpmi.prm.settings import TrainSettings

OnStage = Callable[[str, str], AbstractContextManager[Callable[[Progress], None]]]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How a loop goes.

    Attributes:
        policy: what solves the questions.
        labeler: what the labels ask for log-probabilities.
        train: of each reward model; ``train.seed`` is that of the first head.
        sampling: of solutions.
        label: the method, and its settings.
        targets: of the map from rewards to targets, fitted anew on all labels of each round.
        questions: of a round.
        held_out: questions that are never trained on, to tell how good a reward model is.
        select: share of a round's solutions that is labeled.
        heads: reward models of a round; they differ in their seeds alone.
        rounds: the most rounds.
        patience: rounds without a better AUC after which the loop stops.
        min_gain: by how much an AUC must be above the best one before it to be better.
        aggregation: of step rewards, to tell right solutions from wrong ones.
        seed: decides which questions are held out and which come first, and the choice in the first round.

    Raises:
        InputError: a number that makes no sense.
    """

    policy: ModelSettings
    labeler: ModelSettings
    train: TrainSettings
    sampling: SampleSettings = field(default_factory=SampleSettings)
    label: PosteriorSettings | CPMISettings = field(default_factory=PosteriorSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    questions: int = 100
    held_out: int = 50
    select: float = 0.5
    heads: int = 3
    rounds: int = 3
    patience: int = 1
    min_gain: float = 0.0
    aggregation: Aggregation = "min"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("questions", "held_out", "heads", "rounds", "patience"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name.replace('_', ' ')} must be 1 or more, not {value}")
        if not 0 < self.select <= 1:
            raise InputError(f"the share of solutions to label must be above 0 and at most 1, not {self.select}")


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What came of a round.

    Attributes:
        candidates: solutions of this round with steps.
        chosen: of these, how many were to be labeled.
        labeled: how many of them could be labeled.
        targets: trajectories that were trained on, of all rounds so far.
        unsure: (all, chosen) mean uncertainty of the solutions in bits, before this round's training; None in round 1.
        auc: of the mean of the heads on what is held out; None where only right or only wrong is there.
        prms: folders of the reward models.
    """

    number: int
    candidates: int
    chosen: int
    labeled: int
    targets: int
    unsure: tuple[float, float] | None
    auc: float | None
    prms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoopReport:
    """What came of a loop.

    Attributes:
        best: the round with the highest AUC; None where there is none.
        stopped: why no further round was begun.
    """

    output: Path
    rounds: tuple[RoundResult, ...]
    best: RoundResult | None
    stopped: str


@contextlib.contextmanager
def _unseen(_doing: str, _things: str) -> Iterator[Callable[[Progress], None]]:
    yield lambda _: None


def loop(
    questions: str,
    output: Path,
    settings: LoopSettings,
    *,
    task: str = "questions",
    split: str | None = None,
    judged: Path | None = None,
    on_stage: OnStage = _unseen,
    on_round: Callable[[RoundResult], None] = lambda _: None,
) -> LoopReport:
    """Go on until nothing is gained, or questions or rounds run out; what an earlier call did is not done again.

    Args:
        questions: a file or ``hub:NAME``; see ``tasks.read_questions``. Each needs a gold answer.
        judged: trajectories with step labels, to tell how good a reward model is; without them it is told by whether
            it tells right solutions of held-out questions from wrong ones.
        on_stage: opens the display of a stage, by what is done to what.
        on_round: called when a round is done.

    Raises:
        InputError: something in the questions, the settings or the output is wrong.
        CpmiError: it cannot go on (a full disk, an engine that is gone, nothing to train on); what is done is kept.
    """
    asked = _Questions.read(questions, task, split, settings, needs_held_out=judged is None)
    # How long it goes on may change from one call to the next.
    lasting = ("rounds", "patience", "min_gain")
    fixed = {name: value for name, value in dataclasses.asdict(settings).items() if name not in lasting}
    manifest = {"method": "loop", "input": asked.describe(questions, task, judged), "settings": fixed}
    run = RunDirectory.create_or_resume(output, manifest)
    with attempt(run) as outcome:
        report = _Loop(run.path, settings, asked, judged, on_stage).run(on_round)
        outcome.update(rounds=len(report.rounds), stopped=report.stopped)
    return report


# --- questions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Questions:
    """The questions in the order in which they are asked."""

    held_out: tuple[Trajectory, ...]
    others: tuple[Trajectory, ...]
    sha256: str

    @classmethod
    def read(
        cls, file: str, task: str, split: str | None, settings: LoopSettings, *, needs_held_out: bool
    ) -> _Questions:
        questions = list(read_questions(file, task, split=split))
        if without := next((each for each in questions if not each.gold_answer), None):
            raise InputError(f"{file}: question {without.id!r} has no gold answer, without which nothing is labeled")
        digest = hashlib.sha256(repr([(each.id, each.question, each.gold_answer) for each in questions]).encode())
        ordered = sorted(questions, key=lambda each: _hash(settings.seed, each.id))
        aside = settings.held_out if needs_held_out else 0
        if len(ordered) <= aside:
            raise InputError(f"{file}: {len(ordered)} questions are too few to hold {aside} out; use --held-out")
        return cls(tuple(ordered[:aside]), tuple(ordered[aside:]), digest.hexdigest())

    def describe(self, file: str, task: str, judged: Path | None) -> dict[str, Any]:
        """Of the manifest."""
        known = {"path": file, "task": task, "sha256": self.sha256}
        if judged is not None:
            known["judged"] = hashlib.sha256(judged.read_bytes()).hexdigest() if judged.is_file() else str(judged)
        return known


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


# --- choosing -------------------------------------------------------------------------------------------------------


def uncertainty(heads: Sequence[Sequence[float]]) -> float:
    """How unsure an ensemble is of a trajectory, in bits: the most of any step up to the first it takes for wrong.

    The entropy of the mean probability, which grows both where each head is unsure and where they disagree. What
    follows the first wrong step is of no use to whoever looks for it, as in ActPRM.

    Args:
        heads: of each head the probability of each step, at least one of either.
    """
    most = 0.0
    for probability in np.clip(np.mean(np.array(heads, dtype=np.float64), axis=0), 0.0, 1.0).tolist():
        most = max(most, -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0))
        if probability <= 0.5:
            break
    return most


# --- rounds ---------------------------------------------------------------------------------------------------------


class _Loop:
    def __init__(
        self, path: Path, settings: LoopSettings, asked: _Questions, judged: Path | None, on_stage: OnStage
    ) -> None:
        self._path, self._settings, self._asked = path, settings, asked
        self._judged, self._on_stage = judged, on_stage
        self._features = path / "states"

    def run(self, on_round: Callable[[RoundResult], None]) -> LoopReport:
        rounds: list[RoundResult] = []
        while (stopped := self._why_stop(rounds)) is None:
            rounds.append(self._round(len(rounds) + 1))
            on_round(rounds[-1])
        judged = [each for each in rounds if each.auc is not None]
        best = max(judged, key=lambda each: each.auc or 0.0, default=None)
        return LoopReport(self._path, tuple(rounds), best, stopped)

    def _why_stop(self, rounds: Sequence[RoundResult]) -> str | None:
        settings = self._settings
        if len(rounds) >= settings.rounds:
            return f"{len(rounds)} rounds are done"
        if len(rounds) * settings.questions >= len(self._asked.others):
            return "there are no more questions"
        best, since = -math.inf, 0
        for each in rounds:
            better = each.auc is not None and each.auc > best + settings.min_gain
            best, since = (each.auc or 0.0, 0) if better else (best, since + 1)
        if since >= settings.patience:
            return f"the AUC has not grown for {since} round{'s' if since > 1 else ''}"
        return None

    def _folder(self, number: int) -> Path:
        return self._path / f"round-{number:02d}"

    def _round(self, number: int) -> RoundResult:
        folder = self._folder(number)
        folder.mkdir(exist_ok=True)
        result = folder / "result.json"
        if result.exists():
            return _read_result(result)
        first = (number - 1) * self._settings.questions
        asked = self._asked.others[first : first + self._settings.questions]
        candidates = self._solved(asked, folder / "candidates.jsonl", f"round {number}: solving")
        chosen, unsure = self._choose(number, candidates)
        progress = self._label(number, chosen)
        targets = write_targets(
            [self._folder(each) / "labels" for each in range(1, number + 1)],
            folder / "targets.jsonl",
            self._settings.targets,
        )
        prms = self._train(number)
        done = RoundResult(
            number, len(candidates), len(chosen), progress, targets.rows, unsure, self._auc(number, prms),
            tuple(str(each.relative_to(self._path)) for each in prms),
        )  # fmt: skip
        write_whole(result, (json.dumps(dataclasses.asdict(done), indent=1) + "\n").encode())
        return done

    def _solved(self, questions: Sequence[Trajectory], file: Path, doing: str) -> list[Trajectory]:
        """The policy's solutions of these questions, those with steps."""
        asked = file.with_name("questions.jsonl")
        if not asked.exists():
            write_records(asked, questions)
        with self._on_stage(doing, "questions") as update:
            solve(SolveJob(str(asked), file, self._settings.policy, settings=self._settings.sampling), update)
        return [each for each in read_trajectories(file) if each.steps]

    def _choose(
        self, number: int, candidates: Sequence[Trajectory]
    ) -> tuple[list[Trajectory], tuple[float, float] | None]:
        """What to label, and how unsure the reward models are of all candidates and of those."""
        count = math.ceil(self._settings.select * len(candidates))
        if number == 1:  # there is nothing yet that could be unsure
            return sorted(candidates, key=lambda each: _hash(self._settings.seed, each.id))[:count], None
        heads = self._scores(
            number, self._prms(number - 1), self._folder(number) / "candidates.jsonl", "scored", "choosing"
        )
        unsure = {each.id: uncertainty(heads[each.id]) for each in candidates if each.id in heads}
        if not unsure:
            raise CpmiError(f"round {number}: no candidate could be scored, so that none can be chosen")
        known = [each for each in candidates if each.id in unsure]
        chosen = sorted(known, key=lambda each: (-unsure[each.id], _hash(self._settings.seed, each.id)))[:count]
        return chosen, (_mean(unsure.values()), _mean(unsure[each.id] for each in chosen))

    def _label(self, number: int, chosen: Sequence[Trajectory]) -> int:
        folder = self._folder(number)
        file = folder / "chosen.jsonl"
        if not file.exists():
            if not chosen:
                raise CpmiError(f"round {number}: the policy wrote no solution with steps; see {folder}")
            write_records(file, chosen)
        with self._on_stage(f"round {number}: labeling", "trajectories") as update:
            job = LabelJob(file, folder / "labels", self._settings.labeler, self._settings.label)
            label(job, update)
        return sum(record.error is None for record in rewards_by_id(folder / "labels").values())

    def _train(self, number: int) -> list[Path]:
        prms = self._prms(number)
        for seed, prm in enumerate(prms, self._settings.train.seed):
            if not prm.exists():
                settings = dataclasses.replace(self._settings.train, seed=seed)
                with self._on_stage(f"round {number}: training {prm.name}", "trajectories"):
                    train(self._folder(number) / "targets.jsonl", settings, prm, features=self._states)
        return prms

    @property
    def _states(self) -> Path | None:
        """A frozen decoder's states are kept for all rounds and heads."""
        return self._features if self._settings.train.tune == "features" else None

    def _prms(self, number: int) -> list[Path]:
        return [self._folder(number) / f"prm-{head}" for head in range(self._settings.heads)]

    def _scores(self, number: int, prms: Sequence[Path], file: Path, name: str, doing: str) -> dict[str, list[Any]]:
        """Of each trajectory that all heads can score the step rewards by each head."""
        by_head = []
        for head, prm in enumerate(prms):
            run = self._folder(number) / f"{name}-{head}"
            base = self._settings.train.base
            model = ModelSettings(str(prm), base.dtype, base.device, base.batch_tokens)
            with self._on_stage(f"round {number}: {doing} by {prm.name}", "trajectories") as update:
                label(LabelJob(file, run, model, PRMSettings(), features=self._states), update)
            by_head.append({key: each.rewards for key, each in rewards_by_id(run).items() if each.error is None})
        return {key: [each[key] for each in by_head] for key in by_head[0] if all(key in each for each in by_head)}

    # --- judging ----------------------------------------------------------------------------------------------------

    def _auc(self, number: int, prms: Sequence[Path]) -> float | None:
        file = self._judged or self._held_out()
        heads = self._scores(number, prms, file, "judged", "judging")
        means = {key: np.mean(np.array(rewards, dtype=np.float64), axis=0).tolist() for key, rewards in heads.items()}
        known = self._step_verdicts(file, means) if self._judged is not None else self._outcome_verdicts(means)
        right: list[float] = []
        wrong: list[float] = []
        for is_right, value in known:
            (right if is_right else wrong).append(value)
        return roc_auc(np.array(right, dtype=np.float64), np.array(wrong, dtype=np.float64))

    @staticmethod
    def _step_verdicts(file: Path, means: Mapping[str, Sequence[float]]) -> Iterator[tuple[bool, float]]:
        """Of each judged step whether it is right, and its reward."""
        for trajectory in read_trajectories(file):
            if trajectory.id in means and trajectory.step_labels is not None:
                for verdict, value in zip(trajectory.step_labels, means[trajectory.id], strict=True):
                    if verdict is not None:
                        yield bool(verdict), value

    def _outcome_verdicts(self, means: Mapping[str, Sequence[float]]) -> Iterator[tuple[bool, float]]:
        """Of each held-out solution that the grader decided whether it is right, and its score."""
        for key, record in rewards_by_id(self._path / "held-out" / "outcomes").items():
            if key in means and record.error is None:
                yield record.rewards[-1] > 0.5, aggregate(means[key], self._settings.aggregation)

    def _held_out(self) -> Path:
        """Solutions of the questions that are held out, sampled once."""
        folder = self._path / "held-out"
        folder.mkdir(exist_ok=True)
        solved = self._solved(self._asked.held_out, folder / "candidates.jsonl", "held out: solving")
        file = folder / "solutions.jsonl"
        if not file.exists():
            if not solved:
                raise CpmiError(f"held out: the policy wrote no solution with steps; see {folder}")
            write_records(file, solved)
        label(LabelJob(file, folder / "outcomes", settings=OutcomeSettings()))
        return file


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _read_result(path: Path) -> RoundResult:
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        unsure = row["unsure"]
        return RoundResult(**row | {"prms": tuple(row["prms"]), "unsure": None if unsure is None else tuple(unsure)})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: broken ({error}); remove it to have the round finished again") from error
