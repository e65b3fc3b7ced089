"""Solve, choose, label, train, and again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cpmi import CPMISettings, StepRewards, Trajectory, read_trajectories, write_records
from cpmi.cli import app
from cpmi.errors import CpmiError, InputError
from cpmi.loop import LoopSettings, RoundResult, _Loop, _Questions, loop, uncertainty
from cpmi.models import ModelSettings
from cpmi.prm.settings import TrainSettings
from cpmi.prompts import CUES
from cpmi.protocols import SamplingParams
from cpmi.records import rewards_by_id
from cpmi.running import Progress
from cpmi.solve import SampleSettings
from tiny_models import byte_tokenizer, tiny_model

# --- what is unsure -------------------------------------------------------------------------------------------------

probabilities = st.floats(0, 1)


@given(st.lists(st.lists(probabilities, min_size=3, max_size=3), min_size=1, max_size=4))
def test_uncertainty_is_between_0_and_1_bit(heads: list[list[float]]) -> None:
    assert 0 <= uncertainty(heads) <= 1 + 1e-9


@given(st.lists(probabilities, min_size=1, max_size=5))
def test_what_follows_the_first_wrong_step_says_nothing(later: list[float]) -> None:
    assert uncertainty([[0.9, 0.2, *later]]) == pytest.approx(uncertainty([[0.9, 0.2]]))


def test_heads_that_disagree_are_unsure_and_so_is_one_that_does_not_know() -> None:
    assert uncertainty([[1.0], [0.0]]) == pytest.approx(1.0)
    assert uncertainty([[0.5]]) == pytest.approx(1.0)
    assert uncertainty([[1.0], [1.0]]) == 0.0
    assert uncertainty([[0.9, 0.6]]) == pytest.approx(-0.6 * math.log2(0.6) - 0.4 * math.log2(0.4))


# --- a loop on tiny models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {i} + {i}?", "gold_answer": str(2 * i), "id": f"q{i}"} for i in range(9)]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    file = tmp_path / "judged.jsonl"
    write_records(
        file,
        [
            Trajectory(f"Is {i} even?", ("Look.", f"It is {i}."), "yes", id=f"j{i}", step_labels=(True, i % 2 == 0))
            for i in range(6)
        ],
    )  # fmt: skip
    return file


def small(base: Path, **more: Any) -> LoopSettings:
    toy = ModelSettings("toy:")
    values: dict[str, Any] = {
        "policy": toy,
        "labeler": toy,
        "train": TrainSettings(ModelSettings(str(base), device="cpu"), epochs=2, held_out=0.0),
        "sampling": SampleSettings(2, sampling=SamplingParams(max_tokens=60)),
        "label": CPMISettings(templates=CUES[:1]),
        "questions": 3,
        "held_out": 2,
        "heads": 2,
        "rounds": 2,
        "patience": 9,
    }
    return LoopSettings(**(values | more))


class Stages:
    """Notes the stages of a loop, and breaks off before one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[str] = []
        self._stop_at = stop_at

    @contextlib.contextmanager
    def __call__(self, doing: str, things: str) -> Iterator[Callable[[Progress], None]]:
        del things
        if len(self.seen) == self._stop_at:
            raise KeyboardInterrupt
        self.seen.append(doing)
        yield lambda _: None


def without_paths(result: RoundResult) -> dict[str, Any]:
    return dataclasses.asdict(result)


def test_two_rounds_from_questions_to_reward_models(base: Path, questions: Path, judged: Path, tmp_path: Path) -> None:
    stages = Stages()
    report = loop(str(questions), tmp_path / "loop", small(base), judged=judged, on_stage=stages)
    first, second = report.rounds
    assert (first.candidates, first.chosen, first.unsure) == (6, 3, None)
    assert (second.candidates, second.chosen, second.targets) == (6, 3, first.labeled + second.labeled)
    assert second.unsure is not None
    assert second.unsure[1] >= second.unsure[0]
    assert all(each.auc is not None and 0 <= each.auc <= 1 for each in report.rounds)
    assert report.best is max(report.rounds, key=lambda each: each.auc or 0)
    assert report.stopped == "2 rounds are done"
    assert all((tmp_path / "loop" / prm / "config.json").is_file() for each in report.rounds for prm in each.prms)
    assert stages.seen[:4] == [
        "round 1: solving", "round 1: labeling", "round 1: training prm-0", "round 1: training prm-1",
    ]  # fmt: skip

    asked = [set(_ids(tmp_path / "loop" / f"round-0{i}" / "questions.jsonl")) for i in (1, 2)]
    assert not asked[0] & asked[1]
    chosen = set(_ids(tmp_path / "loop" / "round-02" / "chosen.jsonl"))
    heads = [rewards_by_id(tmp_path / "loop" / "round-02" / f"scored-{head}") for head in (0, 1)]
    unsure = {key: uncertainty([each[key].rewards for each in heads]) for key in heads[0]}
    assert min(unsure[key] for key in chosen) >= max(unsure[key] for key in unsure.keys() - chosen)

    again = Stages()
    assert loop(str(questions), tmp_path / "loop", small(base), judged=judged, on_stage=again) == report
    assert again.seen == []


def _ids(file: Path) -> list[str]:
    return [each.id for each in read_trajectories(file)]


def test_a_loop_that_was_broken_off_anywhere_ends_as_one_that_was_not(
    base: Path, questions: Path, judged: Path, tmp_path: Path
) -> None:
    whole = Stages()
    expected = loop(str(questions), tmp_path / "whole", small(base), judged=judged, on_stage=whole)
    output = tmp_path / "broken"
    for _ in range(len(whole.seen)):  # each attempt does one stage more than those before it
        with contextlib.suppress(KeyboardInterrupt):
            loop(str(questions), output, small(base), judged=judged, on_stage=Stages(stop_at=1))
    report = loop(str(questions), output, small(base), judged=judged)
    assert [without_paths(each) for each in report.rounds] == [without_paths(each) for each in expected.rounds]


def test_more_rounds_can_be_asked_for_until_the_questions_run_out(
    base: Path, questions: Path, judged: Path, tmp_path: Path
) -> None:
    one = loop(str(questions), tmp_path / "loop", small(base, rounds=1), judged=judged)
    more = loop(str(questions), tmp_path / "loop", small(base, rounds=9), judged=judged)
    assert len(more.rounds) == 3
    assert more.rounds[0] == one.rounds[0]
    assert more.stopped == "there are no more questions"


def test_other_settings_are_refused(base: Path, questions: Path, judged: Path, tmp_path: Path) -> None:
    loop(str(questions), tmp_path / "loop", small(base, rounds=1), judged=judged)
    with pytest.raises(InputError, match=r"settings\.select: 0\.5 there, 0\.25 here"):
        loop(str(questions), tmp_path / "loop", small(base, select=0.25), judged=judged)
    questions.write_text(questions.read_text().replace("What is 3", "What, then, is 3"))
    with pytest.raises(InputError, match=r"input\.sha256"):
        loop(str(questions), tmp_path / "loop", small(base), judged=judged)


def test_without_judged_steps_held_out_questions_tell(base: Path, questions: Path, tmp_path: Path) -> None:
    """The toy model solves nothing, so that there is no right solution to tell from wrong ones; and it says so."""
    report = loop(str(questions), tmp_path / "loop", small(base, rounds=1))
    assert report.rounds[0].auc is None
    assert report.best is None
    held_out = {each.tags["question_id"] for each in read_trajectories(tmp_path / "loop/held-out/solutions.jsonl")}
    assert len(held_out) == 2
    assert not held_out & set(_ids(tmp_path / "loop" / "round-01" / "questions.jsonl"))


def test_auc_of_outcomes(base: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = small(base, aggregation="min")
    asked = _Questions.read(str(questions), "questions", None, given, needs_held_out=True)
    path = tmp_path / "loop"
    outcomes = {"a": StepRewards("a", (1.0, 1.0), "outcome"), "b": StepRewards("b", (0.0,), "outcome")}
    monkeypatch.setattr("cpmi.loop.rewards_by_id", lambda _path: outcomes)
    of = _Loop(path, given, asked, None, Stages())
    assert sorted(of._outcome_verdicts({"a": [0.9, 0.4], "b": [0.7], "c": [1.0]})) == [(False, 0.7), (True, 0.4)]


# --- when it stops --------------------------------------------------------------------------------------------------


def done(*aucs: float | None) -> list[RoundResult]:
    return [RoundResult(i, 1, 1, 1, 1, None, auc, ()) for i, auc in enumerate(aucs, 1)]


@pytest.mark.parametrize(
    ("aucs", "patience", "min_gain", "stopped"),
    [
        ([0.6], 1, 0.0, None),
        ([0.6, 0.7], 1, 0.0, None),
        ([0.6, 0.6], 1, 0.0, "the AUC has not grown for 1 round"),
        ([0.6, 0.55], 2, 0.0, None),
        ([0.6, 0.55, 0.58], 2, 0.0, "the AUC has not grown for 2 rounds"),
        ([0.6, 0.61], 1, 0.02, "the AUC has not grown for 1 round"),
        ([None], 1, 0.0, "the AUC has not grown for 1 round"),
        ([0.6, 0.7, 0.8, 0.9], 1, 0.0, "4 rounds are done"),
    ],
)
def test_it_stops_when_nothing_is_gained(
    base: Path, questions: Path, tmp_path: Path, aucs: list[float | None], patience: int, min_gain: float,
    stopped: str | None,
) -> None:  # fmt: skip
    given = small(base, questions=1, rounds=4, patience=patience, min_gain=min_gain)
    asked = _Questions.read(str(questions), "questions", None, given, needs_held_out=True)
    assert _Loop(tmp_path, given, asked, None, Stages())._why_stop(done(*aucs)) == stopped


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("select", 0.0, "share of solutions"), ("select", 1.5, "share of solutions"), ("heads", 0, "heads must be 1")],
)
def test_numbers_that_make_no_sense(base: Path, name: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(base, **{name: value})


def test_questions_that_do_not_do(base: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="9 questions are too few to hold 9 out"):
        loop(str(questions), tmp_path / "loop", small(base, held_out=9))
    assert not (tmp_path / "loop").exists()


def test_a_broken_result_is_named(base: Path, questions: Path, judged: Path, tmp_path: Path) -> None:
    loop(str(questions), tmp_path / "loop", small(base, rounds=1), judged=judged)
    result = tmp_path / "loop" / "round-01" / "result.json"
    result.write_text("{}")
    with pytest.raises(CpmiError, match=r"result\.json: broken .* remove it to have the round finished again"):
        loop(str(questions), tmp_path / "loop", small(base, rounds=1), judged=judged)


def test_the_command(tmp_path: Path, base: Path) -> None:
    folder = tmp_path
    questions = folder / "q.jsonl"
    rows = [f'{{"question": "What is {i} + 1?", "gold_answer": "{i + 1}"}}\n' for i in range(9)]
    questions.write_text("".join(rows))
    command = [
        "loop", str(questions), "--policy", "toy:", "--base-model", str(base), "--device", "cpu", "--rounds", "1",
        "--round-questions", "8", "--held-out", "1", "--n", "2", "--select", "1", "--max-tokens", "40",
        "--heads", "1", "--epochs", "1", "--output", str(folder / "loop"),
    ]  # fmt: skip
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "round 1: 16 solutions; 16 of 16 chosen labeled, 16 trained on; AUC none" in said.output
    assert "stopped: 1 rounds are done" in said.output
    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(as_json.stdout.splitlines()[-1])["rounds"][0]["chosen"] == 16
