"""Good files in every format that cpmi reads, written by hand, for ``test_fuzz`` to damage."""

from __future__ import annotations

from typing import Any

QUESTION = "What is 2 + 3?"
STEPS = ["2 + 3 = 5.", "So it is 6."]

TRAJECTORIES: list[dict[str, Any]] = [
    {"id": "a", "question": QUESTION, "steps": STEPS, "gold_answer": "5", "final_answer": "6",
     "step_labels": [True, False], "tags": {"source": "hand", "subset": "s"}},
    {"id": "b", "question": "Is it so?", "steps": ["Yes."], "gold_answer": "A", "choices": ["A", "B"],
     "step_labels": [None]},
    {"question": "q", "steps": []},
]  # fmt: skip
REWARDS: list[dict[str, Any]] = [
    {"trajectory_id": "a", "rewards": [0.5, -1.25], "source": "cpmi", "terms": {"gold": [0.1, 0.2]},
     "details": {"negatives": ["6", "7"], "n": 2}, "cost": {"tokens_scored": 7, "seconds": 0.5}},
    {"trajectory_id": "b", "rewards": [], "source": "cpmi", "error": "it has no steps"},
    {"trajectory_id": "c", "rewards": [1], "source": "mc"},
]  # fmt: skip


def _rated(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": None}


def _node(text: str, value: float, *children: Any) -> dict[str, Any]:
    return {"text": text, "mc_value": value, "children": list(children)}


_PREFIXES = [("Q?", 0.5), ("Q? a", 1), ("Q? b", 0.25), ("Q? b c", 0), ("Q? d", 1)]
_MR_STEPS = {"model_output_step_format": [["1. a", "   - b"], ["2. c"]], "question": "q", "ground_truth_answer": "5"}

SOURCES: dict[str, list[dict[str, Any]]] = {
    "processbench": [
        {"id": "gsm8k-7", "generator": "G", "problem": QUESTION, "steps": STEPS, "final_answer_correct": False,
         "label": 1},
        {"id": "math-8", "problem": "q", "steps": ["a"], "label": -1, "gold_answer": 6.0},
    ],
    "prmbench": [
        {"classification": "circular", "idx": "circular_1", "modified_question": "q", "modified_process": STEPS,
         "error_steps": [2]},
        {"classification": "multi_solutions", "idx": "m", "modified_question": "q", "modified_process": ["a"],
         "error_steps": [1, 7], "ground_truth": "5"},
    ],
    "prm800k": [
        {"question": {"problem": QUESTION, "ground_truth_answer": "5"},
         "label": {"finish_reason": "solution", "steps": [
            {"completions": [_rated("a", 1), _rated("b", -1)], "human_completion": None, "chosen_completion": 0},
            {"completions": [_rated("c\n\n# Answer\n\n5", 0)], "human_completion": _rated("d", None),
             "chosen_completion": None}]}},
        {"instruction": "q", "responses": [], "next_response": "a", "rating": 1},
        {"instruction": "q", "responses": ["a"], "next_response": "b", "rating": -1, "is_human_response": True},
        {"instruction": "p", "responses": [], "next_response": "c", "rating": None, "is_solution": True, "answer": "1"},
        {"problem": "q", "steps": ["a", "b"], "ratings": [1, None], "is_human_step": [False, True], "answer": "5"},
    ],
    "math-shepherd": [
        {"input": "q? Step 1: a ки\nStep 2: b The answer is: 5 ки",
         "label": "q? Step 1: a +\nStep 2: b The answer is: 5 -",
         "task": "GSM8K"},
        {"input": "p? Step 1: a ки\nStep 2: b", "label": "p? Step 1: a -\nStep 2: b"},
    ],
    "big-bench-mistake": [
        {"input": QUESTION, "steps": STEPS, "answer": "6", "target": "5", "mistake_index": 1},
        {"input": "q", "steps": ["a"], "target": 5, "mistake_index": None},
    ],
    "mr-math": [
        {"id": 4, **_MR_STEPS, "generator": "G", "model_output_answer_correctness": "correct",
         "model_output_solution_first_error_step": 2},
        {"id": 5, **_MR_STEPS, "model_output_answer_correctness": "wrong",
         "model_output_solution_first_error_step": "N/A"},
        {"id": 6, **_MR_STEPS, "rating": [1, 0]},
    ],
    "math-aps": [
        {"question": "Q?", "final_answer": "7", "question_id": 3,
         "reasoning_steps": _node("Q?", 0.5, _node("a", 1.0), _node("b", 0.25, _node("c", 0.0)))},
        {"question": "Q?", "final_answer": 7,
         "reasoning_steps": [{"solution_prefix": text, "mc_value": value} for text, value in _PREFIXES]},
    ],
    "zeroeval": [
        {"id": "z", "question": QUESTION, "gold_answer": "5", "candidates": [
            {"generator": "G", "output": '{"reasoning": "First 2.\\n\\nThen \\\\frac{1}{2}.", "answer": "5"}',
             "answer": "5"},
            {"generator": "H", "output": "I add. It is 5.\n```json\n{\"reasoning\": \"5\", \"answer\": 5}\n```",
             "answer": None},
            {"generator": "I", "output": "It is 5. So 5.</s>", "answer": 5}]},
    ],
    "gsm8k-solutions": [
        {"question": QUESTION, "ground_truth": "2+3=<<2+3=5>>5\nA: 5"} | {
            name: {"solution": "2+3=<<2+3=5>>5\nA: 5", "is_correct": True}
            for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")},
    ],
    "qwen-eval": [
        {"idx": 0, "question": QUESTION, "gt": "5", "code": ["a\n\nb", "c"], "pred": ["5", "6"], "score": [True, False],
         "pred_score": [[0.5], 0.25]},
        {"idx": 1, "question": "q", "gt": 5, "code": ["a"], "pred": [""], "score": [False]},
    ],
    "stepwise": [
        {"prompt": QUESTION, "completions": STEPS, "labels": [True, False]},
        {"prompt": "q", "completions": ["a"], "labels": [0.5]},
    ],
    "plain": [
        {"id": "p", "question": QUESTION, "steps": "Step 1: add.\nStep 2: $$5$$ it is.", "gold_answer": 5},
        {"question": "q", "steps": "a. B is 1.5. \\[ x \\] So c.\n\n1. d\n2. e", "final_answer": "6"},
        {"id": 7, "question": "q", "steps": ["a", "b"], "labels": [1, None]},
    ],
}  # fmt: skip

# A folder as the datasets library saves it: the files beside the rows.
SAVED: dict[str, dict[str, Any]] = {
    "dataset_dict.json": {"splits": ["train", "test"]},
    "dataset_info.json": {
        "citation": "", "description": "", "homepage": "", "license": "",
        "features": {"question": {"dtype": "string", "_type": "Value"},
                     "steps": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
                     "gold_answer": {"dtype": "string", "_type": "Value"},
                     "labels": {"feature": {"dtype": "bool", "_type": "Value"}, "_type": "List"}}},
    "state.json": {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0123456789abcdef",
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": None},
}  # fmt: skip
SAVED_ROWS = [
    {"question": f"q{number}", "steps": ["a", "b"], "gold_answer": "3", "labels": [True, False]} for number in range(3)
]

TASKS: dict[str, list[dict[str, Any]]] = {
    "questions": [
        TRAJECTORIES[0],
        {"id": 3, "problem": "B?", "answer": "(B)", "choices": ["A", "B"], "tags": {"level": 2, "kinds": ["a", "b"]}},
        {"question": QUESTION, "target": "5"},
    ],
    "gsm8k": [{"question": QUESTION, "answer": "2+3=5\n#### 1,235"}, {"question": "q", "answer": "7"}],
    "math": [
        {"problem": "x?", "level": "Level 3", "type": "Algebra", "solution": r"$\boxed{1}$ or \boxed{\frac{1}{2}}."},
        {"problem": "x?", "level": 2, "subject": "Algebra", "answer": "$3$", "unique_id": "t/1"},
    ],
    "olympiadbench": [
        {"id": 5, "context": "Let $a=1$.", "question": "x?", "final_answer": ["$1$", "$2$"], "subfield": "Algebra"},
        {"id": 6, "context": None, "question": "x?", "final_answer": "3", "image_1": None},
    ],
    "omni-math": [
        {"problem": "n?", "answer": "\\[\n\\frac{1}{2}\n\\]", "difficulty": 8.0, "domain": ["a", "b"], "source": "imo"},
    ],
    "svamp": [{"ID": "c-7", "Body": "9 pens are here", "Question": "How many?", "Answer": 3.0, "Type": "t"}],
    "asdiv": [{"body": "There are 9,", "question": "how many?", "answer": "9 (apples)", "idx": 4}],
    "mawps": [
        {"input": "70 - 27 ?", "target": 43.0, "type": "t"},
        {"id": "m1", "question": "q?", "result_float": 11.5},
    ],
    "amc": [{"id": 3, "problem": "p?", "answer": 27.0, "url": "u"}],
    "aime": [
        {"id": 60, "problem": "p?", "answer": "025"},
        {"ID": "2024-I-1", "Problem": "p?", "Answer": 204},
        {"problem": "p?", "solution": r"\boxed{073}"},
    ],
    "minerva": [{"idx": 1, "problem": "d?", "solution": r"\boxed{1.6} m", "type": "T"}],
    "gaokao": [{"source": "s", "question": "Which: (A) 1 (B) 2 (C) 3 (D) 4", "answer": "A"}],
    "college-math": [{"question": "q", "answer": "$y=2$.", "data_topic": "t", "question_number": "1.2"}],
    "mmlu-stem": [
        {"question": "2 + 2?", "choices": ["3", "4 ", "5"], "answer": 1, "type": "elementary_mathematics"},
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": "b", "subject": "astronomy"},
    ],
    "folio": [
        {"premises": ["Cats purr. ", "Tom is a cat."], "conclusion": "Tom purrs.", "label": "True", "story_id": 4},
        {"premises": "Cats purr.\nTom sleeps.", "conclusion": "Tom purrs.", "label": "Unknown", "example_id": 9},
    ],
    "logiqa2": [
        {"id": 7, "text": "All a are b.", "question": "What?", "options": ["No a is b.", "Some b is a."], "answer": 1,
         "type": {"Categorical": True, "Disjunctive": False}},
        {"context": "All a are b.", "query": "What?", "options": ["x", "y"], "correct_option": 0},
    ],
    "logicnli": [
        {"story_id": "17", "facts": ["Eli is soft."], "rules": ["If soft, then civil."],
         "statements": ["Eli is civil.", "Eli is tall."], "labels": ["self_contradiction", "neutral"]},
        {"premise": "Eli is soft.", "hypothesis": "Eli is tall.", "label": "neutral"},
    ],
}  # fmt: skip

GOLD: list[dict[str, Any]] = [
    {"question": QUESTION, "answer": "#### 5"},
    {"question": "x?", "solution": r"So \boxed{\frac{1}{2}}"},
    {"problem": "n?", "final_answer": ["$1$", 2]},
    {"question": "none", "answer": None},
]

MANIFEST: dict[str, Any] = {
    "format": 1, "method": "mc", "input": {"path": "trajectories.jsonl", "sha256": "0" * 64, "trajectories": 3},
    "settings": {"rollouts": {"n": 2}}, "engine": {"model": "toy:", "revision": None}, "shards": 1,
}  # fmt: skip
ROLLOUTS: list[dict[str, Any]] = [
    {"role": "policy", "trajectory_id": name, "prefix": 0,
     "completions": [{"text": "so 5", "finish_reason": "stop", "stop_text": ""}],
     "cost": {"tokens_generated": 3, "tokens_scored": 9, "seconds": 0.25}}
    for name in "xy"
]  # fmt: skip
NOTES: list[dict[str, Any]] = [{"event": "start", "pid": 1}, {"event": "end", "pid": 1, "rewarded": 2}]

_COST = {"tokens_generated": 3, "tokens_scored": 9, "seconds": 0.25}
ATTEMPTS: list[dict[str, Any]] = [
    {"id": "q", "candidates": 2, "finished": 1, "sampling": _COST, "rewarding": _COST, "rounds": 2, "error": None},
    {"id": "r", "candidates": 0, "finished": 0, "sampling": _COST, "rewarding": _COST, "rounds": 0, "error": "no"},
]
CANDIDATES: list[dict[str, Any]] = [
    {"id": f"q/{i}", "question": QUESTION, "steps": STEPS, "gold_answer": "5", "tags": {"question_id": "q"}}
    for i in range(2)
]
CANDIDATE_REWARDS: list[dict[str, Any]] = [
    {"trajectory_id": f"q/{i}", "rewards": [0.5, 0.25], "source": "prm"} for i in range(2)
]

TARGETS: list[dict[str, Any]] = [
    {"id": "a", "question": QUESTION, "steps": STEPS, "targets": [0.5, None], "rewards": [1.5, -2], "source": "cpmi"},
    {"id": "b", "question": "q", "steps": ["a"], "targets": [1]},
]
MAPS: list[dict[str, Any]] = [
    {"normalizer": "sigmoid", "source": "cpmi", "n": 3, "squash": "sigmoid", "slope": 2.0, "offset": 0.5, "low": None,
     "high": 1.0, "drop": False, "x": [], "y": []},
    {"normalizer": "rank", "source": "mc", "n": 2, "squash": "table", "slope": 1.0, "offset": 0.0, "low": None,
     "high": None, "drop": False, "x": [0.0, 1.0], "y": [0.25, 0.75]},
]  # fmt: skip
TEMPLATES: list[dict[str, Any]] = [
    {"instruction": "Solve: {question}\n\n", "cue": "The answer is: {answer}"},
    {"instruction": "{question}", "cue": "{answer}."},
]
_ESTIMATE = {"value": 0.5, "low": 0.25, "high": 0.75}
RESULTS: list[dict[str, Any]] = [
    {"benchmark": "processbench", "subset": "all", "source": "prm",
     "metrics": {"error_accuracy": _ESTIMATE, "correct_accuracy": {"value": None, "low": None, "high": None},
                 "f1": _ESTIMATE},
     "n": 3, "n_unscored": 1, "settings": {"threshold": "fixed-0.5", "threshold_value": 0.5},
     "curves": {"roc": [[0.0, 1.0], [0.0, 1.0]]}, "cases": [{"id": "a", "label": 1}], "notes": ["One."],
     "cost": _COST, "versions": {"cpmi": "1"}},
]  # fmt: skip
TRAINING: dict[str, Any] = {
    "report": {"history": [{"epoch": 0.5, "loss": 0.7}, {"epoch": 1.0, "eval_loss": 0.6}], "constant_loss": 0.69}
}
