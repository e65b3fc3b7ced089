"""Question sets of logical reasoning: the text of a question says what is given, what is asked, and how to answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from cpmi.errors import InputError
from cpmi.sources import Row
from cpmi.tasks.task import NotInTaskError, Question, choice, first, lines, multiple_choice, one_of, text

FOLIO = ("True", "False", "Uncertain")
LOGICNLI = ("entailment", "contradiction", "neutral", "self_contradiction")

_ASKED = (
    "Is the statement an entailment (it follows from the facts and rules), a contradiction (its negation follows), "
    "neutral (neither follows) or a self_contradiction (both follow)?"
)


def folio(row: Row) -> Iterator[Question]:
    """FOLIO: does a conclusion follow from the premises; "Unknown", as its first release has it, is "Uncertain"."""
    premises = "\n".join(lines(row.get("premises"), "premises"))
    asked = "Given the premises, is the conclusion True, False or Uncertain?"
    yield Question(
        f"Premises:\n{premises}\n\nConclusion: {text(row, 'conclusion')}\n\n{asked}",
        one_of(row, "label", FOLIO),
        choices=FOLIO,
        id=first(row, "example_id"),
        tags={"story": first(row, "story_id"), "kind": first(row, "source")},
    )


def logiqa2(row: Row) -> Iterator[Question]:
    """LogiQA 2.0 (and the first LogiQA): a text, a question about it, four options."""
    about = [text(row, "text", "context"), text(row, "question", "query")]
    question = multiple_choice(row, about, ["options"], ["answer", "correct_option", "label"])
    kinds = first(row, "type")
    if isinstance(kinds, dict):
        kinds = [kind for kind, present in kinds.items() if present]
    yield dataclasses.replace(question, id=first(row, "id"), tags={"reasoning": kinds})


def logicnli(row: Row) -> Iterator[Question]:
    """LogicNLI: a story with many statements, a question each; or (on the hub) a statement a row."""
    if "statements" not in row.values:
        yield _nli(text(row, "premise"), text(row, "hypothesis"), one_of(row, "label", LOGICNLI))
        return
    facts, rules = ("\n".join(lines(row.get(name), name)) for name in ("facts", "rules"))
    statements, labels = row.texts("statements"), row.texts("labels")
    if not statements:
        raise NotInTaskError("no statements")
    if len(statements) != len(labels):
        raise InputError(f"{len(labels)} labels for {len(statements)} statements")
    for number, (statement, label) in enumerate(zip(statements, labels, strict=True)):
        question = _nli(f"Facts:\n{facts}\n\nRules:\n{rules}", statement, choice(label, "labels", LOGICNLI))
        yield dataclasses.replace(question, id=first(row, "story_id", "id"), part=number)


def _nli(given: str, statement: str, label: str | None) -> Question:
    return Question(f"{given}\n\nStatement: {statement.strip()}\n\n{_ASKED}", label, choices=LOGICNLI)
