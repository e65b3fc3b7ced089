"""Joining gold answers by question text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cpmi.errors import InputError
from cpmi.gold import GoldAnswers, JoinReport, clean_answer, join_gold, last_boxed, load_gold
from cpmi.records import Trajectory
from cpmi.sources import read_any, read_source

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data files are not at {DATA}")


def asked(question: str, gold: str | None = None) -> Trajectory:
    return Trajectory(question=question, steps=("a",), gold_answer=gold)


def gold_of(*pairs: tuple[str, str]) -> GoldAnswers:
    gold = GoldAnswers()
    for question, answer in pairs:
        gold.add(question, answer)
    return gold


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("answer", "She has 3 + 4 = 7.\n#### 1,234", "1234"),
        ("answer", "#### 5\n#### -1,000,000.5 ", "-1000000.5"),
        ("answer", "#### ", None),
        ("answer", "12", "12"),
        ("answer", 27.0, "27"),
        ("answer", 0.5, "0.5"),
        ("answer", "", None),
        ("answer", None, None),
        ("answer", r"so \boxed{4}", "4"),
        ("answer", "(1, 2)", "(1, 2)"),
        ("answer", "1,234", "1,234"),
        ("solution", "no box: 5", None),
        ("meta.solution", r"\boxed{1} or \boxed{2}", "2"),
        ("final_answer", ["$\\frac{1}{2}$", "3", "$x$ or $y$"], "\\frac{1}{2}, 3, $x$ or $y$"),
        ("final_answer", [], None),
    ],
)
def test_clean_answer(name: str, value: object, answer: str | None) -> None:
    assert clean_answer(value, name) == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"a \boxed{\frac{1}{\sqrt{2}}} b", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} then \fbox{ 2 }", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"$\boxed 9$", "9"),
        (r"\boxed{}", None),
        (r"\boxed{1} and \boxed{2", None),
        ("none", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_load_gold_finds_the_fields_and_counts_rows_without_an_answer(tmp_path: Path) -> None:
    rows = (
        {"question": "gsm", "answer": "#### 1,000"},
        {"problem": "math", "solution": r"\boxed{2}"},
        {"problem": "empty answer", "answer": "", "solution": r"\boxed{3}"},
        {"question": "olympiad", "context": None, "solution": ["long"], "final_answer": ["$4$"]},
        {"question": "nothing", "answer": None},
    )
    gold = load_gold(write(tmp_path / "gold.jsonl", *rows))
    assert gold.keys["exact"] == {"gsm": "1000", "math": "2", "empty answer": "3", "olympiad": "4"}
    assert gold.without_answer == 1


def test_load_gold_from_named_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", {"question": "not this", "answer": "1", "q": {"text": "this"}, "key": 7})
    assert load_gold(path, "q.text", "key").find("this") == ("exact", "7")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"q": "a", "answer": "1"},
            "field 'question' is missing; the fields here are: q, answer; name it with --gold-q",
        ),
        (
            {"question": "a"},
            "field 'answer' is missing; the fields here are: question; name it with --gold-answer-field",
        ),
        ({"question": "a", "answer": {"x": 1}}, "field 'answer' must be a text or a number, found dict"),
        ({"question": 1, "answer": "1"}, "field 'question' must be a text, found int"),
        ([1], "expected a JSON object, found list"),
    ],
)
def test_a_gold_row_that_does_not_fit_is_named_with_its_line(tmp_path: Path, row: object, problem: str) -> None:
    path = write(tmp_path / "gold.jsonl", {"question": "q", "answer": "1"}, row)
    with pytest.raises(InputError, match=rf"gold\.jsonl:2: {problem}"):
        load_gold(path)


def test_load_gold_answer_field_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", {"question": "q", "answer": "1"})
    with pytest.raises(
        InputError, match=r"gold\.jsonl:1: field 'key' is missing; .*; name it with --gold-answer-field"
    ):
        load_gold(path, answer_field="key")


def test_join_gold_counts_every_outcome_and_drops_nothing() -> None:
    gold = gold_of(
        ("What is  $x$?", "1"),
        ("Sum of A, B", "2"),
        ("twice", "3"),
        ("twice", "4"),
        ("same twice", "5"),
        ("same twice", "5"),
    )
    given = [
        asked("What is  $x$?"),
        asked("What is $x$?\n"),
        asked("what is x"),
        asked("sum of (a; b)"),
        asked("twice"),
        asked("Twice?"),
        asked("same twice"),
        asked("unknown"),
        asked("unknown", "9"),
        asked("Sum of A, B", "2"),
        asked("Sum of A, B", "other"),
    ]
    report = JoinReport()
    joined = list(join_gold(given, gold, report))
    assert [t.gold_answer for t in joined] == ["1", "1", "1", "2", None, None, "5", None, "9", "2", "other"]
    assert [t.id for t in joined] == [t.id for t in given]
    assert report == JoinReport(exact=2, spacing=1, letters=2, unmatched=1, ambiguous=2, already=2, conflicting=1)
    assert (report.normalized, report.joined) == (3, 5)
    assert report.lines() == [
        "gold answers joined: 5 (2 by the same text, 1 but for spacing, 2 but for punctuation)",
        "question not in the gold file: 1",
        "question there with different answers, not joined: 2",
        "had a gold answer already: 2",
        "had a gold answer that differs: 1",
    ]


def test_replace_takes_the_answer_of_the_file() -> None:
    given = [asked("q", "old"), asked("r", "kept")]
    report = JoinReport()
    joined = list(join_gold(given, gold_of(("q", "new")), report, replace=True))
    assert [t.gold_answer for t in joined] == ["new", "kept"]
    assert (report.conflicting, report.already) == (1, 1)
    assert [t.id for t in joined] == [t.id for t in given]


def test_a_text_that_is_exactly_there_beats_an_ambiguous_likeness() -> None:
    gold = gold_of(("a b", "1"), ("ab", "2"))
    assert gold.find("a b") == ("exact", "1")
    assert gold.find("ab") == ("exact", "2")
    assert gold.find("a  b") == ("ambiguous", None)


@pytest.mark.parametrize("other", ["3 - 4 =", "3 * 4 =", "34", "3 + 4 < ", "3 + 5 ="])
def test_formulas_that_differ_in_a_sign_are_different_questions(other: str) -> None:
    gold = gold_of(("3 + 4 =", "7"))
    assert gold.find("3+4=") == ("spacing", "7")
    assert gold.find("(3 + 4) =") == ("letters", "7")
    assert gold.find(other) == ("unmatched", None)


def test_questions_of_nothing_but_punctuation_never_match_by_letters() -> None:
    assert gold_of(("???", "1")).find("...") == ("unmatched", None)


@needs_data
@pytest.mark.parametrize(
    ("subset", "file", "joined", "total"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 200, 200),
        ("math", "math/test.jsonl.gz", 500, 500),
        ("olympiadbench", "olympiadbench/test.jsonl", 495, 500),
    ],
)
def test_shared_gold_answers_are_found_again(subset: str, file: str, joined: int, total: int) -> None:
    shipped = list(read_source("processbench", [str(DATA / f"processbench/{subset}.jsonl")]))
    stripped = (dataclasses.replace(t, gold_answer=None) for t in shipped)
    report = JoinReport()
    assert list(join_gold(stripped, load_gold(DATA / file), report)) == shipped
    assert report == JoinReport(exact=joined, unmatched=total - joined)


@needs_data
@pytest.mark.parametrize("name", ["train", "test"])
def test_shared_math_answers_are_the_last_boxes(name: str) -> None:
    rows = [row for _, row in read_any(DATA / f"math/{name}.jsonl.gz")]
    assert [last_boxed(row["solution"]) for row in rows] == [row["answer"].strip() or None for row in rows]
    assert len(rows) == {"train": 7500, "test": 5000}[name]
