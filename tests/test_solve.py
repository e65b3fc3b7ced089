"""``cpmi solve``: files of candidates that go on after a kill, sampled or searched for, with toy and real models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cpmi import solve as solving
from cpmi.answers import final_answer_of
from cpmi.asking import STEP_BY_STEP, Asking
from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings
from cpmi.protocols import Completion
from cpmi.records import Cost, StepRewards, Trajectory, read_rewards, read_trajectories, write_records
from cpmi.search import SearchSettings
from cpmi.solutions import Attempt, SolutionFile, read_attempts
from cpmi.solve import SampleSettings, SolveJob, solve
from scripted import ScriptedSampler

RunCpmi = Callable[..., tuple[int, str, str]]
QUESTIONS = [
    Trajectory("What is 2 + 2?", (), gold_answer="4", id="sum", tags={"subset": "easy"}),
    Trajectory("Is it so?", (), gold_answer="A", id="choice", choices=("A", "B")),
    Trajectory("What is 3 * 3?", (), gold_answer="9", id="product"),
]
SAYS: dict[str, str | Sequence[str | Completion]] = {
    "2 + 2": ["Add.\n\nThe sum is \\boxed{4}.", "I guess 5.\n\nSo 5", Completion("It goes on. 4", "length", "")],
    "it so": ["\\boxed{(B)}", "Therefore option A.", "\\boxed{E}"],
    "3 * 3": ["\\boxed{9}"] * 3,
}


class Engine(ScriptedSampler):
    """Says what ``SAYS`` has for a question, and fails on the ``dies_at``-th prompt."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__(self._say)
        self._dies_at = dies_at

    def _say(self, text: str) -> str | Sequence[str | Completion]:
        if len(self.asked) == self._dies_at:
            raise CpmiError("the engine died")
        return next(said for part, said in SAYS.items() if part in text)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    made: list[Engine] = []

    def use(**values: Any) -> Engine:
        made.append(Engine(**values))
        monkeypatch.setattr(solving, "open_model", lambda _: made[-1])
        return made[-1]

    return use


@pytest.fixture
def job(tmp_path: Path) -> SolveJob:
    write_records(tmp_path / "questions.jsonl", QUESTIONS)
    settings = SampleSettings(n=3)
    return SolveJob(
        str(tmp_path / "questions.jsonl"), tmp_path / "out.jsonl", ModelSettings("scripted"), settings=settings
    )


def test_candidates_hold_steps_answers_and_where_they_come_from(engine: Callable[..., Engine], job: SolveJob) -> None:
    sampler = engine()
    solved = solve(job)
    candidates = list(read_trajectories(job.output))
    assert [each.id for each in candidates] == [f"{q}/{i}" for q in ("sum", "choice", "product") for i in range(3)]
    first, guess, cut, wrong, right, outside = candidates[:6]
    assert first.steps == ("Add.", "The sum is \\boxed{4}.")
    assert first.tags == {"task": "questions", "subset": "easy", "question_id": "sum", "finish_reason": "stop"}
    assert (first.gold_answer, first.final_answer, guess.final_answer) == ("4", "4", "5")
    assert cut.tags["finish_reason"] == "length"
    assert final_answer_of(cut) is None  # a text that was cut arrives nowhere, whatever its last number
    assert (wrong.choices, wrong.final_answer, right.final_answer) == (("A", "B"), "B", "A")
    assert final_answer_of(outside) is None  # E is not one of the choices
    assert (solved.candidates, solved.finished, solved.unfinished) == (9, 8, 0)
    assert solved.sampling == Cost(90, 15, 1.5)
    assert "with a blank line between steps, and put the final answer within \\boxed{}" in sampler.asked[0].text
    assert "put the final answer (A or B) within" in sampler.asked[1].text
    assert len({prompt.seed for prompt in sampler.asked}) == 3


def test_a_job_that_stopped_goes_on_and_asks_nothing_twice(engine: Callable[..., Engine], job: SolveJob) -> None:
    engine(dies_at=2)
    with pytest.raises(CpmiError, match="the engine died"):
        solve(job)
    assert len(list(read_trajectories(job.output))) == 3
    log = job.output.parent / "out.jsonl.run" / "attempts.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each.get("stopped") for each in events] == [None, "CpmiError"]

    again = engine()
    solved = solve(job)
    assert [("3 * 3" in prompt.text, "it so" in prompt.text) for prompt in again.asked] == [
        (False, True),
        (True, False),
    ]
    assert (solved.progress.before, solved.progress.rewarded, solved.candidates) == (1, 2, 9)
    whole = job.output.read_bytes()

    idle = engine()
    assert solve(job).progress.before == 3
    assert idle.asked == []
    assert job.output.read_bytes() == whole


def test_what_a_kill_tore_is_dropped_and_made_again(engine: Callable[..., Engine], job: SolveJob) -> None:
    engine()
    solve(job)
    whole = job.output.read_bytes()
    lines = whole.splitlines(keepends=True)
    run = job.output.parent / "out.jsonl.run"
    records = (run / "questions.jsonl").read_bytes().splitlines(keepends=True)
    # Of the second question two candidates and half of the third are there, and no record yet; the third is not there.
    job.output.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    (run / "questions.jsonl").write_bytes(records[0] + records[1][:10])
    again = engine()
    solve(job)
    assert len(again.asked) == 2
    assert job.output.read_bytes() == whole


def test_candidates_that_somebody_deleted_are_made_again(engine: Callable[..., Engine], job: SolveJob) -> None:
    engine()
    solve(job)
    whole = job.output.read_bytes()
    job.output.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    again = engine()
    assert solve(job).candidates == 9
    assert len(again.asked) == 2
    job.output.unlink()
    assert solve(dataclasses.replace(job, limit=1)).candidates == 3
    assert job.output.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])


def test_a_limit_can_be_raised_later(engine: Callable[..., Engine], job: SolveJob) -> None:
    engine()
    assert solve(dataclasses.replace(job, limit=1)).candidates == 3
    again = engine()
    assert solve(job).candidates == 9
    assert len(again.asked) == 2


def test_other_settings_are_refused_before_a_model_is_loaded(
    engine: Callable[..., Engine], job: SolveJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine()
    solve(job)
    monkeypatch.setattr(solving, "open_model", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"settings\.n: 3 there, 4 here"):
        solve(dataclasses.replace(job, settings=SampleSettings(n=4)))
    write_records(Path(job.questions), QUESTIONS[:2])
    with pytest.raises(InputError, match=r"input\.questions: 3 there, 2 here"):
        solve(job)


def test_a_question_that_fails_is_a_record_and_can_be_tried_again(
    engine: Callable[..., Engine], job: SolveJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = engine()
    monkeypatch.setitem(SAYS, "it so", "too long")
    solved = solve(job)
    assert (solved.progress.failed, dict(solved.progress.errors)) == (1, {"too long": 1})
    assert [each.error for each in read_attempts(job.output)] == [None, "too long", None]
    assert len(sampler.asked) == 3
    assert solve(job).progress.failed_before == 1
    monkeypatch.setitem(SAYS, "it so", ["\\boxed{A}"] * 3)
    again = engine()
    solved = solve(dataclasses.replace(job, retry_errors=True))
    assert (len(again.asked), solved.progress.failed, solved.candidates) == (1, 0, 9)
    assert [each.tags["question_id"] for each in read_trajectories(job.output)][3] == "choice"


def test_a_file_that_is_something_else_is_left_alone(job: SolveJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "open_model", lambda _: pytest.fail("a model was loaded"))
    job.output.write_text("mine\n")
    with pytest.raises(InputError, match="not from cpmi solve; choose another"):
        solve(job)
    assert job.output.read_text() == "mine\n"


def test_two_processes_at_one_file_are_one_too_many(job: SolveJob) -> None:
    again = SolutionFile.opened(job.output, {"a": 1})
    with (
        SolutionFile.opened(job.output, {"a": 1}),
        pytest.raises(InputError, match="another process is writing"),
        again,
    ):
        pass


def test_a_broken_line_is_named(job: SolveJob) -> None:
    with SolutionFile.opened(job.output, {"a": 1}) as file:
        file.add(Attempt("sum", 1), [Trajectory("?", ("s",), id="sum/0", tags={"question_id": "sum"})])
    job.output.write_text("{}\n")
    broken = pytest.raises(InputError, match=r"out\.jsonl:1: missing field 'question'; restore")
    with broken, SolutionFile.opened(job.output, {"a": 1}):
        pass


# --- searched -------------------------------------------------------------------------------------------------------


class Longest:
    """Likes long steps."""

    name = "longest"

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        return [
            StepRewards(t.id, tuple(len(s) / 100 for s in t.steps), self.name, cost=Cost(tokens_scored=1))
            for t in trajectories
        ]

    def describe(self) -> dict[str, Any]:
        return {"engine": "longest"}

    def close(self) -> None:
        """Nothing to close."""


def test_a_search_keeps_its_rewards_and_its_costs(
    engine: Callable[..., Engine], job: SolveJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine()
    monkeypatch.setattr(solving, "open_prm", lambda *_: Longest())
    monkeypatch.setitem(
        SAYS, "2 + 2", [Completion("\\boxed{4}", "stop", ""), Completion("It is \\boxed{5}", "stop", "")]
    )
    monkeypatch.setitem(SAYS, "it so", [Completion("I never come to an end", "length", "")] * 2)
    monkeypatch.setitem(SAYS, "3 * 3", [Completion("\\boxed{9}", "stop", "")] * 2)
    searching = dataclasses.replace(
        job, settings=SearchSettings("step-best-of-n", n=2), prm=ModelSettings("prm"), limit=3
    )
    solved = solve(searching)
    candidates = {each.id: each for each in read_trajectories(job.output)}
    assert {name: each.final_answer for name, each in candidates.items()} == {
        "sum/0": "5", "sum/1": "4", "choice/0": None, "product/0": "9",
    }  # fmt: skip
    rewards = {
        each.trajectory_id: each.rewards for each in read_rewards(job.output.parent / "out.jsonl.run/rewards.jsonl")
    }
    assert rewards == {"sum/0": (0.15,), "sum/1": (0.09,), "choice/0": (0.22,), "product/0": (0.09,)}
    assert (solved.finished, solved.unfinished) == (3, 1)
    assert solved.rewarding.tokens_scored == 2 + 1 + 1
    assert [each.rounds for each in read_attempts(job.output)] == [1, 1, 1]


def test_a_search_needs_a_reward_model(job: SolveJob) -> None:
    with pytest.raises(InputError, match="name one with --prm"):
        solve(dataclasses.replace(job, settings=SearchSettings()))


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_samples_with_the_toy_model(run_cpmi: RunCpmi, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "candidates.jsonl"
    write_records(tmp_path / "q.jsonl", QUESTIONS)
    arguments = (
        "solve",
        str(tmp_path / "q.jsonl"),
        "--model",
        "toy:",
        "--n",
        "2",
        "--max-tokens",
        "30",
        "-o",
        str(output),
    )
    status, out, err = run_cpmi(*arguments)
    assert (status, "3 questions done, 0 failed of 3: 6 solutions" in out) == (0, True)
    assert "solving: 3/3" in err
    assert len(list(read_trajectories(output))) == 6
    status, out, _ = run_cpmi(*arguments, "--json")
    said = json.loads(out)
    assert (status, said["before"], said["candidates"], said["output"]) == (0, 3, 6, str(output))
    assert said["sampling"]["tokens_generated"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "2"], "--width is for a search; choose one with --search"),
        (["--search", "beam"], "a search needs a reward model; name one with --prm"),
        (["--search", "step-best-of-n", "--width", "2", "--prm", "x"], "--width is for --search beam and dvts"),
        (["--search", "beam", "--budget", "0", "--prm", "x"], "a budget of 0 tokens buys nothing"),
        (["--search", "beam", "--n", "6", "--prm", "x"], "6 samples cannot be shared out among beams of width 4"),
        (["--task", "gsm9k"], "unknown task 'gsm9k'; did you mean 'gsm8k'?"),
        (["--engine-option", "x"], "write NAME=VALUE"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    run_cpmi: RunCpmi, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_records(tmp_path / "q.jsonl", QUESTIONS)
    status, _, err = run_cpmi(
        "solve", str(tmp_path / "q.jsonl"), "--model", "toy:", "-o", str(tmp_path / "o.jsonl"), *arguments
    )
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_file_without_questions_is_one_line(run_cpmi: RunCpmi, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "What?", "answer": null}\n')
    status, _, err = run_cpmi("solve", str(tmp_path / "q.jsonl"), "--model", "toy:", "-o", str(tmp_path / "o.jsonl"))
    assert (status, "holds no question" in err, "no gold answer: 1" in err) == (2, True, True)


def test_the_wording_is_the_users() -> None:
    sampler = ScriptedSampler(lambda _: [])
    assert (
        Asking("plain")
        .text(sampler, QUESTIONS[0])
        .startswith("Solve the following problem. Reason step by step, and put")
    )
    text = Asking("chat", by_steps=True, instruction="Be brief").text(sampler, QUESTIONS[1], ("One.", "Two."))
    assert text.startswith(
        "<user>Is it so?\n\nBe brief, with a blank line between steps, and put the final answer (A or B)"
    )
    assert text.endswith("<model>One.\n\nTwo.\n\n")
    assert STEP_BY_STEP.style == "chat"


@pytest.fixture(scope="module")
def prm_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model, trained on made-up targets."""
    from cpmi.prm.data import TargetRow
    from cpmi.prm.settings import TrainSettings
    from cpmi.prm.train import train

    folder = tmp_path_factory.mktemp("prm") / "prm"
    rows = [
        TargetRow(str(i), f"Question {i}", ("Good step.", "Bad step."), (0.9, 0.1), (None, None), "test")
        for i in range(8)
    ]
    train(rows, TrainSettings(ModelSettings(str(tiny_base), device="cpu"), epochs=2, held_out=0.0), folder)
    return folder


@pytest.mark.real_model
def test_a_real_model_and_a_reward_model_search_together(run_cpmi: RunCpmi, tmp_path: Path, prm_folder: Path) -> None:
    """SmolLM2 proposes steps of a real question, a tiny reward model leads."""
    write_records(
        tmp_path / "q.jsonl", [Trajectory("Tom has 3 apples and buys 4 more. How many has he?", (), "7", id="q")]
    )
    output = tmp_path / "found.jsonl"
    status, out, err = run_cpmi(
        "solve", str(tmp_path / "q.jsonl"), "--model", "smollm2", "--search", "beam", "--prm", str(prm_folder),
        "--n", "2", "--width", "2", "--max-steps", "3", "--max-tokens", "40", "-o", str(output), "--json",
    )  # fmt: skip
    assert status == 0, err
    said = json.loads(out)
    candidates = list(read_trajectories(output))
    rewards = {each.trajectory_id: each for each in read_rewards(Path(f"{output}.run") / "rewards.jsonl")}
    assert len(candidates) == said["candidates"] >= 1
    assert all(len(rewards[each.id].rewards) == len(each.steps) for each in candidates if not rewards[each.id].error)
    assert said["sampling"]["tokens_generated"] > 0
    assert said["rewarding"]["tokens_scored"] > 0
