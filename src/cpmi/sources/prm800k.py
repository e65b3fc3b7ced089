"""PRM800K, in three forms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.reader import Context, Made
from cpmi.sources.rows import Row, at_place, typed

_RATINGS: dict[int | None, bool | None] = {1: True, 0: True, -1: False, None: None}
_ANSWER_MARK = "\n\n# Answer\n\n"


@dataclass(frozen=True, slots=True)
class _Rated:
    """A step that people rated, and the steps before it: a node of the tree that the labelers saw."""

    row: Row
    path: tuple[str, ...]
    rating: int | None
    human: bool
    is_solution: bool
    answer: str | None


def prm800k(rows: Iterator[Row], context: Context) -> Made:
    """PRM800K (arXiv 2305.20050, openai/prm800k): every step rated by people; every leaf of the step tree is one row.

    A rating of 1 (good) or 0 (neutral: not wrong, but no progress) is True, as in the paper's own training, -1 is
    False, null (a step that a labeler wrote, or left alone) None; the tag ``ratings`` keeps them. A rejected
    alternative ends a trajectory of its own after the chosen steps before it. Three forms, told apart by their fields:

    * official: ``question``, ``label.steps[].completions``. "# Answer" and what follows it leaves the last step and
      becomes ``final_answer``;
    * stepwise: ``instruction``, ``responses`` (the steps before), ``next_response``, ``rating``; rows of one problem
      stand together. Where a step stands there twice, the later rating counts;
    * trajectories: ``problem``, ``steps``, ``ratings``.
    """
    for is_stepwise, group in itertools.groupby(rows, key=lambda row: "next_response" in row.values):
        if is_stepwise:
            for _, problem in itertools.groupby(group, key=lambda row: row.values.get("instruction")):
                nodes = [_stepwise_node(row) for row in problem]
                yield from _leaves(nodes, nodes[0].row.text("instruction"), None, {}, context)
        else:
            for row in group:
                if "label" in row.values and isinstance(row.values.get("question"), Mapping):
                    yield from _official(row, context)
                else:
                    yield _rated_steps(row, context)


def _stepwise_node(row: Row) -> _Rated:
    with at_place(row.place):
        row.text("instruction")
        return _Rated(
            row=row,
            path=(*row.texts("responses"), row.text("next_response")),
            rating=_rating(row.get("rating")),
            human=bool(row.or_none("is_human_response")),
            is_solution=bool(row.or_none("is_solution")),
            answer=row.answer("answer"),
        )


def _rating(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | None) or value not in _RATINGS:
        raise InputError(f"a rating must be 1, 0, -1 or null, found {value!r}")
    return None if value is None else int(value)


def _leaves(nodes: list[_Rated], question: str, gold: str | None, tags: dict[str, Any], context: Context) -> Made:
    inner = {node.path[:-1] for node in nodes}
    latest: dict[tuple[str, ...], _Rated] = {}
    for node in nodes:
        if node.path in latest and latest[node.path].rating != node.rating:
            context.tally.note("steps rated twice and differently; the later rating counts", node.row.place)
        latest[node.path] = node
    for node in nodes:
        if node.path in inner:
            continue
        branch = [latest.get(node.path[: i + 1]) for i in range(len(node.path))]
        with at_place(node.row.place):
            trajectory = _rated(
                context,
                question=question,
                steps=node.path,
                gold=gold,
                answer=node.answer,
                ratings=[step.rating if step else None for step in branch],
                human=[bool(step and step.human) for step in branch],
                tags={"is_solution": node.is_solution, **tags},
            )
        yield node.row.place, trajectory


def _rated(
    context: Context,
    *,
    question: str,
    steps: tuple[str, ...],
    gold: str | None,
    answer: str | None,
    ratings: list[int | None],
    human: list[bool],
    tags: dict[str, Any],
) -> Trajectory:
    return Trajectory(
        question=question,
        steps=steps,
        gold_answer=gold,
        final_answer=answer,
        step_labels=tuple(_RATINGS[rating] for rating in ratings),
        tags=context.tags(
            subset=re.sub("_(stepwise|trajectories)$", "", context.stem),
            label_kind="human",
            ratings=ratings,
            human_steps=[i for i, by_human in enumerate(human) if by_human] or None,
            **tags,
        ),
    )


def _rated_steps(row: Row, context: Context) -> tuple[str, Trajectory]:
    """One row of the trajectories form."""
    with at_place(row.place):
        ratings = [_rating(value) for value in typed(row.get("ratings"), list, "ratings", "a list of ratings")]
        human = row.or_none("is_human_step") or [False] * len(ratings)
        return row.place, _rated(
            context,
            question=row.text("problem"),
            steps=row.texts("steps"),
            gold=None,
            answer=row.answer("answer"),
            ratings=ratings,
            human=typed(human, list, "is_human_step", "a list of true or false"),
            tags={"is_solution": row.or_none("is_solution")},
        )


def _official(row: Row, context: Context) -> Made:
    """One row of the official form: one labeler's way through one problem."""
    with at_place(row.place):
        nodes = _official_nodes(row, context)
        question, gold = row.text("question.problem"), row.answer("question.ground_truth_answer")
        names = ("generation", "is_quality_control_question", "is_initial_screening_question")
        tags = {name: row.or_none(name) for name in names}
        tags["finish_reason"] = row.or_none("label.finish_reason")
    if not nodes:
        context.tally.skip("no step was rated", row.place)
    yield from _leaves(nodes, question, gold, tags, context)


def _official_nodes(row: Row, context: Context) -> list[_Rated]:
    steps = typed(row.get("label.steps"), list, "label.steps", "a list of objects")
    solved = row.or_none("label.finish_reason") == "solution"
    nodes: list[_Rated] = []
    prefix: tuple[str, ...] = ()
    for number in range(len(steps)):
        at = f"label.steps.{number}"
        completions = typed(row.or_none(f"{at}.completions") or [], list, f"{at}.completions", "a list")
        chosen = row.or_none(f"{at}.chosen_completion")
        paths = [f"{at}.completions.{i}" for i in range(len(completions))]
        if chosen is not None and not (isinstance(chosen, int) and 0 <= chosen < len(paths)):
            raise InputError(f"field '{at}.chosen_completion' must be null or count from 0 to {len(paths) - 1}")
        if row.or_none(f"{at}.human_completion") is not None:
            paths.append(f"{at}.human_completion")
            chosen = len(paths) - 1 if chosen is None else chosen
        following = None
        for index, path in enumerate(paths):
            text, _, answer = row.text(f"{path}.text").partition(_ANSWER_MARK)
            node = _Rated(
                row=row,
                path=(*prefix, text),
                rating=_rating(row.or_none(f"{path}.rating")),
                human=path.endswith("human_completion"),
                is_solution=solved and index == chosen and number == len(steps) - 1,
                answer=answer.strip() or None,
            )
            nodes.append(node)
            following = node.path if index == chosen else following
        if following is None:
            if any(row.or_none(f"label.steps.{later}.completions") for later in range(number + 1, len(steps))):
                context.tally.note("steps after one where nothing was chosen, left out", row.place)
            break
        prefix = following
    return nodes
