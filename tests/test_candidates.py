"""Readers of candidate sets, and how the reasoning is found in what models take for JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources import Tally, read_source
from cpmi.sources.candidates import BEFORE, BROKEN, FIELDS, WHOLE, reasoning_in

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "best_of_n"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data files are not at {DATA}")

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: object, name: str = "pool.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def shared(source: str, file: str) -> tuple[list[Trajectory], Tally]:
    """All trajectories of a shared file, whose candidates are checked to be told by question."""
    tally = Tally()
    made = list(read_source(source, [str(DATA / file)], tally=tally))
    assert all(t.id.rpartition("/")[0] == t.tags["question_id"] for t in made)
    assert all(step.strip() for t in made for step in t.steps)
    questions: dict[str, str] = {}
    assert all(questions.setdefault(t.tags["question_id"], t.question) == t.question for t in made)
    return made, tally


# --- the reasoning in an output ---------------------------------------------------------------------------------------


def test_json_is_read_as_it_stands() -> None:
    text = 'One "two".\n\nThen \\frac{1}{2}, ½ and 2/3\t.'
    assert reasoning_in(json.dumps({"reasoning": text, "answer": "1"})) == (text, None)
    fenced = (
        f"Here is the solution:\n\n```json\n{json.dumps({'reasoning': text, 'answer': '1'}, indent=4)}\n```</s></s>"
    )
    assert reasoning_in(fenced) == (text, None)


# No backslash or what becomes one: what it means depends on what stands behind it. Nor what looks like the text's end.
PLAIN = st.text(st.characters(exclude_characters='\\"\b\f\r\t\u201d`}],:', exclude_categories=["Cs"]), max_size=60)


@given(text=PLAIN, ascii_only=st.booleans())
def test_any_plain_text_comes_back_from_json(text: str, ascii_only: bool) -> None:
    output = json.dumps({"reasoning": text, "answer": 1}, ensure_ascii=ascii_only)
    assert reasoning_in(output) == (text, None)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ('{"reasoning": "a\n\nb", "answer": "1"}', "a\n\nb"),  # lines broken
        ('{"reasoning": "the "big" one", "answer": "1"}', 'the "big" one'),  # quotes not escaped
        ('{"reasoning": "a"\n "answer": "1"}', "a"),  # no comma
        ('{"reasoning": "a\n\n"answer": "1"}', "a"),  # not closed
        ('{"reasoning": "a.\n\nAnswer: "answer": "1"\n```', "a."),
        ('{"reasoning": "a.\u201d, "answer": "1"}', "a."),  # closed by another quote
        ('```json\n{"reasoning": "a, and then', "a, and then"),  # cut off
        ('```json\n{\n"reasoning": "a"\n}\n```', "a"),  # no answer
        ('{"reasoning": "a.\n```\n\n```json\n{\n "reasoning": "again", "answer": "1"}', "a."),  # begun anew
        ('{"reasoning": "a." +\n   "b.", "answer": "1"}', "a.\nb."),
        ('{"reasoning": "so \\(x\\)", "answer": "1"}', "so \\(x\\)"),
        ('{"reasoning": "so \\$5 and it\\\'s", "answer": "1"}', "so \\$5 and it's"),
    ],
)
def test_broken_json_is_read_all_the_same(output: str, text: str) -> None:
    assert reasoning_in(output) == (text, BROKEN)


@pytest.mark.parametrize(
    "command", ["frac", "text", "times", "neq", "nabla", "beta", "right", "boxed", "not", "underline"]
)
def test_latex_means_the_same_escaped_or_not(command: str) -> None:
    text = f"Line.\n\nThen \\{command}{{1}} \\(a\\)"
    escaped = json.dumps({"reasoning": text, "answer": "1"})
    bare = escaped.replace("\\\\", "\\")
    assert reasoning_in(escaped) == (text, None)
    assert reasoning_in(bare) == (text, BROKEN)
    assert reasoning_in(bare.replace("\\(a\\)", "\\\\(a\\\\)") + " ") == (text, BROKEN)  # some so, some so


def test_words_behind_a_line_break_are_no_commands() -> None:
    for word in ("Next", "next", "and", "no", "number", "Nu", "u = 1", "e", "i > 0"):
        assert reasoning_in(json.dumps({"reasoning": f"a\n{word}", "answer": ""}))[0] == f"a\n{word}"


def test_rows_of_a_matrix_stay_rows() -> None:
    matrix = "\\begin{pmatrix} 1 \\\\ 2 \\\\[2pt] 3 \\end{pmatrix}"
    assert reasoning_in('{"reasoning": "' + matrix + '", "answer": ""}') == (matrix, BROKEN)
    assert reasoning_in(json.dumps({"reasoning": matrix, "answer": ""})) == (matrix, None)


def test_half_a_surrogate_pair_is_no_character() -> None:
    assert reasoning_in('{"reasoning": "\\ud83d\\ude00 \\ud83d.", "answer": ""}')[0] == "\U0001f600 \\ud83d."


def test_reasoning_elsewhere() -> None:
    assert reasoning_in("Two and two.\n\nAnswer: 4</s></s>") == ("Two and two.\n\nAnswer: 4", WHOLE)
    assert reasoning_in('{"reasoning": "a.", "step 1": "b.", "answer": ""}') == ("a.\nstep 1: b.", FIELDS)
    prose = "Two and two is 2 + 2.\n\nThat is 4."
    summed_up = prose + '\n\nHere is the JSON:\n```json\n{"reasoning": "Added.", "answer": "4"}\n```'
    assert reasoning_in(summed_up) == (prose, BEFORE)


# --- ZeroEval ---------------------------------------------------------------------------------------------------------


def zeroeval_row(*outputs: str, answer: object = "4") -> dict[str, object]:
    candidates = [{"generator": f"G{i}", "output": output, "answer": answer} for i, output in enumerate(outputs)]
    return {"id": "q#7", "question": "2+2?", "gold_answer": "4", "candidates": candidates}


def test_zeroeval(write: Write) -> None:
    tally = Tally()
    row = zeroeval_row('{"reasoning": "It is 2.0 + 2. So 4.", "answer": "4"}', "", "Step 1: a. B.\n\nStep 2: c")
    first, last = read_source("zeroeval", [write(row)], tally=tally)
    assert first == Trajectory(
        question="2+2?",
        steps=("It is 2.0 + 2.", "So 4."),
        gold_answer="4",
        final_answer="4",
        tags={"source": "zeroeval", "subset": "pool", "question_id": "q#7", "generator": "G0"},
        id="q#7/0",
    )
    assert (last.id, last.steps) == ("q#7/2", ("Step 1: a. B.", "Step 2: c"))
    assert {what: count for what, (count, _) in tally.skipped.items()} == {"a candidate without any reasoning": 1}
    assert {what: count for what, (count, _) in tally.notes.items()} == {WHOLE: 1}


@pytest.mark.parametrize("answer", [None, " "])
def test_zeroeval_without_an_answer(write: Write, answer: object) -> None:
    (made,) = read_source("zeroeval", [write(zeroeval_row("a", answer=answer))])
    assert made.final_answer is None


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        ({}, "field 'candidates' must be a list of objects"),
        (["a"], "expected a JSON object, found str"),
        ([{"output": 1}], "field 'output' must be a text"),
        ([{"output": "a", "generator": 1}], "field 'generator' must be a text"),
    ],
)
def test_zeroeval_that_does_not_fit(write: Write, candidates: object, problem: str) -> None:
    with pytest.raises(InputError, match=f"pool.jsonl:1: {problem}"):
        list(read_source("zeroeval", [write({**zeroeval_row(), "candidates": candidates})]))


@needs_data
def test_zeroeval_shared() -> None:
    made, tally = shared("zeroeval", "zeroeval_gsm8k_pool.jsonl.gz")
    assert (tally.read, len(made), tally.skipped) == (1319, 19785, {})
    assert sum(t.final_answer is None for t in made) == 59
    counts = {what: count for what, (count, _) in tally.notes.items()}
    assert counts[WHOLE] == 13
    assert counts[BROKEN] < 2000
    left = Counter(
        sign for t in made for s in t.steps for sign in ('"answer":', '"reasoning"', "```", "</s>") if sign in s
    )
    assert sum(left.values()) <= 5  # of nearly 20,000 that models wrote without a checker
    assert Counter(len(t.steps) == 1 for t in made)[True] < 100


@needs_data
def test_zeroeval_math_keeps_its_formulas() -> None:
    made, tally = shared("zeroeval", "zeroeval_math_l5_pool.jsonl.gz")
    assert (tally.read, len(made), tally.skipped) == (721, 11536, {})
    text = "\n".join(step for t in made for step in t.steps)
    assert not any(sign in text for sign in "\f\b\v")
    assert text.count("\\frac") > 20_000
    assert text.count("\\\\frac") + text.count("\\\\sqrt") == 0


# --- GSM8K ------------------------------------------------------------------------------------------------------------


def gsm8k_row(**solutions: str) -> dict[str, object]:
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return {"question": "16 - 3?", "ground_truth": "16 - 3 = <<16-3=13>>13\nA: 13"} | {
        name: {"is_correct": False, "solution": solutions.get("s" + name, "A: 1")} for name in names
    }


def test_gsm8k_solutions(write: Write) -> None:
    tally = Tally()
    row = gsm8k_row(s6b_finetuning="So $<<16-3=13>>13 are\n\nleft\nA: 1,300", s175b_finetuning="x = <<1/3=0.33")
    made = list(read_source("gsm8k-solutions", [write(row, {**gsm8k_row(), "question": "?"})], tally=tally))
    assert made[0] == Trajectory(
        question="16 - 3?",
        steps=("So $13 are", "left", "A: 1,300"),
        gold_answer="13",
        final_answer="1,300",
        tags={
            "source": "gsm8k-solutions",
            "subset": "pool",
            "question_id": "pool/0",
            "generator": "6b_finetuning",
            "final_answer_correct": "false",
        },
        id="pool/0/0",
    )
    assert (made[2].id, made[2].steps, made[2].final_answer) == ("pool/0/2", ("x =",), None)
    assert [t.id for t in made[4:]] == [f"pool/1/{i}" for i in range(4)]
    assert [count for count, _ in tally.notes.values()] == [1]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"ground_truth": "13"}, "field 'ground_truth' must end in a line 'A: ...'"),
        ({"6b_finetuning": {"is_correct": 1, "solution": "a"}}, "'6b_finetuning.is_correct' must be true or false"),
        ({"6b_finetuning": {"is_correct": True}}, "field '6b_finetuning.solution' is missing"),
    ],
)
def test_gsm8k_solutions_that_do_not_fit(write: Write, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"pool.jsonl:1: .*{problem}"):
        list(read_source("gsm8k-solutions", [write({**gsm8k_row(), **changed})]))


@needs_data
def test_gsm8k_solutions_shared() -> None:
    made, tally = shared("gsm8k-solutions", "gsm8k_example_model_solutions.jsonl.gz")
    assert (tally.read, len(made), tally.skipped) == (1319, 5276, {})
    assert [count for count, _ in tally.notes.values()] == [11]
    assert sum("<<" in step for t in made for step in t.steps) == 1  # one that was not closed
    right = Counter(t.tags["generator"] for t in made if t.tags["final_answer_correct"] == "true")
    assert right["175b_verification"] > right["6b_verification"] > right["6b_finetuning"]
    same = [(t.final_answer == t.gold_answer) == (t.tags["final_answer_correct"] == "true") for t in made]
    assert sum(same) / len(same) > 0.99


# --- Qwen2.5-Math -----------------------------------------------------------------------------------------------------

QWEN = {
    "idx": 3,
    "question": "1+1?",
    "gt": "2",
    "code": ["a\n\nSo 2", "So 3"],
    "pred": ["2", ""],
    "score": [True, False],
    "pred_score": [[3.5], -1],
}


def test_qwen_eval(write: Write) -> None:
    right, wrong = read_source("qwen-eval", [write(QWEN)])
    assert right == Trajectory(
        question="1+1?",
        steps=("a", "So 2"),
        gold_answer="2",
        final_answer="2",
        tags={
            "source": "qwen-eval",
            "subset": "pool",
            "question_id": "pool/3",
            "final_answer_correct": "true",
            "reward": "3.5",
        },
        id="pool/3/0",
    )
    assert (wrong.id, wrong.final_answer, wrong.tags["reward"]) == ("pool/3/1", None, "-1.0")
    (first, _) = read_source("qwen-eval", [write({name: QWEN[name] for name in QWEN if name != "pred_score"})])
    assert "reward" not in first.tags


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"pred": ["2"]}, "field 'pred' has 1 entries for 2 solutions"),
        ({"score": [1, 0]}, "field 'score' must be true or false"),
        ({"pred_score": [[1, 2], 3]}, "field 'pred_score' must be a number for each solution"),
    ],
)
def test_qwen_eval_that_does_not_fit(write: Write, changed: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=f"pool.jsonl:1: {problem}"):
        list(read_source("qwen-eval", [write({**QWEN, **changed})]))


@needs_data
def test_qwen_eval_shared() -> None:
    made, tally = shared("qwen-eval", "qwen25math_math100_x8.jsonl")
    assert (tally.read, len(made), tally.skipped, tally.notes) == (100, 800, {}, {})
    assert sum(t.tags["final_answer_correct"] == "true" for t in made) == 728
    assert made[0].tags["reward"] == "3.546875"
    assert min(len(t.steps) for t in made) == 2
