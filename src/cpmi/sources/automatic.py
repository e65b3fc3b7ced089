"""Data sets whose steps were judged by rollouts: Math-Shepherd, MATH-APS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.reader import Context
from cpmi.sources.rows import Row, answer_text, float_of, typed

# The answer begins with no space: else a long run of spaces would take quadratic time.
_STATED = re.compile(r"The answer is:?\s*(?P<answer>(?!The answer is)\S(?:(?!The answer is).)*)$", re.DOTALL)


def math_shepherd(row: Row, context: Context) -> Iterator[Trajectory]:
    """Math-Shepherd (arXiv 2312.08935, peiyi9979/Math-Shepherd): labels from rollouts, not from people.

    In ``input`` each step ends with ``ки``, and ``label`` is the same text with ``+`` or ``-`` there: whether any
    rollout from that step reached the right answer. The field trains and tests on these as step labels, so they are
    ``step_labels`` here too, with ``label_kind=automatic``. The question ends before the first "Step 1:"; steps keep
    their headers and lose the white space around the tag.
    """
    text, marked = row.text("input"), row.text("label")
    *parts, rest = text.split("ки")
    marks: list[bool | None] = []
    at = 0
    for part in parts:
        mark = marked[at + len(part) : at + len(part) + 1]
        if not marked.startswith(part, at) or mark not in ("+", "-"):
            raise InputError(f"field 'label' does not have + or - for tag {len(marks) + 1} of 'input'")
        marks.append(mark == "+")
        at += len(part) + 1
    if rest.strip():  # a last step that no rollout judged
        parts.append(rest)
        marks.append(None)
    question, header, first = parts[0].partition("Step 1:") if parts else ("", "", "")
    if not header or not question.strip():
        raise InputError("field 'input' must be a question, then steps from 'Step 1:' on, each ended by 'ки'")
    steps = tuple(part.strip() for part in (header + first, *parts[1:]))
    answer = _STATED.search(steps[-1])
    task = row.or_none("task")
    yield Trajectory(
        question=question.strip(),
        steps=steps,
        final_answer=answer_text(answer["answer"].strip(), "input") if answer else None,
        step_labels=tuple(marks),
        tags=context.tags(subset=task, label_kind="automatic"),
    )


def math_aps(row: Row, context: Context) -> Iterator[Trajectory]:
    """MATH-APS (OmegaPRM, arXiv 2406.06592; files of openreasoner/openr): a tree of rollouts with Monte Carlo values.

    Every leaf is one trajectory. The values are no labels of people, nor of steps that were ever judged right or
    wrong: they stay in the tags ``mc_values`` (one per step) and ``mc_value_question``, as JSON. In the tree file a
    node holds its own text; the flat file lists the same nodes in preorder, each with all the text from the question
    on, so a node's parent is the nearest open node whose text it goes on from (a node that goes on from its sibling
    cannot be told from a child there; its text and values are right either way). White space around a step is dropped.
    """
    question, nodes = row.text("question"), row.get("reasoning_steps")
    paths = _flat_paths(nodes) if isinstance(nodes, list) else _tree_paths(nodes)
    if nodes == []:
        context.tally.skip("no rollouts", row.place)
    for (_, question_value), *path in paths:
        yield Trajectory(
            question=question,
            steps=tuple(text.strip() for text, _ in path),
            gold_answer=row.answer("final_answer"),
            tags=context.tags(
                mc_values=[value for _, value in path],
                mc_value_question=question_value,
                question_id=row.or_none("question_id"),
            ),
        )


Valued = tuple[str, float]


def _valued(node: Any, text: str) -> Valued:
    node = typed(node, dict, "reasoning_steps", "a list or a tree of objects")
    value = float_of(node.get("mc_value"), "mc_value", "a number")
    return str(typed(node.get(text), str, text, "a text")), value


def _tree_paths(root: Any) -> Iterator[list[Valued]]:
    """Each path from the root to a leaf; without recursion, since trees may be deep."""
    stack: list[tuple[Any, list[Valued]]] = [(root, [])]
    while stack:
        node, above = stack.pop()
        path = [*above, _valued(node, "text")]
        children = typed(node.get("children") or [], list, "children", "a list")
        stack.extend((child, path) for child in reversed(children))
        if not children:
            yield path


def _flat_paths(nodes: list[Any]) -> Iterator[list[Valued]]:
    open_nodes: list[Valued] = []  # the whole text of each node from the root to the one read last
    for node in nodes:
        text, value = _valued(node, "solution_prefix")
        leaf = list(open_nodes)
        while open_nodes and not (text.startswith(open_nodes[-1][0]) and len(text) > len(open_nodes[-1][0])):
            open_nodes.pop()
        if leaf and len(open_nodes) < len(leaf):  # the one read last has no child
            yield _own_texts(leaf)
        if leaf and not open_nodes:
            raise InputError("field 'reasoning_steps' must list prefixes that all go on from the first")
        open_nodes.append((text, value))
    if open_nodes:
        yield _own_texts(open_nodes)


def _own_texts(path: list[Valued]) -> list[Valued]:
    before = ["", *(text for text, _ in path[:-1])]
    return [(text[len(above) :], value) for above, (text, value) in zip(before, path, strict=True)]
