"""A run in one or two plain sentences, made from the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpmi.benchmarks.baselines import OUTCOME, OUTCOME_AND_POSITION
from cpmi.compare import Row
from cpmi.metrics import Estimate
from cpmi.report.material import Material, Run

Standing = Literal["better", "unclear", "worse", "same", "unknown"]

WORDS: dict[Standing, str] = {
    "better": "Says more than the baselines",
    "unclear": "Not clearly more than the baselines",
    "worse": "No more than the baselines",
    "same": "This is the outcome",
    "unknown": "Cannot be judged here",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to think of a run.

    Attributes:
        standing: ``better``: its F1 is above the better baseline's, and their intervals do not meet; ``unclear``:
            above it, but they do; ``worse``: not above it; ``same``: it is that baseline, as a run; ``unknown``: there
            is nothing to compare.
        text: sentences.
    """

    name: str
    standing: Standing
    text: str

    @property
    def words(self) -> str:
        return WORDS[self.standing]


def verdicts(material: Material) -> list[Verdict]:
    """One for each run."""
    comparison = material.comparison
    if comparison is None:
        return []
    rows = {row.name: row for row in comparison.rows}
    return [_verdict(material, run, rows[run.name], comparison.trajectories) for run in material.runs]


def _verdict(material: Material, run: Run, row: Row, trajectories: int) -> Verdict:
    f1 = row.quality.first_error_f1 if row.quality else Estimate(None)
    sentences = [_quality_sentence(material, row, f1), _sameness(run), _cost_sentence(row, trajectories)]
    if row.failed:
        sentences.append(f"{row.failed:,} of {row.failed + row.rewarded:,} attempts failed.")
    standing = "same" if run.source == "outcome" else _standing(f1, material.hurdle())
    return Verdict(run.name, standing, " ".join(filter(None, sentences)))


def _standing(f1: Estimate, hurdle: Estimate) -> Standing:
    if f1.value is None or hurdle.value is None:
        return "unknown"
    if f1.value <= hurdle.value:
        return "worse"
    apart = f1.low is not None and hurdle.high is not None and f1.low > hurdle.high
    return "better" if apart else "unclear"


def _quality_sentence(material: Material, row: Row, f1: Estimate) -> str:
    if row.quality is None:
        return (
            "Whether it finds errors cannot be said: people annotated no trajectory that every run rewarded."
            if row.rewarded
            else "It has no rewards at all."
        )
    if f1.value is None:
        kind = "without" if all(each.first_error is None for each in material.cases(None)) else "with"
        count = "the only annotated trajectory is" if len(material.judged) == 1 else (
            f"all {len(material.judged):,} annotated trajectories are")  # fmt: skip
        return f"Whether it finds errors cannot be said: {count} {kind} an error."
    judged = f"{len(material.judged):,} annotated trajectories"
    finds = f"Finds the first wrong step: F1 {figure(f1)} at its best threshold, on {judged}"
    outcome, both = (material.quality(name) for name in (OUTCOME, OUTCOME_AND_POSITION))
    if outcome is None:
        return f"{finds}; there is no outcome baseline to hold it against."
    knowing = f"knowing only whether the answer is right gives {figure(outcome.first_error_f1)}"
    number = f", and the step's number beside it {figure(both.first_error_f1)}" if both else ""
    return f"{finds}; {knowing}{number}."


def _sameness(run: Run) -> str:
    if not any(record.rewards for record in run.records.values()):
        return ""
    if run.constant:
        return f"Every step has the same reward, {run.low:.3g}: it tells no step from another."
    return "All steps of a solution have the same reward, so it cannot say where an error is." if run.flat else ""


def _cost_sentence(row: Row, trajectories: int) -> str:
    if row.cost is None or not trajectories:
        return ""
    seconds, tokens = row.cost.seconds / trajectories, row.cost.tokens_generated / trajectories
    generated = f"{tokens:,.0f} generated tokens" if tokens else "no generated token"
    return f"Costs {duration(seconds)} and {generated} a trajectory."


def duration(seconds: float) -> str:
    """In seconds; what is too short to matter is not spelled out."""
    if 0 < seconds < 0.001:
        return "< 0.001 s"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def figure(value: Estimate) -> str:
    """A number with its interval, as on the whole page."""
    if value.value is None:
        return "–"
    interval = "" if value.low is None else f" ({value.low:.2f}–{value.high:.2f})"
    return f"{value.value:.2f}{interval}"
