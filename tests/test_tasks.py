"""Question sets as questions: each task on literal rows, and on the real files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpmi.answers import choice_of, parse_number
from cpmi.errors import InputError
from cpmi.records import Trajectory, write_records
from cpmi.sources import Tally
from cpmi.tasks import TASKS, read_questions
from cpmi.tasks.task import sentences, whole_number

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data files are not at {DATA}")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: object) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def without(row: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names} | changes


# --- what each task makes of a row ------------------------------------------------------------------------------------

MMLU = {"question": "2 + 2?", "choices": ["3", "4 ", "5"], "answer": 1, "type": "elementary_mathematics"}
FOLIO = {"premises": ["Cats purr. ", "Tom is a cat."], "conclusion": "Tom purrs.", "label": "True"}
FOLIO_TEXT = (
    "Premises:\nCats purr.\nTom is a cat.\n\nConclusion: Tom purrs.\n\n"
    "Given the premises, is the conclusion True, False or Uncertain?"
)
LOGIQA = {
    "id": 7,
    "text": "All a are b.",
    "question": "What follows?",
    "options": ["No a is b.", "Some b is a."],
    "answer": 1,
    "type": {"Categorical Reasoning": True, "Disjunctive Reasoning": False},
}
LOGIQA_TEXT = "All a are b.\n\nWhat follows?\n\n(A) No a is b.\n(B) Some b is a."
LOGICNLI = {
    "story_id": "17",
    "facts": ["Eli is soft."],
    "rules": ["If someone is soft, then he is civil.", "Eli is not civil."],
    "statements": ["Eli is civil.", "Eli is tall."],
    "labels": ["self_contradiction", "neutral"],
}
NLI_GIVEN = "Facts:\nEli is soft.\n\nRules:\nIf someone is soft, then he is civil.\nEli is not civil."
NLI_ASKED = (
    "Is the statement an entailment (it follows from the facts and rules), a contradiction (its negation follows), "
    "neutral (neither follows) or a self_contradiction (both follow)?"
)
NLI = ("entailment", "contradiction", "neutral", "self_contradiction")
TRUTH = ("True", "False", "Uncertain")
SUNS = "How many suns: (A) 1 (B) 2 (C) 3 (D) 4"

# The task, a row, and what becomes of it: id, question, gold answer, choices, tags.
CASES: list[tuple[str, dict[str, Any], str, str, str, tuple[str, ...] | None, dict[str, str]]] = [
    ("gsm8k", {"question": "1000 + 234? ", "answer": "So 1,234.\n#### 1,234"}, "0", "1000 + 234?", "1234", None, {}),
    (
        "math",
        {"problem": "x?", "level": "Level 3", "type": "Algebra", "solution": r"$\boxed{1}$ or \boxed{\frac{1}{2}}."},
        *("0", "x?", r"\frac{1}{2}", None, {"level": "3", "subject": "Algebra"}),
    ),
    (
        "math",
        {"problem": "x?", "level": 2, "subject": "Algebra", "answer": "$3$", "solution": "", "unique_id": "t/1"},
        *("t/1", "x?", "3", None, {"level": "2", "subject": "Algebra"}),
    ),
    (
        "olympiadbench",
        {"id": 5, "context": "Let $a=1$.", "question": "x?", "final_answer": ["$1$", "$2$"], "subfield": "Algebra"},
        *("5", "Let $a=1$.\n\nx?", "1, 2", None, {"subject": "Algebra"}),
    ),
    (
        "olympiadbench",
        {"id": 5, "context": None, "question": "Find x.", "final_answer": ["$69$,$84$"], "answer_type": "Numerical"},
        *("5", "Find x.", "69, 84", None, {"type": "Numerical"}),
    ),
    (
        "omni-math",
        {"problem": "n?", "answer": "\\[\n\\frac{1}{2}\n\\]", "difficulty": 8.0, "domain": ["a", "b"], "source": "imo"},
        *("0", "n?", r"\frac{1}{2}", None, {"difficulty": "8", "domain": "a; b", "competition": "imo"}),
    ),
    ("omni-math", {"problem": "n?", "answer": r"It is \(\boxed{6}\)."}, "0", "n?", "6", None, {}),
    ("omni-math", {"problem": "n?", "answer": r"\(1\) or \(2\)"}, "0", "n?", r"\(1\) or \(2\)", None, {}),
    (
        "svamp",
        {"ID": "chal-7", "Body": "9 pens are in 3 boxes", "Question": "How many each?", "Answer": 3.0, "Type": "t"},
        *("chal-7", "9 pens are in 3 boxes. How many each?", "3", None, {"type": "t"}),
    ),
    (
        "asdiv",
        {"body": "There are 7 apples and 2 more,", "question": "how many?", "answer": "9 (apples)", "idx": 4},
        *("4", "There are 7 apples and 2 more, how many?", "9", None, {}),
    ),
    ("asdiv", {"body": "b.", "question": "q?", "answer": "-(1/3)"}, "0", "b. q?", "-(1/3)", None, {}),
    ("asdiv", {"body": "b.", "question": "q?", "answer": "3:30 p.m."}, "0", "b. q?", "3:30 p.m.", None, {}),
    ("mawps", {"input": "70 - 27 ?", "target": 43.0, "type": "t"}, "0", "70 - 27 ?", "43", None, {"type": "t"}),
    ("mawps", {"id": "m1", "question": "q?", "result": "x", "result_float": 11.5}, "m1", "q?", "11.5", None, {}),
    ("amc", {"id": 3, "problem": "p?", "answer": 27.0, "url": "u"}, "3", "p?", "27", None, {"url": "u"}),
    ("aime", {"id": 60, "problem": "p?", "answer": "025"}, "60", "p?", "25", None, {}),
    ("aime", {"ID": "2024-I-1", "Problem": "p?", "Answer": 204}, "2024-I-1", "p?", "204", None, {}),
    ("aime", {"problem": "p?", "solution": r"\boxed{073}"}, "0", "p?", "73", None, {}),
    ("minerva", {"problem": "d?", "solution": r"\boxed{1.6} m", "type": "T"}, "0", "d?", "1.6", None, {"subject": "T"}),
    ("gaokao", {"source": "s", "question": "(1) x?", "answer": "$1$"}, "0", "(1) x?", "1", None, {"exam": "s"}),
    ("gaokao", {"source": "s", "question": SUNS, "answer": "A"}, "0", SUNS, "A", ("A", "B", "C", "D"), {"exam": "s"}),
    ("gaokao", {"source": "s", "question": SUNS, "answer": "1"}, "0", SUNS, "1", None, {"exam": "s"}),
    ("college-math", {"question": "q", "answer": r"$\$ 3 $"}, "0", "q", r"\$ 3", None, {}),
    ("college-math", {"question": "q", "answer": "$y=2$.", "data_topic": "t"}, "0", "q", "y=2", None, {"subject": "t"}),
    ("college-math", {"question": "q", "answer": "$4$ days"}, "0", "q", "$4$ days", None, {}),
    (
        "mmlu-stem",
        MMLU,
        *("0", "2 + 2?\n\n(A) 3\n(B) 4\n(C) 5", "B", ("A", "B", "C"), {"subject": "elementary_mathematics"}),
    ),
    (
        "mmlu-stem",
        without(MMLU, "type", answer="c", subject="astronomy"),
        *("0", "2 + 2?\n\n(A) 3\n(B) 4\n(C) 5", "C", ("A", "B", "C"), {"subject": "astronomy"}),
    ),
    ("folio", FOLIO, "0", FOLIO_TEXT, "True", TRUTH, {}),
    (
        "folio",
        FOLIO | {"premises": "Cats purr.\n\nTom is a cat.", "label": "Unknown", "example_id": 9, "story_id": 4},
        *("9", FOLIO_TEXT, "Uncertain", TRUTH, {"story": "4"}),
    ),
    ("folio", FOLIO | {"label": "false"}, "0", FOLIO_TEXT, "False", TRUTH, {}),
    ("logiqa2", LOGIQA, "7", LOGIQA_TEXT, "B", ("A", "B"), {"reasoning": "Categorical Reasoning"}),
    (
        "logiqa2",
        {"context": "All a are b.", "query": "What follows?", "options": LOGIQA["options"], "correct_option": 0},
        *("0", LOGIQA_TEXT, "A", ("A", "B"), {}),
    ),
    (
        "logicnli",
        {"premise": "Eli is soft.", "hypothesis": "Eli is tall.", "label": "neutral"},
        *("0", f"Eli is soft.\n\nStatement: Eli is tall.\n\n{NLI_ASKED}", "neutral", NLI, {}),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("task", "row", "name", "question", "gold", "choices", "tags"), CASES)
def test_row(
    write: Write,
    task: str,
    row: dict[str, Any],
    name: str,
    question: str,
    gold: str,
    choices: tuple[str, ...] | None,
    tags: dict[str, str],
) -> None:
    tally = Tally()
    (made,) = read_questions(write(row), task, tally=tally)
    expected = {"task": task, "subset": task} | tags
    assert made == Trajectory(
        question=question, steps=(), gold_answer=gold, choices=choices, tags=expected, id=f"{task}-{name}"
    )
    assert (tally.read, tally.made, tally.skipped, tally.notes) == (1, 1, {}, {})


def test_every_task_has_a_case() -> None:
    assert {task for task, *_ in CASES} | {"questions"} == set(TASKS)


def test_logicnli_has_a_question_for_each_statement(write: Write) -> None:
    tally = Tally()
    first, second = read_questions(write(LOGICNLI), "logicnli", tally=tally)
    assert first.question == f"{NLI_GIVEN}\n\nStatement: Eli is civil.\n\n{NLI_ASKED}"
    assert second.question == f"{NLI_GIVEN}\n\nStatement: Eli is tall.\n\n{NLI_ASKED}"
    assert [(q.id, q.gold_answer, q.choices) for q in (first, second)] == [
        ("logicnli-17-0", "self_contradiction", NLI),
        ("logicnli-17-1", "neutral", NLI),
    ]
    assert (tally.read, tally.made) == (1, 2)


def test_a_repeated_id_gets_a_number_that_is_free(write: Write) -> None:
    tally = Tally()
    rows = [LOGIQA, LOGIQA | {"id": "7-2"}, LOGIQA, LOGIQA]
    made = [question.id for question in read_questions(write(*rows), "logiqa2", tally=tally)]
    assert made == ["logiqa2-7", "logiqa2-7-2", "logiqa2-7-3", "logiqa2-7-4"]
    ((count, place),) = tally.notes.values()
    assert (count, place.rpartition(":")[2]) == (2, "3")


def test_rows_without_an_answer_are_counted_and_keep_their_numbers(write: Write) -> None:
    tally = Tally()
    empty, whole = ({"problem": "p?", "solution": rf"So \boxed{{{inside}}}."} for inside in ("", "4"))
    (made,) = read_questions(write(empty, whole), "math", tally=tally)
    assert (made.id, made.gold_answer) == ("math-1", "4")
    assert (tally.read, tally.made) == (2, 1)
    assert [(reason, n) for reason, (n, _) in tally.skipped.items()] == [("no gold answer", 1)]


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("mmlu-stem", MMLU | {"type": "philosophy"}, "a subject that is not STEM"),
        ("olympiadbench", {"question": "q", "image_1": {}, "final_answer": ["1"]}, "a question with a picture"),
        ("mmlu-stem", MMLU | {"answer": None}, "no gold answer"),
        ("logiqa2", LOGIQA | {"answer": ""}, "no gold answer"),
        ("folio", FOLIO | {"label": None}, "no gold answer"),
        ("asdiv", {"body": "b.", "question": "q?", "answer": " "}, "no gold answer"),
    ],
)
def test_rows_that_are_left_out(write: Write, task: str, row: dict[str, Any], reason: str) -> None:
    tally = Tally()
    assert list(read_questions(write(row), task, tally=tally)) == []
    assert list(tally.skipped) == [reason]


@pytest.mark.parametrize(
    ("task", "row", "problem"),
    [
        ("gsm8k", [], "expected a JSON object, found list"),
        (
            "gsm8k",
            {"problem": "p"},
            "field 'answer' is missing; the fields here are: problem; is this a file of another",
        ),
        ("gsm8k", {"question": "q", "answer": {}}, "field 'answer' must be a text or a number, found dict"),
        ("gsm8k", {"question": 7, "answer": "1"}, "field 'question' must be a text, found int"),
        ("gsm8k", {"question": " ", "answer": "1"}, "field 'question' must be a text that is not empty"),
        ("math", {"answer": "1"}, "field 'problem' is missing"),
        (
            "minerva",
            {"idx": True, "problem": "p", "answer": "1"},
            "own id must be a text or a whole number, found bool",
        ),
        (
            "minerva",
            {"type": {}, "problem": "p", "answer": "1"},
            "field 'subject' must be a text or a number, found dict",
        ),
        ("mmlu-stem", MMLU | {"answer": 3}, "field 'answer' is 3, but the options are 0 to 2, or A to C"),
        ("mmlu-stem", MMLU | {"answer": -1}, "field 'answer' is -1, but"),
        ("mmlu-stem", MMLU | {"answer": True}, "field 'answer' is True, but"),
        ("mmlu-stem", MMLU | {"answer": "D"}, "field 'answer' is 'D', but"),
        ("mmlu-stem", MMLU | {"choices": ["4"]}, "a question with 1 options; 2 to 26 are possible"),
        ("mmlu-stem", MMLU | {"choices": "4"}, "field 'choices' must be a list of texts"),
        ("logiqa2", LOGIQA | {"answer": 2}, "field 'answer' is 2, but the options are 0 to 1, or A to B"),
        ("folio", FOLIO | {"label": "Perhaps"}, "field 'label' must be one of True, False, Uncertain, found 'Perhaps'"),
        ("folio", FOLIO | {"premises": [1]}, "field 'premises' must be a text or a list of texts"),
        ("folio", without(FOLIO, "label"), "field 'label' is missing"),
        ("logicnli", LOGICNLI | {"labels": ["neutral"]}, "1 labels for 2 statements"),
        (
            "logicnli",
            LOGICNLI | {"labels": ["neutral", "x"]},
            "field 'labels' must be one of entailment, .*, found 'x'",
        ),
        ("questions", {"question": "q", "final_answer": "1"}, "field 'gold_answer' is missing"),
        ("questions", {"question": "q", "answer": "x", "choices": ["a", "b"]}, "'x' is none of the choices"),
        ("questions", {"question": "q", "answer": "x", "tags": ["a"]}, "field 'tags' must be an object of texts"),
    ],
)
def test_rows_that_do_not_fit(write: Write, task: str, row: object, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^\S*rows\.jsonl:1: .*{problem}"):
        list(read_questions(write(row), task))


# --- your own questions -----------------------------------------------------------------------------------------------


def test_a_file_of_trajectories_gives_each_question_once(tmp_path: Path) -> None:
    solved = [
        Trajectory("1+1?", ("2",), gold_answer="2", final_answer="3", id="a", tags={"subset": "easy"}),
        Trajectory("1+1?", ("3",), gold_answer="2", id="b"),
        Trajectory("1+1?", (), gold_answer="3", id="c"),
        Trajectory("2+2?", ("4",), final_answer="4", id="d"),
        Trajectory("Yes?", (), gold_answer="no", choices=("yes", "no"), id="e"),
    ]
    for name in ("some.jsonl", "some.parquet"):
        write_records(tmp_path / name, solved)
        tally = Tally()
        assert list(read_questions(tmp_path / name, tally=tally)) == [
            Trajectory("1+1?", (), gold_answer="2", id="a", tags={"task": "questions", "subset": "easy"}),
            Trajectory(
                *("Yes?", (), "no"),
                choices=("yes", "no"),
                id="e",
                tags={"task": "questions", "subset": "questions"},
            ),
        ]
        assert {reason: n for reason, (n, _) in tally.skipped.items()} == {
            "asked before": 1,
            "asked before, with another gold answer": 1,
            "no gold answer": 1,
        }


def test_plain_rows(write: Write) -> None:
    rows = [
        {"problem": "p?", "solution": r"\boxed{5}"},
        {"question": "q?", "answer": "#### 6", "id": 8},
        {"question": "Which? (A) x (B) y", "answer": "(b)", "choices": ["A", "B"]},
    ]
    made = list(read_questions(write(*rows), "questions"))
    assert [(q.id, q.question, q.gold_answer) for q in made] == [
        ("questions-0", "p?", "5"),
        ("8", "q?", "6"),
        ("questions-2", "Which? (A) x (B) y", "B"),
    ]


# --- files and names --------------------------------------------------------------------------------------------------


def test_unknown_task_and_useless_split(write: Write) -> None:
    with pytest.raises(InputError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        read_questions(write(), "gsm8")
    with pytest.raises(InputError, match="a split can be chosen for hub:NAME or a saved folder only"):
        read_questions(write(), "gsm8k", split="test")
    with pytest.raises(InputError, match="no such file"):
        list(read_questions("nowhere.jsonl", "gsm8k"))


def test_saved_folder_with_a_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"question": "1+1?", "answer": "#### 2"}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    (made,) = read_questions(tmp_path / "saved", "gsm8k", split="test")
    assert (made.id, made.gold_answer) == ("gsm8k-0", "2")
    assert made.tags == {"task": "gsm8k", "subset": "gsm8k", "split": "test"}
    with pytest.raises(InputError, match="it has several splits"):
        list(read_questions(tmp_path / "saved", "gsm8k"))


def test_hub_names_go_to_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(name: str, split: str | None) -> Iterator[tuple[str, Any]]:
        asked.append((name, split))
        yield f"{name}, row 1", {"question": "1+1?", "answer": "#### 2"}

    monkeypatch.setattr("cpmi.tasks.dataset_rows", rows)
    (made,) = read_questions("hub:openai/gsm8k:main", "gsm8k", split="test")
    assert (asked, made.gold_answer) == ([("openai/gsm8k:main", "test")], "2")


def test_helpers() -> None:
    assert sentences("a", "b?", " ", "c") == "a. b? c"
    numbers = ["43.0", "025", "0", "000", "-7.00", "1.50", "x", "100", "2.0.0"]
    assert [whole_number(text) for text in numbers] == ["43", "25", "0", "0", "-7", "1.50", "x", "100", "2.0.0"]


# --- the real files ---------------------------------------------------------------------------------------------------

# Task, file, rows in it, rows without a gold answer, questions whose id was told apart.
FILES = [
    ("gsm8k", "gsm8k/test.jsonl", 1319, 0, 0),
    ("gsm8k", "gsm8k/train.jsonl.gz", 7473, 0, 0),
    ("math", "math/math500.jsonl", 500, 0, 0),
    ("math", "math/test.jsonl.gz", 5000, 0, 0),
    ("math", "math/train.jsonl.gz", 7500, 2, 0),
    ("olympiadbench", "olympiadbench/test.jsonl", 675, 0, 0),
    ("omni-math", "omni_math/omni_math_rule.jsonl.gz", 2821, 0, 0),
    ("svamp", "qwen_eval/svamp.jsonl", 1000, 0, 0),
    ("asdiv", "qwen_eval/asdiv.jsonl", 2215, 0, 0),
    ("mawps", "qwen_eval/mawps.jsonl", 2065, 0, 0),
    ("amc", "qwen_eval/amc23.jsonl", 40, 0, 0),
    ("aime", "qwen_eval/aime24.jsonl", 30, 0, 0),
    ("minerva", "qwen_eval/minerva_math.jsonl", 272, 0, 0),
    ("gaokao", "qwen_eval/gaokao2023en.jsonl", 385, 2, 0),
    ("college-math", "qwen_eval/college_math.jsonl", 2818, 0, 0),
    ("mmlu-stem", "qwen_eval/mmlu_stem.jsonl", 3018, 0, 0),
    ("folio", "folio/train.jsonl", 1004, 0, 0),
    ("folio", "folio/validation.jsonl", 94, 0, 0),
    ("logiqa2", "logiqa2/dev.jsonl", 1569, 0, 2),
    ("logiqa2", "logiqa2/test.jsonl", 786, 0, 2),
    ("logicnli", "logicnli/dev.jsonl", 100, 0, 0),
    ("logicnli", "logicnli/test.jsonl", 100, 0, 0),
    ("logicnli", "logicnli/train.jsonl", 800, 0, 0),
]

# Sets whose every answer is a plain number.
NUMBERS = {"gsm8k", "svamp", "mawps", "amc", "aime"}


@needs_data
@pytest.mark.parametrize(("task", "file", "rows", "skipped", "renamed"), FILES, ids=[file for _, file, *_ in FILES])
def test_shared(task: str, file: str, rows: int, skipped: int, renamed: int) -> None:
    tally = Tally()
    made = list(read_questions(DATA / file, task, tally=tally))
    assert (tally.read, tally.made) == (rows, len(made))
    assert len(made) == (rows - skipped) * (20 if task == "logicnli" else 1)
    assert sum(count for count, _ in tally.skipped.values()) == skipped
    assert sum(count for count, _ in tally.notes.values()) == renamed
    assert len({question.id for question in made}) == len(made)
    for question in made:
        assert question.id.startswith(f"{task}-")
        assert question.tags["subset"] == task
        gold = question.gold_answer or ""
        assert gold == gold.strip() != ""
        assert question.choices is None or choice_of(gold, question.choices) == gold
        if task in NUMBERS:
            assert parse_number(gold) is not None, gold


@needs_data
def test_shared_labels_are_as_many_as_the_data_has() -> None:
    def golds(task: str, file: str) -> Counter[str | None]:
        return Counter(question.gold_answer for question in read_questions(DATA / file, task))

    assert golds("folio", "folio/train.jsonl") == {"True": 388, "Uncertain": 330, "False": 286}
    assert golds("folio", "folio/validation.jsonl") == {"True": 35, "Uncertain": 31, "False": 28}
    assert golds("logiqa2", "logiqa2/test.jsonl") == {"A": 159, "B": 195, "C": 218, "D": 214}
    assert golds("logicnli", "logicnli/dev.jsonl") == dict.fromkeys(NLI, 500)


@needs_data
def test_shared_questions() -> None:
    tally = Tally()
    made = list(read_questions(DATA / "processbench" / "math.jsonl", tally=tally))
    rows = [json.loads(line) for line in (DATA / "processbench" / "math.jsonl").read_text().splitlines()]
    assert [question.question for question in made] == list(dict.fromkeys(row["problem"].strip() for row in rows))
    assert (len(made), {reason: n for reason, (n, _) in tally.skipped.items()}) == (487, {"asked before": 13})
    choices = Counter(q.choices for q in read_questions(DATA / "qwen_eval" / "gaokao2023en.jsonl", "gaokao"))
    assert sum(count for letters, count in choices.items() if letters) == 46
