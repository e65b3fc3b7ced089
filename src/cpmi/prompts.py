"""Templates, and the token tree that scores every answer after every context of one trajectory.

Each piece of text (opening, step, answer cue with its answer) is turned into tokens by itself, so where it begins is
known by construction, an answer has the same tokens with and without a step, and equal beginnings are shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cpmi.errors import InputError
from cpmi.protocols import IntArray, Tokenizing, TokenTree

STEP_SEPARATOR = "\n\n"  # the paper joins steps by a blank line

Context = tuple[int, ...]  # the indices of the steps shown, in order
ContextKind = Literal["marginal", "cumulative", "leave-one-out"]
Span = Literal["target", "answer"]


@dataclass(frozen=True, slots=True)
class Template:
    """How to ask: an instruction before the steps, and a cue after them that the answer completes.

    Attributes:
        instruction: the text before the steps; holds ``{question}``.
        cue: the text scored after the steps; holds ``{answer}``, usually at its end.

    Raises:
        InputError: a placeholder is missing or repeated, or half of a surrogate pair is there.
    """

    instruction: str
    cue: str

    def __post_init__(self) -> None:
        for name, text, placeholder in (
            ("instruction", self.instruction, "{question}"),
            ("cue", self.cue, "{answer}"),
        ):
            if not isinstance(text, str) or text.count(placeholder) != 1:
                raise InputError(f"a template's {name} must be a text that holds {placeholder} once, not {text!r:.200}")
            if not text.isprintable() and any("\ud800" <= each <= "\udfff" for each in text):
                raise InputError(f"a template's {name} holds half of a surrogate pair, which is not text")

    def opening(self, question: str) -> str:
        """Everything before the first step."""
        return self.instruction.replace("{question}", question)

    def target(self, answer: str) -> tuple[str, str]:
        """The cue before the answer, and the answer with what follows it.

        A space before the answer goes with the answer: that is where tokenizers put it.
        """
        before, _, after = self.cue.partition("{answer}")
        stripped = before.rstrip(" ")
        return stripped, before[len(stripped) :] + answer + after


_PLAIN = "Solve the following problem step by step.\n\nProblem: {question}\n\nSolution:\n\n"

INSTRUCTIONS = (
    Template(_PLAIN, "The answer is: {answer}"),
    Template(
        "You are a careful tutor. Work through the exercise below and state the result at the end.\n\n"
        "Exercise: {question}\n\nWorking:\n\n",
        "The answer is: {answer}",
    ),
    Template("Question: {question}\n\nLet's think it through.\n\n", "The answer is: {answer}"),
    Template(
        "Here is a problem and the reasoning of a student who got full marks.\n\n### Problem\n{question}\n\n"
        "### Reasoning\n\n",
        "The answer is: {answer}",
    ),
)
"""Diversity by instruction, as in the paper (the wording is our own): each has its own trunk of tokens."""

CUES = (
    Template(_PLAIN, "The answer is: {answer}"),
    Template(_PLAIN, "Answer: {answer}"),
    Template(_PLAIN, "Answer = {answer}"),
    Template(_PLAIN, "Therefore: {answer}"),
)
"""Diversity by cue alone: one instruction, so all share the trunk and each costs a few tokens more."""

TEMPLATE_SETS: Mapping[str, tuple[Template, ...]] = {"instructions": INSTRUCTIONS, "cues": CUES}


def load_templates(name_or_file: str, count: int | None = None) -> tuple[Template, ...]:
    """The first ``count`` templates of a built-in set, or of a JSON file ``[{"instruction", "cue"}, ...]``.

    Raises:
        InputError: no such set or file, a template that is not one, or fewer than ``count``.
    """
    if (templates := TEMPLATE_SETS.get(name_or_file)) is None:
        templates = _templates_from_file(Path(name_or_file))
    if count is not None and not 1 <= count <= len(templates):
        raise InputError(f"{name_or_file}: has {len(templates)} templates, {count} asked for")
    return templates[:count]


def _templates_from_file(path: Path) -> tuple[Template, ...]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(TEMPLATE_SETS)
        raise InputError(
            f"templates: {path} is neither a built-in set ({known}) nor a file that can be read"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON in UTF-8 ({error})") from error
    fields = {"instruction", "cue"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == fields for row in rows):
        raise InputError(f'{path}: expected a list of objects {{"instruction": ..., "cue": ...}}')
    try:
        return tuple(Template(**row) for row in rows)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


# --- contexts -------------------------------------------------------------------------------------------------------


def step_contexts(kind: ContextKind, steps: int) -> list[tuple[Context, Context]]:
    """For each step the steps shown "with" it and "without" it.

    ``marginal``: the step alone / nothing. ``cumulative``: the steps up to it / before it. ``leave-one-out``: all
    steps / all but it.
    """
    everything = tuple(range(steps))
    if kind == "marginal":
        return [((t,), ()) for t in everything]
    if kind == "cumulative":
        return [(everything[: t + 1], everything[:t]) for t in everything]
    return [(everything, everything[:t] + everything[t + 1 :]) for t in everything]


# --- trees ----------------------------------------------------------------------------------------------------------


class TreeBuilder:
    """Collects token sequences that share beginnings; ``build`` puts the nodes in preorder."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._children: list[dict[int, int]] = []
        self._roots: dict[int, int] = {}
        self._scored: list[bool] = []

    def insert(self, parent: int, ids: Sequence[int], *, scored: bool = False) -> list[int]:
        """Walk from ``parent`` (-1: no parent) along ``ids``, adding what is not there; return the nodes walked."""
        nodes = []
        for token in ids:
            siblings = self._roots if parent < 0 else self._children[parent]
            node = siblings.get(token)
            if node is None:
                node = siblings[token] = len(self._ids)
                self._ids.append(token)
                self._children.append({})
                self._scored.append(False)
            self._scored[node] |= scored
            nodes.append(node)
            parent = node
        return nodes

    def __len__(self) -> int:
        return len(self._ids)

    def build(self) -> tuple[TokenTree, IntArray]:
        """The tree, and for each node as ``insert`` named it its index in the tree."""
        order: list[int] = []
        parents: list[int] = []
        index = np.empty(len(self._ids), dtype=np.int64)
        stack = [(node, -1) for node in reversed(self._roots.values())]
        while stack:
            node, parent = stack.pop()
            index[node] = len(order)
            order.append(node)
            parents.append(parent)
            stack += [(child, int(index[node])) for child in reversed(self._children[node].values())]
        ids = np.array([self._ids[node] for node in order], dtype=np.int64)
        scored = np.array([self._scored[node] for node in order], dtype=np.bool_)
        return TokenTree(ids, np.array(parents, dtype=np.int64), scored), index


@dataclass(frozen=True, slots=True, eq=False)
class ScoringPlan:
    """A tree, and where in it each answer stands.

    Attributes:
        tree: one per instruction; templates that differ in the cue alone share it.
        spans: ``spans[template][context][answer]``: the nodes whose log-probabilities make up that answer's score.
        steps: ``steps[step]``: the nodes of each step behind all steps before it, where they were asked for.
    """

    tree: TokenTree
    spans: list[dict[Context, list[IntArray]]]
    steps: tuple[IntArray, ...] = ()


def plan_scoring(
    question: str,
    steps: Sequence[str],
    answers: Sequence[str],
    contexts: Sequence[Context],
    templates: Sequence[Template],
    tokenizer: Tokenizing,
    span: Span = "target",
    *,
    steps_too: bool = False,
) -> list[ScoringPlan]:
    """Trees that score every answer after every context under every template.

    Args:
        answers: the strings to score, e.g. the gold answer and then the wrong ones.
        contexts: which steps each context shows.
        span: what counts as the answer: the whole cue with the answer (``target``, as in the paper), or only the
            answer.
        steps_too: score the steps as well, each behind all before it.

    Returns:
        One plan per distinct instruction; their templates, one after the other, are ``templates`` in an order of
        their own.
    """
    step_ids = [tokenizer.encode(step.strip() + STEP_SEPARATOR) for step in steps]
    by_instruction: dict[str, list[Template]] = {}
    for template in templates:
        by_instruction.setdefault(template.instruction, []).append(template)
    plans = []
    for group in by_instruction.values():
        builder = TreeBuilder()
        opening = (*tokenizer.prefix, *tokenizer.encode(group[0].opening(question), first=True))
        root = builder.insert(-1, opening)[-1]

        ends = _context_ends(builder, root, step_ids, contexts)
        targets = [[_target_ids(template, answer, tokenizer, span) for answer in answers] for template in group]
        spans: list[dict[Context, list[list[int]]]] = [
            {context: [_insert_target(builder, ends[context], *ids) for ids in template] for context in contexts}
            for template in targets
        ]
        trunk = list[list[int]]()
        for ids in step_ids if steps_too else ():
            end = next((path[-1] for path in reversed(trunk) if path), root)
            trunk.append(builder.insert(end, ids, scored=True))
        tree, index = builder.build()
        found = [{c: [index[nodes] for nodes in lists] for c, lists in each.items()} for each in spans]
        plans.append(ScoringPlan(tree, found, tuple(index[nodes] for nodes in trunk)))
    return plans


def _context_ends(
    builder: TreeBuilder, root: int, step_ids: Sequence[Sequence[int]], contexts: Sequence[Context]
) -> dict[Context, int]:
    """Insert every context behind ``root``; where each one, and each of its beginnings, ends."""
    ends: dict[Context, int] = {(): root}
    for context in contexts:
        for length in range(len(context)):
            before, here = context[:length], context[: length + 1]
            if here not in ends:
                path = builder.insert(ends[before], step_ids[context[length]])
                ends[here] = path[-1] if path else ends[before]  # a tokenizer may have nothing for a step's characters
    return ends


def _target_ids(
    template: Template, answer: str, tokenizer: Tokenizing, span: Span
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens shown but not scored, and tokens scored."""
    cue, completion = (tokenizer.encode(text) if text else () for text in template.target(answer))
    return ((), cue + completion) if span == "target" else (cue, completion)


def _insert_target(builder: TreeBuilder, node: int, shown: Sequence[int], scored: Sequence[int]) -> list[int]:
    path = builder.insert(node, shown)
    return builder.insert(path[-1] if path else node, scored, scored=True)


# --- the steps themselves -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class StepsPlan:
    """A tree of solutions of one question, and where in it each of their steps stands.

    Attributes:
        tree: every step is scored; solutions share the opening, and the steps that they begin with alike.
        spans: ``spans[solution][step]``: the nodes whose log-probabilities make up that step's score, its separator's
            included; solutions by their index in the request.
    """

    tree: TokenTree
    spans: dict[int, list[IntArray]]


def plan_steps(
    question: str,
    solutions: Sequence[Sequence[str]],
    template: Template,
    tokenizer: Tokenizing,
    max_nodes: int = 4096,
) -> list[StepsPlan]:
    """Trees that score every step of every solution after the question and the steps before it.

    Args:
        solutions: the steps of each; joined and turned into tokens as in ``plan_scoring``.
        max_nodes: a tree is closed before a solution that would make it larger, in so far as it is not that solution
            alone; attention over a tree costs the square of its nodes.

    Returns:
        Plans that together hold each solution once, in order.
    """
    opening = (*tokenizer.prefix, *tokenizer.encode(template.opening(question), first=True))
    plans: list[StepsPlan] = []
    builder, paths = TreeBuilder(), dict[int, list[list[int]]]()
    for number, steps in enumerate(solutions):
        step_ids = [tokenizer.encode(step.strip() + STEP_SEPARATOR) for step in steps]
        if paths and len(builder) + sum(map(len, step_ids)) > max_nodes:
            plans.append(_steps_plan(builder, paths))
            builder, paths = TreeBuilder(), {}
        parent = builder.insert(-1, opening)[-1]
        paths[number] = []
        for ids in step_ids:
            paths[number].append(builder.insert(parent, ids, scored=True))
            parent = (paths[number][-1] or [parent])[-1]
    return [*plans, _steps_plan(builder, paths)] if paths else plans


def _steps_plan(builder: TreeBuilder, paths: dict[int, list[list[int]]]) -> StepsPlan:
    tree, index = builder.build()
    return StepsPlan(tree, {number: [index[nodes] for nodes in lists] for number, lists in paths.items()})
