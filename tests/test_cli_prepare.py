"""``cpmi prepare``, from the command line to the written file."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cpmi.cli import main
from cpmi.records import Trajectory, from_json, read_trajectories
from cpmi.sources import SOURCES
from cpmi.steps import WAYS

ROOT = Path(__file__).resolve().parents[1]


class Outcome(NamedTuple):
    status: object
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run ``cpmi prepare`` in a folder of its own, within this process."""
    logger, hub = logging.getLogger("cpmi"), logging.getLogger("huggingface_hub")
    handlers, level = list(logger.handlers), hub.level
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()  # what was printed before does not count
        monkeypatch.setattr(sys, "argv", ["cpmi", "prepare", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())  # colors, where CI forces them
        return Outcome(stop.value.code or 0, out, err)

    yield run
    logger.handlers[:] = handlers
    hub.setLevel(level)


def write(name: str, *rows: object) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def made(outcome: Outcome, output: str = "out.jsonl") -> list[Trajectory]:
    assert (outcome.status, outcome.err) == (0, "")
    return list(read_trajectories(output))


def problem(outcome: Outcome) -> str:
    """The one line that a user's mistake is answered with; nothing was written, no partial file is left."""
    assert (outcome.status, outcome.out) == (2, "")
    assert not [path.name for path in Path().iterdir() if "out." in path.name]
    start, _, text = outcome.err.partition("cpmi: error: ")
    assert start == ""
    assert text.endswith("\n")
    assert "\n" not in text.strip("\n")
    return text.strip("\n")


# --- sources ----------------------------------------------------------------------------------------------------------

SHEPHERD = "How many? Step 1: 1+1=2 {}\nStep 2: so 3. The answer is: 3 {}"
RATED = [{"text": "right", "rating": 1}, {"text": "wrong", "rating": -1}]
ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, ...]], list[tuple[bool | None, ...] | None]]] = {
    "processbench": (
        {"id": "gsm8k-1", "problem": "q", "steps": ["a", "b", "c"], "label": 1},
        [("a", "b", "c")],
        [(True, False, None)],
    ),
    "prmbench": (
        {
            "idx": "p",
            "classification": "circular",
            "modified_question": "q",
            "modified_process": ["a", "b", "c"],
            "error_steps": [2],
        },
        [("a", "b", "c")],
        [(True, False, True)],
    ),
    "prm800k": (
        {
            "question": {"problem": "q", "ground_truth_answer": "2"},
            "label": {"steps": [{"completions": RATED, "chosen_completion": 0}], "finish_reason": "solution"},
        },
        [("right",), ("wrong",)],
        [(True,), (False,)],
    ),
    "math-shepherd": (
        {"input": SHEPHERD.format("ки", "ки"), "label": SHEPHERD.format("+", "-"), "task": "GSM8K"},
        [("Step 1: 1+1=2", "Step 2: so 3. The answer is: 3")],
        [(True, False)],
    ),
    "big-bench-mistake": (
        {"input": "q", "steps": ["a", "b"], "target": "t", "answer": "u", "mistake_index": None},
        [("a", "b")],
        [(True, True)],
    ),
    "mr-math": (
        {
            "id": 1,
            "question": "q",
            "ground_truth_answer": "5",
            "model_output_step_format": [["a"], ["b", "c"]],
            "model_output_answer_correctness": "wrong",
            "model_output_solution_first_error_step": 1,
        },
        [("a", "b\nc")],
        [(False, None)],
    ),
    "math-aps": (
        {
            "question": "Q",
            "final_answer": "7",
            "reasoning_steps": {
                "text": "Q",
                "mc_value": 0.5,
                "children": [{"text": "a", "mc_value": 1.0}, {"text": "b", "mc_value": 0.0}],
            },
        },
        [("a",), ("b",)],
        [None, None],
    ),
    "zeroeval": (
        {
            "id": "7",
            "question": "q",
            "gold_answer": "5",
            "candidates": [{"output": '{"reasoning": "One. Two.", "answer": 5}'}],
        },
        [("One.", "Two.")],
        [None],
    ),
    "gsm8k-solutions": (
        {"question": "q", "ground_truth": "a\nA: 5"}
        | {
            f"{size}_{kind}": {"is_correct": True, "solution": "<<1=1>>a\nA: 5"}
            for size in ("6b", "175b")
            for kind in ("finetuning", "verification")
        },
        [("a", "A: 5")] * 4,
        [None] * 4,
    ),
    "qwen-eval": (
        {"idx": 0, "question": "q", "gt": "5", "code": ["a\n\nb", "c"], "pred": ["5", "6"], "score": [True, False]},
        [("a", "b"), ("c",)],
        [None, None],
    ),
    "stepwise": (
        {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
        [("a", "b")],
        [(True, False)],
    ),
    "plain": ({"question": "q", "steps": ["a", "b"], "labels": [1, 0]}, [("a", "b")], [(True, False)]),
}


def test_there_is_a_row_to_try_for_every_source() -> None:
    assert {*ROWS, "datasets"} == set(SOURCES)


@pytest.mark.parametrize("source", sorted(ROWS))
def test_every_source(prepare: Run, source: str) -> None:
    row, steps, labels = ROWS[source]
    outcome = prepare(source, write("in.jsonl", row), "-o", "out.jsonl")
    written = made(outcome)
    assert [t.steps for t in written] == steps
    assert [t.step_labels for t in written] == labels
    assert {t.tags["source"] for t in written} == {source}
    first, second = outcome.out.splitlines()
    assert first == f"{len(steps)} {'trajectory' if len(steps) == 1 else 'trajectories'} -> out.jsonl"
    assert second == f"  rows read: 1, trajectories made: {len(steps)}"


def test_a_saved_data_set_and_its_split(prepare: Run) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"problem": "q", "solution": "a\n\nb", "answer": 3}]
    one = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk("saved")
    named = ("--question-field", "problem", "--steps-field", "solution", "--answer-field", "answer", "-o", "out.jsonl")
    assert problem(prepare("datasets", "saved", *named)).endswith("--split (there are: train, test)")
    (trajectory,) = made(prepare("datasets", "saved", *named, "--split", "test"))
    assert (trajectory.steps, trajectory.gold_answer, trajectory.tags["split"]) == (("a", "b"), "3", "test")


# --- plain files ------------------------------------------------------------------------------------------------------

PLAIN = [{"question": "q1", "steps": ["a", "b"], "gold_answer": "1"}, {"question": "q2", "steps": ["c"]}]


def write_plain(name: str) -> str:
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(PLAIN), name)
        return name
    lines = "".join(json.dumps(row) + "\n" for row in PLAIN)
    content = (lines if ".jsonl" in name else json.dumps(PLAIN, indent=1)).encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "new/out.parquet"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.json", "in.parquet"])
def test_plain_from_and_to_every_kind_of_file(prepare: Run, name: str, output: str) -> None:
    written = made(prepare("plain", write_plain(name), "--output", output), output)
    assert [(t.question, t.steps, t.gold_answer) for t in written] == [("q1", ("a", "b"), "1"), ("q2", ("c",), None)]


def test_plain_with_named_fields(prepare: Run) -> None:
    row = {
        "meta": {"text": "q"},
        "cot": "Step 1: a\n\nb\nStep 2: c",
        "gold": 4,
        "mine": "5",
        "marks": [1, 0],
        "key": "k1",
        "level": 3,
        "topic": "sums",
    }
    named = (
        "--question-field meta.text --steps-field cot --answer-field gold --final-answer-field mine "
        "--labels-field marks --id-field key --tag-field level --tag-field topic --label-kind human"
    )
    (trajectory,) = made(prepare("plain", write("in.jsonl", row), *named.split(), "-o", "out.jsonl"))
    assert trajectory == Trajectory(
        question="q",
        steps=("Step 1: a\n\nb", "Step 2: c"),
        gold_answer="4",
        final_answer="5",
        step_labels=(True, False),
        tags={"source": "plain", "subset": "in", "label_kind": "human", "level": "3", "topic": "sums"},
        id="k1",
    )


def test_split_steps(prepare: Run) -> None:
    row = {"question": "q", "steps": "Step 1: a\n\nb\nStep 2: c"}
    (trajectory,) = made(prepare("plain", write("in.jsonl", row), "--split-steps", "lines", "-o", "out.jsonl"))
    assert trajectory.steps == ("Step 1: a", "b", "Step 2: c")


def test_several_files_and_a_limit(prepare: Run) -> None:
    files = [write(f"{n}.jsonl", *({"question": f"q{n}{i}", "steps": ["a"]} for i in range(3))) for n in range(2)]
    assert len(made(prepare("plain", *files, "-o", "out.jsonl"))) == 6
    outcome = prepare("plain", *files, "--limit", "4", "-o", "out.jsonl")
    assert [t.question for t in made(outcome)] == ["q00", "q01", "q02", "q10"]
    assert outcome.out == "4 trajectories -> out.jsonl\n  rows read: 4, trajectories made: 4\n"


def test_what_did_not_go_straight_through_is_reported(prepare: Run) -> None:
    rows = ({"question": "q", "steps": []}, {"question": "q", "steps": ["a"], "labels": [0.5]})
    outcome = prepare("plain", write("in.jsonl", *rows), "-o", "out.jsonl")
    assert outcome.out.splitlines() == [
        "1 trajectory -> out.jsonl",
        "  rows read: 2, trajectories made: 1",
        "  skipped, no steps: 1 (first: in.jsonl:1)",
        "  soft labels, kept in the tag soft_labels, not as step_labels: 1 (first: in.jsonl:2)",
    ]
    outcome = prepare("plain", "in.jsonl", "-o", "out.jsonl", "--json")
    assert json.loads(outcome.out) == {
        "output": "out.jsonl",
        "trajectories": 1,
        "tally": {
            "read": 2,
            "made": 1,
            "skipped": {"no steps": {"count": 1, "first": "in.jsonl:1"}},
            "notes": {
                "soft labels, kept in the tag soft_labels, not as step_labels": {"count": 1, "first": "in.jsonl:2"}
            },
        },
        "gold": None,
    }


# --- gold answers -----------------------------------------------------------------------------------------------------


def test_gold_answers_are_joined_and_reported(prepare: Run) -> None:
    questions = ("What is 1 + 1?", "what is  1 + 1?", "Unknown", "Has one")
    rows = [{"question": q, "steps": ["a"], **({"gold_answer": "9"} if q == "Has one" else {})} for q in questions]
    gold = [
        {"problem": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
        {"problem": "Has one", "answer": "8"},
        {"problem": "Empty", "answer": ""},
    ]
    arguments = ("plain", write("in.jsonl", *rows), "--gold", write("gold.jsonl", *gold), "-o", "out.jsonl")
    outcome = prepare(*arguments)
    assert [t.gold_answer for t in made(outcome)] == ["2", "2", None, "9"]
    assert outcome.out.splitlines()[2:] == [
        "  gold answers joined: 2 (1 by the same text, 0 but for spacing, 1 but for punctuation)",
        "  question not in the gold file: 1",
        "  had a gold answer that differs: 1",
        "  rows of the gold file without an answer: 1",
    ]
    replaced = prepare(*arguments, "--replace-gold", "--json")
    assert [t.gold_answer for t in made(replaced)] == ["2", "2", None, "8"]
    assert json.loads(replaced.out)["gold"] == {
        "exact": 1,
        "spacing": 0,
        "letters": 1,
        "unmatched": 1,
        "ambiguous": 0,
        "already": 0,
        "conflicting": 1,
        "rows_without_answer": 1,
    }


def test_gold_answers_from_named_fields(prepare: Run) -> None:
    gold = write("gold.jsonl", {"question": "other", "q": {"text": "q1"}, "key": 7})
    named = ("--gold", gold, "--gold-question-field", "q.text", "--gold-answer-field", "key")
    written = made(prepare("plain", write("in.jsonl", {"question": "q1", "steps": ["a"]}), *named, "-o", "out.jsonl"))
    assert [t.gold_answer for t in written] == ["7"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"q": "a", "answer": "1"}, "gold.jsonl:1: field 'question' is missing; the fields here are: q, answer; "
         "name it with --gold-question-field"),
        ({"question": "a"}, "gold.jsonl:1: field 'answer' is missing; the fields here are: question; "
         "name it with --gold-answer-field"),
        ({"question": "a", "answer": ""}, "gold.jsonl: no gold answer in 1 rows; name its field with "
         "--gold-answer-field"),
        ({"question": ["a"], "answer": "1"}, "gold.jsonl:1: field 'question' must be a text, found list"),
    ],
)  # fmt: skip
def test_a_gold_file_that_does_not_fit(prepare: Run, row: object, expected: str) -> None:
    gold = write("gold.jsonl", row)
    assert problem(prepare("plain", write("in.jsonl", *PLAIN), "--gold", gold, "-o", "out.jsonl")) == expected


# --- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = b'{"question": "q", "steps": ["a"]}\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("no.jsonl", None, "no.jsonl: no such file"),
        ("in.jsonl", b"", "in.jsonl: no trajectory here (rows read: 0, trajectories made: 0)"),
        ("in.jsonl", b"\n \n", "in.jsonl: no trajectory here (rows read: 0, trajectories made: 0)"),
        ("in.json", b"[]", "in.json: no trajectory here (rows read: 0, trajectories made: 0)"),
        ("in.jsonl", b'{"question": "q", "steps": []}\n',
         "in.jsonl: no trajectory here (rows read: 1, trajectories made: 0; "
         "skipped, no steps: 1 (first: in.jsonl:1))"),
        ("in.jsonl", GOOD + b'{"question": "q", \n', "in.jsonl:2: broken JSON (Expecting property name enclosed in "
         "double quotes at column 1); mend or remove this line"),
        ("in.jsonl", GOOD + b'{"question": "caf\xe9", "steps": ["a"]}\n',
         "in.jsonl:2: byte 18 is not UTF-8; save the file as UTF-8"),
        ("in.jsonl", GOOD + b'["q", "a"]\n', "in.jsonl:2: expected a JSON object, found list"),
        ("in.jsonl", GOOD + b'{"question": "q", "steps": ["a", 2]}\n',
         "in.jsonl:2: field 'steps' must be a list of texts, found int"),
        ("in.jsonl", GOOD + b'{"question": 7, "steps": ["a"]}\n',
         "in.jsonl:2: field 'question' must be a text, found int"),
        ("in.jsonl", GOOD + b'{"question": " ", "steps": ["a"]}\n',
         "in.jsonl:2: field 'question' must be a text that is not empty"),
        ("in.jsonl", GOOD + b'{"question": "q", "steps": ["a"], "labels": [true, true]}\n',
         "in.jsonl:2: field 'labels' has 2 labels for 1 steps"),
        ("in.jsonl", GOOD + b'{"question": "q", "steps": ["a"], "gold_answer": {}}\n',
         "in.jsonl:2: field 'gold_answer' must be a text or a number, found dict"),
        ("in.jsonl", GOOD + b'{"problem": "q", "steps": ["a"]}\n',
         "in.jsonl:2: field 'question' is missing; the fields here are: problem, steps; "
         "name it with --question-field"),
        ("in.jsonl", GOOD + b'{"question": "q", "solution": "a"}\n',
         "in.jsonl:2: field 'steps' is missing; the fields here are: question, solution; "
         "name it with --steps-field"),
        ("in.jsonl", b'{"id": 1, "question": "q", "steps": ["a"]}\n{"id": "1", "question": "r", "steps": ["a"]}\n',
         "in.jsonl:2: the id '1' was already used at in.jsonl:1; give each row its own id"),
        ("in.parquet", b"no Parquet", "in.parquet: not a Parquet file ("),
        ("in.jsonl.gz", gzip.compress(GOOD)[:-4], "in.jsonl.gz: not a whole gzip file ("),
        ("in.jsonl.gz", GOOD, "in.jsonl.gz: not a whole gzip file ("),
    ],
)  # fmt: skip
def test_an_input_that_does_not_fit(prepare: Run, name: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    line = problem(prepare("plain", name, "-o", "out.jsonl"))
    assert line.startswith(expected) if expected.endswith("(") else line == expected


@pytest.mark.parametrize("name", ["folder", "folder.json", "folder.parquet"])
def test_a_folder_is_no_file(prepare: Run, name: str) -> None:
    Path(name).mkdir()
    assert problem(prepare("plain", name, "-o", "out.jsonl")) == f"{name} is a folder; a file is needed here"


def test_mistakes_late_in_the_input_leave_an_older_output_as_it_was(prepare: Run) -> None:
    Path("out.jsonl").write_bytes(b"older")
    rows = [{"question": f"q{i}", "steps": ["a"]} for i in range(1500)]
    write("in.jsonl", *rows, {"question": "q", "steps": None})
    assert prepare("plain", "in.jsonl", "-o", "out.jsonl").status == 2
    assert Path("out.jsonl").read_bytes() == b"older"
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("procesbench in.jsonl -o out.jsonl", "unknown source 'procesbench'; did you mean 'processbench'? (known: "),
        ("procesbench", "unknown source 'procesbench'; did you mean 'processbench'? (known: "),
        ("plain", "name at least one FILE to read, and the file to write with --output FILE"),
        ("plain in.jsonl", "name at least one FILE to read, and the file to write with --output FILE"),
        ("plain in.jsonl in.jsonl -o out.jsonl", "in.jsonl is given twice"),
        ("plain in.jsonl -o out.csv", "out.csv: the name must end in .jsonl, .jsonl.gz or .parquet"),
        ("plain in.jsonl -o out.gz", "out.gz: the name must end in .jsonl, .jsonl.gz or .parquet"),
        ("plain in.jsonl -o out.json", "out.json: the name must end in .jsonl, .jsonl.gz or .parquet"),
        ("plain in.jsonl -o folder.jsonl", "folder.jsonl is a folder; name a file in it"),
        ("plain in.jsonl -o ./in.jsonl", "in.jsonl is one of the files to read; write to another one"),
        ("plain in.jsonl --gold gold.jsonl -o gold.jsonl", "gold.jsonl is one of the files to read; "),
        ("plain in.jsonl --split-steps line -o out.jsonl", "unknown way to split steps 'line'; did you mean 'lines'?"),
        ("plain in.jsonl --split train -o out.jsonl", "a split can be chosen for the source 'datasets' only, "),
        ("plain in.jsonl --gold-answer-field x -o out.jsonl", "--gold-question-field, --gold-answer-field and "),
        ("plain in.jsonl --replace-gold -o out.jsonl", "--gold-question-field, --gold-answer-field and "),
        ("plain in.jsonl --gold no.jsonl -o out.jsonl", "no.jsonl: no such file"),
        ("plain in.jsonl --answer-field goal -o out.jsonl", "in.jsonl: no row has the field 'goal', which was named"),
        ("stepwise in.jsonl --steps-field x -o out.jsonl", "the source 'stepwise' has fields of its own; "),
        ("prm800k in.jsonl --label-kind human -o out.jsonl", "the source 'prm800k' knows who made its labels; "),
        ("prm800k in.jsonl --split-steps lines -o out.jsonl", "the source 'prm800k' has steps of its own; "),
        ("processbench in.jsonl -o out.jsonl", "in.jsonl:1: field 'id' is missing; the fields here are: question, "),
    ],
)
def test_mistakes_on_the_command_line(prepare: Run, arguments: str, expected: str) -> None:
    write("in.jsonl", {"question": "q", "steps": ["a"]})
    if "processbench in" in arguments:
        write("in.jsonl", {"question": "q", "steps": ["a"], "label": -1})
    write("gold.jsonl", {"question": "q", "answer": "1"})
    Path("folder.jsonl").mkdir()
    assert problem(prepare(*arguments.split())).startswith(expected)


@pytest.mark.parametrize("option", ["--limit=0", "--label-kind=nobody", "--no-such-option"])
def test_options_that_do_not_exist_or_hold_no_such_value(prepare: Run, option: str) -> None:
    outcome = prepare("plain", write("in.jsonl", *PLAIN), "-o", "out.jsonl", option)
    assert outcome.status == 2
    assert option.partition("=")[0] in outcome.err
    assert not Path("out.jsonl").exists()


# --- help -------------------------------------------------------------------------------------------------------------


def test_list_names_every_source_with_what_it_is(prepare: Run) -> None:
    lines = prepare("list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(SOURCES)
    assert all(SOURCES[line.split()[0]].about in line for line in lines)
    assert json.loads(prepare("list", "--json").out) == {name: source.about for name, source in SOURCES.items()}


def test_help_spells_out_every_option_that_an_error_names_and_every_way_to_split(
    prepare: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = prepare("--help").out
    options = ("question", "steps", "answer", "final-answer", "labels", "id", "tag", "gold-question", "gold-answer")
    for option in (*(f"--{name}-field" for name in options), "--split", "--label-kind", "--replace-gold", "--json"):
        assert f"{option} " in text
    assert all(way in text for way in ("auto", *WAYS))


def test_the_trajectory_on_the_page_for_users_is_one_of_the_examples() -> None:
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^```json\n(.*)\n```$", page, re.MULTILINE)
    assert from_json(Trajectory, json.loads(line)) in list(read_trajectories(ROOT / "examples" / "word_problems.jsonl"))


def test_the_page_for_users_knows_every_source_way_and_field() -> None:
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9_-]+)`", page, re.MULTILINE)
    assert {*SOURCES, *WAYS, "auto", *(field.name for field in dataclasses.fields(Trajectory))} <= set(rows)


def test_the_installed_command_loads_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    code = (
        "import sys, cpmi.cli\n"
        "sys.argv = ['cpmi', 'prepare', 'plain', 'in.jsonl', '-o', 'out.jsonl']\n"
        "try:\n    cpmi.cli.main()\nexcept SystemExit as stop:\n    print('status', stop.code)\n"
        "print([name for name in ('numpy', 'pyarrow', 'torch', 'datasets', 'sympy') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "1 trajectory -> out.jsonl",
        "  rows read: 1, trajectories made: 1",
        "status 0",
        "[]",
    ]
    assert run.stderr == ""
