"""``cpmi evaluate best-of-n`` as a function: candidates and rewards from files in, results out."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cpmi.answers import extract_answer, final_answer_of, normalize_answer
from cpmi.benchmarks.best_of_n import BestOfNSettings, Source, evaluate
from cpmi.benchmarks.choosing import Pool
from cpmi.errors import InputError
from cpmi.export import labeled_input, labeled_trajectories, trajectory_of
from cpmi.grader import Grader, Verdict
from cpmi.records import Trajectory, read_trajectories, rewards_by_id
from cpmi.results import EvalResult

TAG = "tag:"
_KNOWING = {"posterior", "cpmi", "mc", "pav", "outcome"}  # methods that are told the right answer


def evaluate_best_of_n(
    rewards: Sequence[str],
    trajectories: Path | None = None,
    settings: BestOfNSettings | None = None,
    *,
    grader: Grader,
) -> list[EvalResult]:
    """What step rewards do to answers: best-of-N and weighted votes beside one sample, the majority and the oracle.

    Args:
        rewards: run directories, files of step rewards, or ``tag:NAME`` for the number in that tag of each candidate;
            none of them: the rules that use no rewards.
        trajectories: the candidates, several for a question, if they are not where the runs found them. Those with the
            same tag ``question_id`` belong together; without it, those with the same question.

    Raises:
        InputError: no candidates, no gold answers, rewards that do not fit the candidates or one another.
    """
    candidates = _candidates(rewards, trajectories)
    graded = grade(candidates.values(), grader)
    kept = {i: candidates[i] for pool in graded.pools for i in pool.ids}
    sources = [_source(name, each, candidates, kept) for name, each in _names(rewards).items()]
    if sources and not set.intersection(*({*source.steps} for source in sources)):
        raise InputError("the sources of rewards have no candidate in common; they must be over the same candidates")
    return evaluate(graded.pools, sources, settings or BestOfNSettings(), graded.notes())


# --- reading --------------------------------------------------------------------------------------------------------


def _candidates(rewards: Sequence[str], path: Path | None) -> dict[str, Trajectory]:
    """From the file given, else from where the run directories found them.

    Raises:
        InputError: nobody says where they are, or the runs do not agree.
    """
    if path is not None:
        return {trajectory.id: trajectory for trajectory in read_trajectories(path)}
    files = [Path(each) for each in rewards if not each.startswith(TAG)]
    folders = [file for file in files if file.is_dir()]
    if not folders:
        for file in files:
            labeled_trajectories(file)  # says what is wrong with it
        raise InputError("no run says where the candidates are; name them with --trajectories FILE")
    if len({str(labeled_input(folder).get("sha256")) for folder in folders}) > 1:
        raise InputError(
            "the runs are over different files of candidates; name the one to use with --trajectories FILE"
        )
    return labeled_trajectories(folders[0])


def _names(rewards: Sequence[str]) -> dict[str, str]:
    """A short name for each source; the whole path where short ones are the same.

    Raises:
        InputError: one is named twice.
    """
    places = [each if each.startswith(TAG) else str(Path(each).resolve()) for each in rewards]
    if len({*places}) < len(places):
        raise InputError("a source of rewards is named twice")
    short = [each if each.startswith(TAG) else Path(each).name for each in places]
    names = [place if short.count(name) > 1 else name for name, place in zip(short, places, strict=True)]
    return dict(zip(names, rewards, strict=True))


def _source(name: str, given: str, candidates: dict[str, Trajectory], kept: Mapping[str, Trajectory]) -> Source:
    """The scores of the candidates that are ``kept``: those of questions with a gold answer.

    Raises:
        InputError: nothing fits, a number of rewards that is not that of the steps, a tag that is no number.
    """
    if given.startswith(TAG):
        tag = given.removeprefix(TAG)
        return Source(name, {i: (_number(candidate, tag),) for i, candidate in kept.items()}, whole=True)
    records = rewards_by_id(Path(given))
    found = [records[i] for i in kept if i in records]
    for record in found:
        trajectory_of(candidates, record)
    if not found:
        raise InputError(f"{name}: none of its {len(records)} ids is one of the {len(kept)} candidates")
    notes = []
    if made := sorted({part for record in found for part in record.source.split("+") if part in _KNOWING}):
        notes.append(f"{', '.join(made)}: made knowing the right answer: no way to choose an answer in use")
    if strangers := len(records.keys() - candidates.keys()):
        notes.append(f"{strangers} of the rewards belong to no candidate here, and are left out")
    steps = {record.trajectory_id: record.rewards for record in found if record.rewards}  # none where it has an error
    if not steps:
        raise InputError(f"{name}: none of the {len(kept)} candidates has rewards ({found[0].error or 'no steps'})")
    return Source(name, steps, {record.trajectory_id: record.cost for record in found}, notes=tuple(notes))


def _number(candidate: Trajectory, tag: str) -> float:
    text = candidate.tags.get(tag)
    if text is None:
        raise InputError(f"{candidate.id!r} has no tag {tag!r}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{candidate.id!r}: its tag {tag!r} is no number: {text!r}")
    return number


# --- grading --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Graded:
    """Pools of graded candidates, and what was counted on the way.

    Attributes:
        without_gold: questions that have no gold answer, and are left out.
        unanswered: candidates without an answer; ``outside``: those among them that state one outside the choices.
        undecided: candidates that the grader could not judge within its limit; they count as wrong.
    """

    pools: list[Pool] = field(default_factory=list)
    without_gold: int = 0
    unanswered: int = 0
    outside: int = 0
    undecided: int = 0

    def notes(self) -> list[str]:
        """What a reader must know, a sentence each."""
        notes = []
        if self.without_gold:
            notes.append(f"{self.without_gold} questions without a gold answer are left out")
        if self.unanswered:
            outside = f" ({self.outside} state one outside the choices)" if self.outside else ""
            notes.append(f"{self.unanswered} candidates have no answer{outside}: they are wrong, and have no vote")
        if self.undecided:
            notes.append(
                f"{self.undecided} candidates could not be graded within the grader's limit, and count as wrong"
            )
        return notes


def grade(candidates: Iterable[Trajectory], grader: Grader) -> Graded:
    """Group candidates by question and grade them.

    Raises:
        InputError: no gold answers, different ones for a question, or no candidate with an answer.
    """
    groups: dict[tuple[str, str], list[Trajectory]] = {}
    for candidate in candidates:
        tag = candidate.tags.get("question_id")
        groups.setdefault(("question", candidate.question) if tag is None else ("tag", tag), []).append(candidate)
    graded = Graded()
    for (kind, key), members in groups.items():
        name = key if kind == "tag" else hashlib.sha256(key.encode()).hexdigest()[:16]
        _grade_question(name, sorted(members, key=lambda candidate: candidate.id), graded, grader)
    if not groups:
        raise InputError("there are no candidates")
    if not graded.pools:
        raise InputError("none of the questions has a gold answer; there is nothing to judge answers by")
    if not any(pool.answered.any() for pool in graded.pools):
        raise InputError("none of the candidates has an answer; there is nothing to choose from")
    return graded


def _grade_question(name: str, members: Sequence[Trajectory], graded: Graded, grader: Grader) -> None:
    """Add the pool of one question.

    Args:
        members: in an order that is not that of the file: "20", "20%" and "0.2" are not all the same, though "20%" is
            the same as either, so that classes depend on who comes first.
    """
    golds = sorted({each.gold_answer for each in members if each.gold_answer is not None and each.gold_answer.strip()})
    if not golds:
        graded.without_gold += 1
        return
    if len(golds) > 1:
        raise InputError(f"{members[0].id!r}: the candidates of its question have different gold answers: {golds[:2]}")
    known = (
        each if each.gold_answer == golds[0] else dataclasses.replace(each, gold_answer=golds[0]) for each in members
    )
    answers = [final_answer_of(each) for each in known]
    outside = sum(answer is None and _states_one(each) for answer, each in zip(answers, members, strict=True))
    forms = [None if answer is None else normalize_answer(answer) for answer in answers]
    different: dict[str, str] = {}
    for form, answer in zip(forms, answers, strict=True):
        if form is not None and answer is not None:
            different.setdefault(form, answer)
    verdicts = {form: grader.compare(answer, golds[0]) for form, answer in different.items()}
    classes = _classes(different, grader)
    graded.unanswered += forms.count(None)
    graded.outside += outside
    graded.undecided += sum(form is not None and verdicts[form] is Verdict.UNDECIDED for form in forms)
    graded.pools.append(
        Pool(
            name,
            tuple(each.id for each in members),
            np.array([form is not None and verdicts[form] is Verdict.SAME for form in forms]),
            np.array([-1 if form is None else classes[form] for form in forms]),
            min(each.tags.get("subset", "") for each in members),
        )
    )


def _states_one(candidate: Trajectory) -> bool:
    """Whether a candidate without an answer states one after all, which is none of the choices then."""
    if candidate.choices is None:
        return False
    stated = bool(candidate.final_answer and candidate.final_answer.strip())
    return stated or extract_answer(candidate.steps[-1] if candidate.steps else "") is not None


def _classes(answers: Mapping[str, str], grader: Grader) -> dict[str, int]:
    """For each normalized answer the number of its class: the first one whose first member is the same answer.

    Args:
        answers: as they are written, by their normalized form.
    """
    firsts: list[str] = []
    classes: dict[str, int] = {}
    for form, answer in answers.items():
        same = (c for c, other in enumerate(firsts) if grader.compare(answer, other) is Verdict.SAME)
        classes[form] = next(same, len(firsts))
        if classes[form] == len(firsts):
            firsts.append(answer)
    return classes
