"""Questions that offer their answers: what a solution chose, what it may be measured against, and labels end to end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpmi import Trajectory, read_rewards, read_trajectories, write_records
from cpmi.answers import arrived_at, choice_of, final_answer_of
from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict, outcome
from cpmi.labelers.negatives import NegativeSettings, find_negatives

RunCpmi = Callable[..., tuple[int, str, str]]
LETTERS = ("A", "B", "C", "D")
FOLIO = ("True", "False", "Uncertain")
LOGICNLI = ("entailment", "contradiction", "neutral", "self_contradiction")


@pytest.mark.parametrize(
    ("answer", "choices", "chosen"),
    [
        ("B", LETTERS, "B"),
        ("b", LETTERS, "B"),
        ("(B)", LETTERS, "B"),
        ("B. Paris", LETTERS, "B"),
        ("(B) Paris", LETTERS, "B"),
        ("option C", LETTERS, "C"),
        ("\\text{D}", LETTERS, "D"),
        ("E", LETTERS, None),
        ("A and B", LETTERS, None),
        ("A bird", LETTERS, None),
        ("Because of it", LETTERS, None),
        ("", LETTERS, None),
        ("true", FOLIO, "True"),
        ("**False**", FOLIO, "False"),
        ("\\text{Unknown}", FOLIO, "Uncertain"),
        ("cannot be determined", FOLIO, "Uncertain"),
        ("The conclusion is false", FOLIO, "False"),
        ("not true", FOLIO, None),
        ("true or false", FOLIO, None),
        ("Contradiction", LOGICNLI, "contradiction"),
        ("self-contradiction", LOGICNLI, "self_contradiction"),
        ("\\text{self\\_contradiction}", LOGICNLI, "self_contradiction"),
        ("unknown", LOGICNLI, None),
    ],
)
def test_an_answer_names_one_choice_or_none(answer: str, choices: tuple[str, ...], chosen: str | None) -> None:
    assert choice_of(answer, choices) == chosen


@pytest.mark.parametrize(
    ("text", "choices", "chosen"),
    [
        ("So \\boxed{(C)}.", LETTERS, "C"),
        ("The answer is: E", LETTERS, None),  # stated, and none of them: no guess from the rest of the text
        ("Option (A) looks right, but (B) is.", LETTERS, "B"),
        ("A thing that is B", LETTERS, None),  # a bare letter may be an article
        ("It is not True. So the conclusion is False.", FOLIO, "False"),
        ("This is a self-contradiction.", LOGICNLI, "self_contradiction"),
        ("Nothing is said.", LOGICNLI, None),
    ],
)
def test_where_a_solution_arrives(text: str, choices: tuple[str, ...], chosen: str | None) -> None:
    assert arrived_at(text, "", choices) == chosen
    assert final_answer_of(Trajectory("?", ("First.", text), choices=choices)) == chosen


def test_a_right_choice_is_right() -> None:
    with Grader() as grader:
        for final, verdict in (("(B) Paris", Verdict.SAME), ("A", Verdict.DIFFERENT), ("E", None)):
            one = Trajectory("?", ("x",), gold_answer="B", final_answer=final, choices=LETTERS)
            assert outcome(one, grader) is verdict


def test_the_others_are_hard_negatives() -> None:
    right = Trajectory("?", ("x",), gold_answer="True", final_answer="True", choices=FOLIO)
    wrong = Trajectory("?", ("x",), gold_answer="True", final_answer="Unknown", choices=FOLIO)
    with Grader() as grader:
        found = find_negatives([right, wrong], NegativeSettings(), grader)
        both = find_negatives([wrong], NegativeSettings.parse("own,choice"), grader)
    kinds = [[(each.text, each.kind) for each in one.negatives] for one in (*found, *both)]
    assert kinds == [
        [("False", "choice"), ("Uncertain", "choice")],
        [("Uncertain", "own")],
        [("Uncertain", "own"), ("False", "choice")],
    ]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("A",), "a list of two or more different texts"),
        (("A", "A"), "a list of two or more different texts"),
        (("A", " "), "a list of two or more different texts"),
        (("A", 3), "a list of two or more different texts"),
        (("A", "B"), "the gold answer 'C' is none of the choices"),
    ],
)
def test_choices_that_are_none(choices: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trajectory("?", ("x",), gold_answer="C", choices=choices)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_choices_go_through_files(tmp_path: Path, suffix: str) -> None:
    with_choices = Trajectory("?", ("x",), gold_answer="A", choices=LETTERS)
    without = Trajectory("??", ("x",), gold_answer="A")
    write_records(tmp_path / f"t{suffix}", [with_choices, without])
    assert list(read_trajectories(tmp_path / f"t{suffix}")) == [with_choices, without]


def test_logic_goes_from_its_file_to_a_table(
    run_cpmi: RunCpmi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FOLIO's own format, the toy model: questions, candidates, CPMI labels against the other answers, a table."""
    monkeypatch.chdir(tmp_path)
    first = {"premises": ["All men are mortal.", "Socrates is a man."], "conclusion": "Socrates is mortal."}
    rows = [first | {"label": "True"}, first | {"conclusion": "Socrates is Greek.", "label": "Unknown"}]
    Path("folio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = ("--model", "toy:", "--n", "3", "--max-tokens", "40", "-o", "c.jsonl")
    assert run_cpmi("solve", "folio.jsonl", "--task", "folio", *made)[0] == 0
    candidates = list(read_trajectories("c.jsonl"))
    assert {each.gold_answer for each in candidates} == {"True", "Uncertain"}
    answered = [
        dataclasses.replace(
            each, steps=(*each.steps, f"So it is {FOLIO[i % 3]}."), tags={**each.tags, "finish_reason": "stop"}
        )
        for i, each in enumerate(candidates)
    ]
    write_records(Path("c2.jsonl"), answered)
    assert run_cpmi("label", "c2.jsonl", "--model", "toy:", "--output", "labels")[0] == 0
    kinds = {record.trajectory_id: record.details["kinds"] for record in read_rewards("labels")}
    assert list(kinds.values())[:3] == [["gold", "choice", "choice"], ["gold", "own"], ["gold", "own"]]
    status, out, _ = run_cpmi(
        "evaluate", "best-of-n", "--rewards", "labels", "--aggregation", "last", "--bootstrap", "20"
    )
    assert status == 0
    assert "| one sample | - | - | 33.3" in out
    assert "made knowing the right answer" in out
