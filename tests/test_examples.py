"""The example data that comes with the project says what it claims."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from cpmi.answers import extract_answer
from cpmi.grader import Grader, Verdict
from cpmi.prompts import load_templates
from cpmi.records import Trajectory, read_trajectories
from cpmi.sources import Fields, read_source
from cpmi.steps import split_steps

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

PROBLEMS = list(read_trajectories(EXAMPLES / "word_problems.jsonl"))
RIGHT = [t for t in PROBLEMS if t.id.endswith("-right")]
WRONG = [t for t in PROBLEMS if t.id.endswith("-wrong")]
PLAIN = Fields(steps="solution", gold_answer="answer", tags=("topic",))

SIGNS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
EQUATION = re.compile(r"(?P<left>\(?\d[\d.]*(?: [-+*/] \(?\d[\d.]*\)?)+) = (?P<right>\d+(?:\.\d+)?)")


def value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        return SIGNS[type(node.op)](value(node.left), value(node.right))
    assert isinstance(node, ast.Constant)
    return Fraction(str(node.value))


def equations(text: str) -> Iterator[bool]:
    """For every ``2 * (14 + 9) = 46`` in a text, whether it holds."""
    for match in EQUATION.finditer(text):
        yield value(ast.parse(match["left"], mode="eval").body) == Fraction(match["right"])


def false_equations(trajectory: Trajectory) -> list[int]:
    return [i for i, step in enumerate(trajectory.steps) if not all(equations(step))]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def test_the_check_of_equations_can_tell() -> None:
    assert list(equations("so 2 * (14 + 9) = 46 meters, 0.75 * 60 = 46. And 12 / 8 = 1.5")) == [True, False, True]


def test_every_problem_has_a_right_and_a_wrong_solution() -> None:
    assert len(PROBLEMS) == len(RIGHT) + len(WRONG)
    assert len(RIGHT) >= 8
    pairs = {t.id.removesuffix("-right"): t for t in RIGHT}
    assert pairs.keys() == {t.id.removesuffix("-wrong") for t in WRONG}
    for wrong in WRONG:
        right = pairs[wrong.id.removesuffix("-wrong")]
        assert (right.question, right.gold_answer) == (wrong.question, wrong.gold_answer)
        assert not set(right.steps) & set(wrong.steps)  # each in its own words


@pytest.mark.parametrize("trajectory", PROBLEMS, ids=lambda t: t.id)
def test_labels_are_true_up_to_the_first_error_and_null_after_it(trajectory: Trajectory) -> None:
    first = trajectory.first_error
    assert trajectory.tags["source"] == "example"
    assert 3 <= len(trajectory.steps) <= 6
    if trajectory in RIGHT:
        assert trajectory.step_labels == (True,) * len(trajectory.steps)
        assert set(trajectory.tags) == {"source"}
    else:
        assert first is not None
        rest = len(trajectory.steps) - first - 1
        assert trajectory.step_labels == (*(True,) * first, False, *(None,) * rest)
        assert trajectory.tags["error"]


@pytest.mark.parametrize("trajectory", PROBLEMS, ids=lambda t: t.id)
def test_only_right_solutions_arrive_at_the_gold_answer_but_for_the_marked_one(
    trajectory: Trajectory, grader: Grader
) -> None:
    assert trajectory.gold_answer is not None
    assert trajectory.final_answer is not None
    assert extract_answer(trajectory.steps[-1]) == trajectory.final_answer
    expected = trajectory in RIGHT or "exception" in trajectory.tags
    assert (grader.compare(trajectory.gold_answer, trajectory.final_answer) is Verdict.SAME) is expected


def test_one_wrong_solution_arrives_at_the_right_answer() -> None:
    (exception,) = (t for t in PROBLEMS if "exception" in t.tags)
    assert (exception.id, exception.tags["exception"]) == ("concert-wrong", "right answer by wrong reasoning")


@pytest.mark.parametrize("trajectory", PROBLEMS, ids=lambda t: t.id)
def test_the_arithmetic_is_right_but_for_the_slips(trajectory: Trajectory) -> None:
    assert all(len(list(equations(step))) == step.count(" = ") > 0 for step in trajectory.steps)
    slips = {"theater-wrong": [1], "concert-wrong": [0, 2]}
    assert false_equations(trajectory) == slips.get(trajectory.id, [])


def test_the_errors_are_of_many_kinds_and_at_many_places() -> None:
    assert len({t.tags["error"] for t in WRONG}) >= 6
    assert {t.first_error for t in WRONG} == {0, 1, 2, 3}
    assert any(t.first_error == len(t.steps) - 1 for t in WRONG)


def test_plain_solutions_become_trajectories() -> None:
    made = list(read_source("plain", [str(EXAMPLES / "plain_solutions.jsonl")], PLAIN))
    assert [len(t.steps) for t in made] == [3, 4, 3, 3, 4, 3]
    assert len({t.tags["topic"] for t in made}) == 6
    for trajectory in made:
        assert extract_answer(trajectory.steps[-1]) == trajectory.gold_answer
        assert sum(len(list(equations(step))) for step in trajectory.steps) >= 2
        assert false_equations(trajectory) == []


def test_plain_solutions_show_every_way_to_split() -> None:
    rows = map(json.loads, (EXAMPLES / "plain_solutions.jsonl").read_text(encoding="utf-8").splitlines())
    solutions = [row["solution"] for row in rows]
    for way in ("step-k", "blank-lines", "numbered", "lines"):
        assert any(split_steps(text, way) == split_steps(text) for text in solutions)


def test_templates() -> None:
    first, second = load_templates(str(EXAMPLES / "templates.json"))
    assert first.instruction != second.instruction
    assert first.target("42") == ("So the answer is", " 42")
    assert second.target("42") == ("Final result:", " 42")
