"""Readers of public data sets and plain files."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpmi.errors import InputError
from cpmi.records import Trajectory, dump_line, from_json
from cpmi.sources import SOURCES, Fields, Tally, read_any, read_source

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data files are not at {DATA}")

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def shared(name: str, *patterns: str, **options: Any) -> tuple[list[Trajectory], Tally]:
    """All trajectories of some shared files, and the tally of their reading."""
    tally = Tally()
    files = sorted(str(path) for pattern in patterns for path in DATA.glob(pattern))
    assert files
    made = list(read_source(name, files, tally=tally, **options))
    assert len({trajectory.id for trajectory in made}) == len(made) == tally.made
    return made, tally


# --- ProcessBench -----------------------------------------------------------------------------------------------------

PROCESSBENCH = {
    "id": "gsm8k-7",
    "generator": "Qwen",
    "problem": "1 + 2 + 3?",
    "steps": ["1 + 2 = 3", "3 + 3 = 7", "So 7"],
    "final_answer_correct": False,
    "label": 1,
}


def test_processbench(write: Write) -> None:
    right = {**PROCESSBENCH, "id": "gsm8k-8", "label": -1, "gold_answer": "6", "final_answer_correct": True}
    wrong, good = read_source("processbench", [write(PROCESSBENCH, right)])
    assert wrong == Trajectory(
        question="1 + 2 + 3?",
        steps=("1 + 2 = 3", "3 + 3 = 7", "So 7"),
        step_labels=(True, False, None),
        tags={
            "source": "processbench",
            "subset": "gsm8k",
            "generator": "Qwen",
            "final_answer_correct": "false",
            "label_kind": "human",
        },
        id="gsm8k-7",
    )
    assert good.step_labels == (True, True, True)
    assert (good.gold_answer, good.tags["final_answer_correct"], good.first_error) == ("6", "true", None)


@pytest.mark.parametrize("label", [3, -2])
def test_processbench_label_that_is_no_step(write: Write, label: int) -> None:
    with pytest.raises(InputError, match=rf"rows.jsonl:1: the first wrong step would be number {label + 1} of 3"):
        list(read_source("processbench", [write({**PROCESSBENCH, "label": label})]))


@needs_data
def test_processbench_shared() -> None:
    made, tally = shared("processbench", "processbench/*.jsonl")
    assert Counter(t.tags["subset"] for t in made) == {"gsm8k": 200, "math": 500, "olympiadbench": 500, "omnimath": 500}
    assert sum(t.gold_answer is None for t in made) == 5 + 172
    assert sum(t.first_error is not None for t in made) == 102 + 301 + 337 + 394
    assert (tally.skipped, tally.notes) == ({}, {})
    by_id = {t.id: t for t in made}
    assert by_id["gsm8k-2"].step_labels == (True, False, None, None)
    assert by_id["gsm8k-3"].step_labels == (True, True, False, None)
    assert by_id["math-688"].first_error == 0


# --- PRMBench ---------------------------------------------------------------------------------------------------------

PRMBENCH = {
    "idx": "p1",
    "classification": "circular",
    "question": "q",
    "original_question": "original",
    "modified_question": "modified",
    "original_process": ["o"],
    "modified_process": [" 1. a", "2. b", "3. c"],
    "modified_steps": [2],
    "error_steps": [2],
    "reason": "",
}


def test_prmbench_counts_from_one_and_labels_every_step(write: Write) -> None:
    (made,) = read_source("prmbench", [write(PRMBENCH)])
    assert (made.id, made.question, made.steps) == ("circular/p1", "modified", (" 1. a", "2. b", "3. c"))
    assert made.step_labels == (True, False, True)
    assert made.tags == {"source": "prmbench", "subset": "circular", "idx": "p1", "label_kind": "human"}


def test_prmbench_errors_past_the_end_and_repeated_names_are_kept_and_counted(write: Write) -> None:
    tally = Tally()
    rows = (PRMBENCH, {**PRMBENCH, "error_steps": [3, 4, 9], "ground_truth": "5"})
    _, second = read_source("prmbench", [write(*rows)], tally=tally)
    assert (second.id, second.step_labels, second.gold_answer) == ("circular/p1-2", (True, True, False), "5")
    assert second.tags["error_steps_past_end"] == "[4,9]"
    assert [count for count, _ in tally.notes.values()] == [1, 1]


def test_prmbench_error_step_zero(write: Write) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1: field 'error_steps' must be a list of whole numbers from 1"):
        list(read_source("prmbench", [write({**PRMBENCH, "error_steps": [0]})]))


@needs_data
def test_prmbench_shared() -> None:
    made, tally = shared("prmbench", "prmbench/*.jsonl.gz")
    assert len(made) == tally.read == 3106
    assert Counter(t.tags["subset"] for t in made)["multi_solutions"] == 83
    assert all(all(t.step_labels or ()) for t in made if t.tags["subset"] == "multi_solutions")
    assert sorted(count for count, _ in tally.notes.values()) == [1, 41]
    assert sum("error_steps_past_end" in t.tags for t in made) == 41
    assert [t.id for t in made if t.id.endswith("-2")] == ["multi_solutions/prm_test_p2_1053-2"]
    assert made[0].id == "circular/prm_test_p1_3"
    assert made[0].step_labels == (True, True, True, False, False, True)


# --- Math-Shepherd ----------------------------------------------------------------------------------------------------

SHEPHERD = {
    "input": "How many? Step 1: 1+1=2 ки\nStep 2: 2+2=5 ки\nStep 3: So 5. The answer is: 5 ки",
    "label": "How many? Step 1: 1+1=2 +\nStep 2: 2+2=5 -\nStep 3: So 5. The answer is: 5 -",
    "task": "GSM8K",
}


def test_math_shepherd(write: Write) -> None:
    (made,) = read_source("math-shepherd", [write(SHEPHERD)])
    assert made.question == "How many?"
    assert made.steps == ("Step 1: 1+1=2", "Step 2: 2+2=5", "Step 3: So 5. The answer is: 5")
    assert made.step_labels == (True, False, False)
    assert (made.gold_answer, made.final_answer) == (None, "5")
    assert made.tags == {"source": "math-shepherd", "subset": "GSM8K", "label_kind": "automatic"}


def test_math_shepherd_signs_in_the_text_are_no_labels(write: Write) -> None:
    row = {"input": "Q + - Step 1: 3 - 1 + ки\nStep 2: -1 ки\nlast words", "task": "MATH"}
    (made,) = read_source(
        "math-shepherd", [write({**row, "label": "Q + - Step 1: 3 - 1 + -\nStep 2: -1 +\nlast words"})]
    )
    assert made.steps == ("Step 1: 3 - 1 +", "Step 2: -1", "last words")
    assert made.step_labels == (False, True, None)
    assert made.final_answer is None


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"label": "How many? Step 1: 1+1=2 +"}, "\\+ or - for tag 2"),
        ({"label": SHEPHERD["label"].replace("2 +", "2 *")}, "\\+ or - for tag 1"),
        ({"input": "no tag", "label": "no tag"}, "must be a question, then steps"),
        ({"input": "Step 1: a ки", "label": "Step 1: a +"}, "must be a question, then steps"),
    ],
)
def test_math_shepherd_that_does_not_fit(write: Write, changed: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: .*{problem}"):
        list(read_source("math-shepherd", [write({**SHEPHERD, **changed})]))


@needs_data
def test_math_shepherd_shared() -> None:
    made, _ = shared("math-shepherd", "openr_samples/samples_math-shepherd.jsonl")
    assert [t.step_labels for t in made] == [
        (True, True, True, True, False),
        (False, False, False),
        (False, False),
        (False,) * 5,
        (True, False, False, False, False),
        (False, False),
        (False, False, False),
    ]
    assert [t.final_answer for t in made] == ["13520", "16000", "40", "900", "52", "2.2", "210"]
    assert all(t.steps[0].startswith("Step 1: ") and t.question.endswith(("?", "Orleans?")) for t in made)


# --- BIG-Bench Mistake ------------------------------------------------------------------------------------------------


def test_big_bench_mistake(write: Write) -> None:
    row = {
        "input": "sort b a",
        "steps": ["b first", "", "then a"],
        "target": "a b",
        "answer": "b a",
        "mistake_index": 0,
    }
    none = {**row, "mistake_index": None, "answer": None}
    wrong, right = read_source("big-bench-mistake", [write(row, none, name="word_sorting.jsonl")])
    assert (wrong.question, wrong.gold_answer, wrong.final_answer) == ("sort b a", "a b", "b a")
    assert (wrong.steps, wrong.step_labels) == (("b first", "", "then a"), (False, None, None))
    assert wrong.tags == {"source": "big-bench-mistake", "subset": "word_sorting", "label_kind": "human"}
    assert (right.step_labels, right.final_answer) == ((True, True, True), None)


def test_big_bench_mistake_without_its_field_is_not_taken_for_right(write: Write) -> None:
    with pytest.raises(
        InputError, match=r"rows\.jsonl:1: field 'mistake_index' is missing; the fields here are: steps;"
    ):
        list(read_source("big-bench-mistake", [write({"steps": ["a"]})]))


@needs_data
def test_big_bench_mistake_shared() -> None:
    made, _ = shared("big-bench-mistake", "big_bench_mistake/*.jsonl")
    assert Counter(t.tags["subset"] for t in made) == {
        "dyck_languages": 986,
        "logical_deduction": 300,
        "multistep_arithmetic": 300,
        "tracking_shuffled_objects": 300,
        "word_sorting": 300,
    }
    assert sum(t.first_error is None for t in made) == 336 + 6 + 62 + 40 + 34
    assert (made[0].first_error, made[0].gold_answer, made[0].final_answer) == (12, "] }", "}")


# --- MR-MATH ----------------------------------------------------------------------------------------------------------


def test_mr_math_both_files(write: Write) -> None:
    common = {"id": 4, "question": "q", "ground_truth_answer": "5", "generator": "G"}
    steps = {"model_output_step_format": [["1. a", "   - b"], ["2. c"], ["3. d"]]}
    answer = {"model_output_answer_correctness": "correct", "model_output_solution_correctness": "wrong"}
    invalid = common | steps | answer | {"model_output_solution_first_error_step": 2}
    fine = invalid | {"id": 5, "model_output_solution_first_error_step": "N/A"}
    redundant = common | steps | {"rating": [1, 0, 1]}
    made = list(read_source("mr-math", [write(invalid, fine, name="i.jsonl"), write(redundant, name="r.jsonl")]))
    assert [t.id for t in made] == ["invalid/4", "invalid/5", "redundant/4"]
    assert made[0].steps == ("1. a\n   - b", "2. c", "3. d")
    assert [t.step_labels for t in made] == [(True, False, None), (True, True, True), (True, False, True)]
    assert made[0].gold_answer == "5"
    assert made[0].tags["final_answer_correct"] == "true"
    assert made[2].tags == {"source": "mr-math", "subset": "redundant", "generator": "G", "label_kind": "human"}


@needs_data
def test_mr_math_shared() -> None:
    made, _ = shared("mr-math", "reasoneval/*.jsonl")
    invalid = [t for t in made if t.tags["subset"] == "invalid"]
    redundant = [t for t in made if t.tags["subset"] == "redundant"]
    assert (len(invalid), len(redundant)) == (159, 300)
    assert sum(t.first_error is None for t in invalid) == 76
    assert Counter(t.first_error for t in invalid)[1] == 29  # the file has 29 times step 2
    assert Counter(label for t in redundant for label in t.step_labels or ()) == {True: 2642, False: 353}


# --- MATH-APS ---------------------------------------------------------------------------------------------------------


def test_math_aps_tree_and_flat_give_the_same_leaves(write: Write) -> None:
    def node(text: str, value: float, *children: object) -> dict[str, object]:
        return {"text": text, "mc_value": value, "children": list(children)}

    tree = node("Q?", 0.5, node("a", 1.0), node("b", 0.25, node("c", 0.0), node("d", 1.0)), node("b", 0.5))
    prefixes = [
        ("Q?", 0.5),
        ("Q?\n\na", 1),
        ("Q?\n\nb", 0.25),
        ("Q?\n\nb\n\n c", 0),
        ("Q?\n\nb\n\nd", 1),
        ("Q?\n\nb", 0.5),
    ]
    flat = [{"solution_prefix": text, "mc_value": value} for text, value in prefixes]
    common = {"question": "Q?", "final_answer": "7", "question_id": 3}
    both = [{**common, "reasoning_steps": steps} for steps in (tree, flat)]
    from_tree, from_flat = (list(read_source("math-aps", [write(row)])) for row in both)
    assert from_tree == from_flat
    assert [t.steps for t in from_tree] == [("a",), ("b", "c"), ("b", "d"), ("b",)]
    assert [t.tags["mc_values"] for t in from_tree] == ["[1.0]", "[0.25,0.0]", "[0.25,1.0]", "[0.5]"]
    assert from_tree[0].tags["mc_value_question"] == "0.5"
    assert {t.gold_answer for t in from_tree} == {"7"}
    assert {t.step_labels for t in from_tree} == {None}  # Monte Carlo values are no labels


def test_math_aps_flat_list_must_go_on_from_the_question(write: Write) -> None:
    flat = [{"solution_prefix": "Q", "mc_value": 1}, {"solution_prefix": "other", "mc_value": 1}]
    with pytest.raises(InputError, match=r"rows\.jsonl:1: field 'reasoning_steps' must list prefixes"):
        list(read_source("math-aps", [write({"question": "Q", "final_answer": "1", "reasoning_steps": flat})]))


@needs_data
def test_math_aps_shared() -> None:
    flat, _ = shared("math-aps", "openr_samples/samples_math-aps.jsonl")
    tree, _ = shared("math-aps", "openr_samples/samples_math-aps-tree.jsonl")
    assert Counter(t.gold_answer for t in tree) == {"3": 137, "64": 85, r"\frac{11}{36}": 20}
    a, b = ([t for t in made if t.gold_answer == "64"] for made in (flat, tree))  # this tree is in both files
    same = sum(x.steps == y.steps and x.tags["mc_values"] == y.tags["mc_values"] for x, y in zip(a, b, strict=True))
    assert (len(a), same) == (85, 81)  # four go on from a sibling's text, which the flat file cannot tell
    squeezed = [["".join("".join(t.steps).split()) for t in made] for made in (a, b)]
    assert squeezed[0] == squeezed[1]


# --- PRM800K ----------------------------------------------------------------------------------------------------------


def completion(text: str, rating: int | None) -> dict[str, object]:
    return {"text": text, "rating": rating, "flagged": None}


OFFICIAL = {
    "labeler": "l",
    "generation": None,
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
    "question": {"problem": "1 + 1?", "ground_truth_answer": "2"},
    "label": {
        "steps": [
            {
                "completions": [completion("bad", -1), completion("ok", 0)],
                "human_completion": None,
                "chosen_completion": 1,
            },
            {
                "completions": [completion("wrong", -1)],
                "human_completion": completion("mine", None),
                "chosen_completion": None,
            },
            {
                "completions": [completion("So 2.\n\n# Answer\n\n2", 1), completion("So.\n\n# Answer\n\n3", -1)],
                "human_completion": None,
                "chosen_completion": 0,
            },
        ],
        "finish_reason": "solution",
    },
}


def test_prm800k_official_rows_give_every_leaf(write: Write) -> None:
    made = list(read_source("prm800k", [write(OFFICIAL, name="phase1_train.jsonl")]))
    assert [t.steps for t in made] == [("bad",), ("ok", "wrong"), ("ok", "mine", "So 2."), ("ok", "mine", "So.")]
    assert [t.step_labels for t in made] == [(False,), (True, False), (True, None, True), (True, None, False)]
    assert [t.final_answer for t in made] == [None, None, "2", "3"]
    assert {t.gold_answer for t in made} == {"2"}
    assert made[2].tags == {
        "source": "prm800k",
        "subset": "phase1_train",
        "label_kind": "human",
        "ratings": "[0,null,1]",
        "human_steps": "[1]",
        "is_solution": "true",
        "is_quality_control_question": "false",
        "is_initial_screening_question": "false",
        "finish_reason": "solution",
    }
    assert [t.tags["is_solution"] for t in made] == ["false", "false", "true", "false"]


def test_prm800k_official_row_that_was_given_up(write: Write) -> None:
    open_end: dict[str, object] = {"completions": [], "human_completion": None, "chosen_completion": None}
    step = {"completions": [completion("a", 1)], "human_completion": None, "chosen_completion": 0}
    rows = [
        {**OFFICIAL, "label": {"steps": steps, "finish_reason": "give_up"}} for steps in ([step, open_end], [open_end])
    ]
    tally = Tally()
    (made,) = read_source("prm800k", [write(*rows)], tally=tally)
    assert (made.steps, made.step_labels, made.tags["is_solution"]) == (("a",), (True,), "false")
    assert [(reason, n) for reason, (n, _) in tally.skipped.items()] == [("no step was rated", 1)]
    assert tally.skipped["no step was rated"][1].endswith("rows.jsonl:2")


def stepwise(responses: list[str], text: str, rating: int | None, **more: object) -> dict[str, object]:
    return {"instruction": "1 + 1?", "responses": responses, "next_response": text, "rating": rating, **more}


def test_prm800k_stepwise_rows_give_the_leaves_of_the_prefix_tree(write: Write) -> None:
    rows = [
        stepwise([], "a", 1),
        stepwise(["a"], "b", -1),
        stepwise(["a"], "c", None, is_human_response=True),
        stepwise(["a", "c"], "d", 0, is_solution=True, answer="2"),
        stepwise(["a"], "b", -1),
        {**stepwise([], "other problem", 1), "instruction": "2 + 2?"},
    ]
    tally = Tally()
    made = list(read_source("prm800k", [write(*rows, name="phase1_test_stepwise.jsonl")], tally=tally))
    assert [t.steps for t in made] == [("a", "b"), ("a", "c", "d"), ("a", "b"), ("other problem",)]
    assert [t.step_labels for t in made] == [(True, False), (True, None, True), (True, False), (True,)]
    assert (made[1].final_answer, made[1].tags["is_solution"], made[1].tags["human_steps"]) == ("2", "true", "[1]")
    assert (made[1].tags["ratings"], made[1].tags["subset"]) == ("[1,null,0]", "phase1_test")
    assert made[2].id == f"{made[0].id}-2"
    assert sum(n for n, _ in tally.notes.values()) == 1


def test_prm800k_a_step_rated_twice_takes_the_later_rating(write: Write) -> None:
    tally = Tally()
    rows = [stepwise([], "a", 1), stepwise([], "a", -1), stepwise(["a"], "b", 1)]
    (made,) = read_source("prm800k", [write(*rows)], tally=tally)
    assert made.step_labels == (False, True)
    assert tally.notes["steps rated twice and differently; the later rating counts"][0] == 1


@pytest.mark.parametrize("rating", [2, True, "1", [1]])
def test_prm800k_rating_that_is_none(write: Write, rating: object) -> None:
    row = {"problem": "q", "steps": ["a", "b"], "ratings": [1, rating], "answer": None}
    with pytest.raises(InputError, match=r"rows\.jsonl:1: a rating must be 1, 0, -1 or null"):
        list(read_source("prm800k", [write(row)]))


@needs_data
@pytest.mark.parametrize(
    ("split", "rows", "count", "finished"), [("test", 5449, 3693, 90), ("train", 51835, 37175, 808)]
)
def test_prm800k_shared_stepwise_rebuilds_the_derived_trajectories(
    split: str, rows: int, count: int, finished: int
) -> None:
    rebuilt, tally = shared("prm800k", f"prm800k/phase1_{split}_stepwise.jsonl.gz")
    derived, _ = shared("prm800k", f"prm800k/phase1_{split}_trajectories.jsonl.gz")
    assert rebuilt == derived
    assert (tally.read, len(derived)) == (rows, count)
    assert sum(t.tags["is_solution"] == "true" for t in derived) == finished


@needs_data
def test_prm800k_shared_trajectories_have_the_first_error_of_the_file() -> None:
    derived, _ = shared("prm800k", "prm800k/phase1_test_trajectories.jsonl.gz")
    labels = [row["label"] for _, row in read_any(DATA / "prm800k/phase1_test_trajectories.jsonl.gz")]
    assert [-1 if t.first_error is None else t.first_error for t in derived] == labels


@needs_data
def test_prm800k_shared_official_rows_agree_with_the_derived_trajectories() -> None:
    official, tally = shared("prm800k", "openr_samples/samples_prm800k.jsonl")
    assert (tally.read, tally.skipped) == (6, {})
    derived = [t for s in ("test", "train") for t in shared("prm800k", f"prm800k/phase1_{s}_traj*")[0]]
    problems = {t.question for t in official} & {t.question for t in derived}
    names = ("ratings", "human_steps", "is_solution")

    def content(made: list[Trajectory]) -> Counter[Any]:
        chosen = (t for t in made if t.question in problems)
        return Counter((t.question, t.steps, t.final_answer, *(t.tags.get(name) for name in names)) for t in chosen)

    assert len(problems) == 4
    assert content(official) == content(derived)


# --- stepwise and plain rows ------------------------------------------------------------------------------------------


def test_trl_stepwise_labels_hard_and_soft(write: Write) -> None:
    labels = [[True, False], [1, 0], [None, 1], [0.5, 1], [1.0, 0.0]]
    rows = [{"prompt": f"q{i}", "completions": ["a", "b"], "labels": given} for i, given in enumerate(labels)]
    tally = Tally()
    made = list(read_source("stepwise", [write(*rows)], Fields(label_kind="automatic"), tally=tally))
    assert [t.step_labels for t in made] == [(True, False), (True, False), (None, True), None, None]
    assert [t.tags.get("soft_labels") for t in made] == [None, None, None, "[0.5,1.0]", "[1.0,0.0]"]
    assert made[0].tags == {"source": "stepwise", "subset": "rows", "label_kind": "automatic"}
    assert tally.notes["soft labels, kept in the tag soft_labels, not as step_labels"][0] == 2


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([True], "has 1 labels for 2 steps"),
        ([1, -1], "must hold true, false, numbers from 0 to 1, or null"),
        (["+", "-"], "must hold true, false, numbers from 0 to 1, or null"),
        ([0.5, float("nan")], "must hold true, false, numbers from 0 to 1, or null"),
        ("+-", "must be a list of labels, found str"),
    ],
)
def test_trl_stepwise_labels_that_do_not_fit(write: Write, labels: object, problem: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: field 'labels' {problem}"):
        list(read_source("stepwise", [write({"prompt": "q", "completions": ["a", "b"], "labels": labels})]))


def test_plain_fields_by_name_and_dotted_path(write: Write) -> None:
    row = {
        "meta": {"q": "1 + 1?", "n": 27.0},
        "choices": [{"text": "Step 1: a\nStep 2: b"}],
        "ok": [True, None],
        "key": 12,
        "model": "M",
        "level": 3,
    }
    fields = Fields(
        question="meta.q",
        steps="choices.0.text",
        gold_answer="meta.n",
        labels="ok",
        id="key",
        tags=("model", "level"),
        label_kind="human",
    )
    (made,) = read_source("plain", [write(row)], fields)
    assert made == Trajectory(
        question="1 + 1?",
        steps=("Step 1: a", "Step 2: b"),
        gold_answer="27",
        step_labels=(True, None),
        tags={"source": "plain", "subset": "rows", "label_kind": "human", "model": "M", "level": "3"},
        id="12",
    )


def test_plain_defaults_and_the_way_to_split(write: Write) -> None:
    row = {"question": "q", "steps": "a\n\nb\nc", "gold_answer": 5, "final_answer": "x", "labels": [1, 0, 1]}
    (made,) = read_source("plain", [write(row)], how="lines")
    assert (made.steps, made.step_labels) == (("a", "b", "c"), (True, False, True))
    assert (made.gold_answer, made.final_answer) == ("5", "x")


def test_plain_reads_back_its_own_trajectories_with_their_labels(write: Write) -> None:
    own = Trajectory(question="q", steps=("a", "b"), gold_answer="1", step_labels=(True, False))
    (made,) = read_source("plain", [write(json.loads(dump_line(own)))])
    assert (made.id, made.steps, made.step_labels, made.gold_answer) == (own.id, own.steps, own.step_labels, "1")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"q": "a"}, r"field 'steps' is missing; the fields here are: q; name it with --steps-field"),
        ({"steps": ["a"], "q": "b"}, r"field 'question' is missing; .*: steps, q; name it with --question-field"),
        ({"steps": 3, "question": "q"}, "field 'steps' must be a list of texts, found int"),
        ({"steps": ["a", None], "question": "q"}, "field 'steps' must be a list of texts, found NoneType"),
        ({"steps": ["a"], "question": 5}, "field 'question' must be a text, found int"),
        ({"steps": ["a"], "question": " "}, "field 'question' must be a text that is not empty"),
        ({"steps": ["a"], "question": "q", "gold_answer": True}, "field 'gold_answer' must be a text or a number"),
        ({"steps": ["a"], "question": "q", "id": 1.5}, "field 'id' must be a text or a whole number"),
        ({"steps": ["a"], "question": "half \ud83d"}, "field 'question' holds half of a surrogate pair"),
        (["a"], "expected a JSON object, found list"),
    ],
)
def test_a_plain_row_that_does_not_fit_is_named_with_its_line(write: Write, row: object, problem: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:2: {problem}"):
        list(read_source("plain", [write({"question": "q", "steps": ["a"]}, row)]))


def test_a_field_that_was_named_must_be_in_some_row(write: Write) -> None:
    rows = [{"question": "q", "steps": ["a"]}, {"question": "r", "steps": ["a"], "gold": "1"}]
    made = list(read_source("plain", [write(*rows)], Fields(gold_answer="gold")))
    assert [t.gold_answer for t in made] == [None, "1"]
    with pytest.raises(InputError, match=r"rows\.jsonl: no row has the field 'goal', which was named"):
        list(read_source("plain", [write(*rows)], Fields(gold_answer="goal")))


def test_rows_without_steps_are_counted_with_the_first_place(write: Write) -> None:
    tally = Tally()
    rows = [{"question": "q", "steps": steps} for steps in (["a"], [], "  ")]
    (made,) = read_source("plain", [write(*rows)], tally=tally)
    assert made.steps == ("a",)
    first, second = tally.lines()
    assert first == "rows read: 3, trajectories made: 1"
    assert second.startswith("skipped, no steps: 2 (first: ")
    assert second.endswith("rows.jsonl:2)")


# --- ids --------------------------------------------------------------------------------------------------------------


def test_an_id_used_twice_names_both_places(write: Write) -> None:
    row = {"question": "q", "steps": ["a"], "id": "x"}
    files = [write(row, name="one.jsonl"), write({**row, "id": "y"}, row, name="two.jsonl")]
    with pytest.raises(InputError, match=r"two.jsonl:2: the id 'x' was already used at .*one.jsonl:1; give each row"):
        list(read_source("plain", files))


def test_identical_rows_without_ids_are_kept_apart_and_counted(write: Write) -> None:
    row = {"question": "q", "steps": ["a"]}
    tally = Tally()
    files = [write(row, row, name="one.jsonl"), write(row, name="two.jsonl")]
    ids = [t.id for t in read_source("plain", files, tally=tally)]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]
    note = tally.notes["identical trajectories, told apart by -2, -3... after their id"]
    assert note == (2, f"{files[0]}:2")


def test_one_file_given_twice(write: Write) -> None:
    file = write({"question": "q", "steps": ["a"]})
    with pytest.raises(InputError, match=r"rows\.jsonl is given twice"):
        read_source("plain", [file, file])


# --- files ------------------------------------------------------------------------------------------------------------

ROWS = [{"question": "q1", "steps": ["a"]}, {"question": "q2", "steps": ["b"]}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", json.dumps(ROWS, indent=1)),
        ("x.json", json.dumps({"k1": ROWS[0], "k2": ROWS[1]})),
        ("x.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("x.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_json_lists_objects_and_lines_packed_or_not(tmp_path: Path, name: str, text: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    made = list(read_source("plain", [str(path)]))
    assert [(t.question, t.steps) for t in made] == [("q1", ("a",)), ("q2", ("b",))]
    assert {t.tags["subset"] for t in made} == {"x"}


def test_the_keys_of_an_object_of_rows_become_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "keyed.json"
    path.write_text(json.dumps({"k1": ROWS[0], "k2": {**ROWS[1], "id": "own"}}))
    assert [t.id for t in read_source("plain", [str(path)])] == ["k1", "own"]


def test_one_json_object_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert [(place, row) for place, row in read_any(path)] == [(f"{path}, row 1", ROWS[0])]


def test_parquet_rows_keep_their_nulls(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "word_sorting.parquet"
    rows = [
        {"input": "q", "steps": ["a", "b"], "target": "t", "answer": "u", "mistake_index": index} for index in (1, None)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    made = list(read_source("big-bench-mistake", [str(path)]))
    assert [t.step_labels for t in made] == [(True, False), (True, True)]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.jsonl", b'{"question": "q", "steps": ["a"]}\n{"question": \n', r"x.jsonl:2: broken JSON .* at column"),
        ("x.json", b'[{"question": "q"},\n {"question": }]', r"x.json:2: broken JSON \(Expecting value at column 15\)"),
        ("x.json", b'{"question": "q", "steps": ["a"]}\n{"question":\n', r"x.json:2: broken JSON"),
        ("x.json", b'"\xff"', "x.json: byte 2 is not UTF-8"),
        ("x.json", b"[" * 100_000, r"x.json: broken JSON \(nested too deep\)"),
        ("x.json.gz", gzip.compress(b"[]")[:-4], "x.json.gz: not a whole gzip file"),
        ("x.json.gz", gzip.compress(b"[]")[:10] + b"\x07" * 20, "x.json.gz: not a whole gzip file"),
        ("x.json", b"[" + b"7" * 5000 + b"]", r"x.json: broken JSON \(a number with too many digits\)"),
        ("x.jsonl", b"[" + b"7" * 5000 + b"]", r"x.jsonl:1: broken JSON \(a number with too many digits\)"),
        ("x.parquet.gz", b"", "x.parquet.gz: unpack this file first"),
        ("x.parquet", b"PAR1", "x.parquet: not a Parquet file"),
    ],
)
def test_a_broken_file_stops_with_its_place(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        list(read_source("plain", [str(path)]))


@pytest.mark.parametrize("name", ["no.jsonl", "no.json", "no.parquet", "no.json.gz"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no such file"):
        list(read_source("plain", [str(tmp_path / name)]))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: read_source("procesbench", []), r"unknown source 'procesbench'; did you mean 'processbench'\?"),
        (lambda: read_source("plain", [], how="line"), "unknown way to split steps 'line'"),
        (lambda: read_source("plain", [], split="train"), "a split can be chosen for the source 'datasets' only"),
    ],
)
def test_wrong_arguments_fail_before_anything_is_read(call: Callable[[], object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        call()


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"datasets"}))
def test_every_reader_names_the_field_that_a_foreign_row_lacks(write: Write, name: str) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1: field '\w+' is missing; the fields here are: foreign;"):
        list(read_source(name, [write({"foreign": 1})]))


# --- the datasets library ---------------------------------------------------------------------------------------------


def test_datasets_folder_with_one_split_and_with_several(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"problem": "q", "solution": "a\n\nb", "answer": 3.0, "labels": [True, False]}]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "two"))
    fields = Fields(question="problem", steps="solution", gold_answer="answer")

    (made,) = read_source("datasets", [str(tmp_path / "one")], fields)
    assert (made.question, made.steps, made.step_labels, made.gold_answer) == ("q", ("a", "b"), (True, False), "3")
    assert made.tags == {"source": "datasets", "subset": "one"}
    (made,) = read_source("datasets", [str(tmp_path / "two")], fields, split="test")
    assert made.tags == {"source": "datasets", "subset": "two", "split": "test"}

    for split, problem in (
        (None, r"it has several splits; choose one with --split \(there are: train, test\)"),
        ("dev", "it has no split 'dev'; choose one"),
    ):
        with pytest.raises(InputError, match=problem):
            list(read_source("datasets", [str(tmp_path / "two")], fields, split=split))
    with pytest.raises(InputError, match="this folder holds one split without a name"):
        list(read_source("datasets", [str(tmp_path / "one")], fields, split="train"))


def test_datasets_hub_name_with_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, configuration: str | None, *, split: str | None) -> Any:
        asked.append((name, configuration, split))
        if name == "org/none":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/none' doesn't exist\nmore")
        return {"train": datasets.Dataset.from_list([{"question": "q", "steps": ["a"]}])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (made,) = read_source("datasets", ["org/name-2.5:main"], split="train")
    assert (made.steps, made.tags["subset"]) == (("a",), "name-2.5:main")
    with pytest.raises(InputError, match=r"^org/none: the datasets library cannot load this .*doesn't exist\)$"):
        list(read_source("datasets", ["org/none"]))
    assert asked == [("org/name-2.5", "main", "train"), ("org/none", None, None)]


def test_datasets_that_cannot_be_loaded_or_read(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow

    def load_dataset(name: str, *_: object, **__: object) -> Any:
        if name == "script":
            raise RuntimeError("Dataset scripts are no longer supported, but found script.py\nmore")

        def rows() -> Iterator[dict[str, object]]:
            yield {"question": "q", "steps": ["a"]}
            raise pyarrow.ArrowInvalid("a damaged block\nmore")

        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, problem in (("script", "Dataset scripts are no longer supported, .*py"), ("torn", "a damaged block")):
        with pytest.raises(InputError, match=rf"^{name}: the datasets library cannot load this \({problem}\)$"):
            list(read_source("datasets", [name]))


# --- everything -------------------------------------------------------------------------------------------------------


@needs_data
def test_shared_trajectories_survive_being_written_and_read() -> None:
    made, _ = shared("math-aps", "openr_samples/samples_math-aps.jsonl")
    assert [from_json(Trajectory, json.loads(dump_line(t))) for t in made] == made


def test_importing_the_readers_loads_no_heavy_library() -> None:
    code = (
        "import sys, cpmi.sources, cpmi.gold; "
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'torch', 'datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
