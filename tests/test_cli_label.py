"""``cpmi label``, ``export`` and ``show`` as a user meets them: what they print, how they end, what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpmi import StepRewards, Trajectory, read_rewards, write_records
from cpmi.display import _color, color_scale

GOOD = [
    Trajectory("What is 2 + 3?", ("2 + 3 = 5", "The answer is 5."), "5", "5", (True, True), id="right"),
    Trajectory("What is 2 + 3?", ("2 + 3 = 6", "The answer is 6."), "5", "6", (False, None), id="wrong"),
]


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, tmp_path: Path) -> Any:
    """Run the command in ``tmp_path``; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "t.jsonl", GOOD)

    return run_cpmi


LABEL = ("label", "t.jsonl", "--model", "toy:", "--output", "run")
CPMI = (*LABEL, "--method", "cpmi")


def test_label_export_and_show(cpmi: Any) -> None:
    code, out, err = cpmi(*LABEL)
    assert (code, out) == (0, "2 labeled, 0 failed of 2 -> run\n")
    assert "2/2" in err
    assert [r.trajectory_id for r in read_rewards("run")] == ["right", "wrong"]
    code, out, _ = cpmi(*LABEL)
    assert (code, out) == (0, "0 labeled, 0 failed, 2 already there of 2 -> run\n")

    code, out, _ = cpmi("show", "run")
    assert code == 0
    for piece in ("✓", "✗", "2 + 3 = 6", "right answer: 5   this solution's: 6", "measured against: 6"):
        assert piece in out
    for reward in next(iter(read_rewards("run"))).rewards:
        assert f"{reward:+.3f}" in out


def test_stepwise_rows_keep_the_rewards_as_they_are(cpmi: Any) -> None:
    cpmi(*LABEL)
    code, out, _ = cpmi("export", "run", "--to", "stepwise", "--output", "rows.jsonl")
    assert (code, out) == (0, "2 rows -> rows.jsonl\n")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    rewards = [list(r.rewards) for r in read_rewards("run")]
    assert [row["labels"] for row in rows] == rewards
    assert rows[0]["prompt"] == "What is 2 + 3?"
    assert rows[0]["completions"] == list(GOOD[0].steps)


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_one_file_holds_what_the_run_held(cpmi: Any, to: str) -> None:
    cpmi(*LABEL)
    assert cpmi("export", "run", "--to", to, "--output", f"all.{to}")[0] == 0
    assert list(read_rewards(f"all.{to}")) == list(read_rewards("run"))


def test_json_on_standard_output_is_json_and_nothing_else(cpmi: Any) -> None:
    _, out, _ = cpmi(*LABEL, "--json")
    summary = json.loads(out)
    assert (summary["rewarded"], summary["failed"], summary["total"]) == (2, 0, 2)
    assert summary["cost"]["tokens_scored"] > 0
    _, out, _ = cpmi("show", "run", "--json", "--id", "wrong")
    (shown,) = json.loads(out)
    assert shown["trajectory"]["id"] == shown["rewards"]["trajectory_id"] == "wrong"


def test_the_posterior_is_the_default(cpmi: Any) -> None:
    cpmi(*LABEL)
    records = list(read_rewards("run"))
    assert {record.source for record in records} == {"posterior"}
    assert all(0 <= reward <= 1 for record in records for reward in record.rewards)
    assert cpmi(*LABEL, "--method", "posterior")[1] == "0 labeled, 0 failed, 2 already there of 2 -> run\n"
    code, _, err = cpmi(*CPMI)
    assert (code, "method: 'posterior' there, 'cpmi' here" in err) == (2, True), err


@pytest.mark.parametrize("rewards", [(0.9, 0.5, 0.1), (2.0, 0.0, -2.0)])
def test_colors_go_by_the_middle_of_what_rewards_can_be(rewards: tuple[float, ...]) -> None:
    scale = color_scale([StepRewards("a", rewards, "x")])
    high, middle, low = (_color(reward, scale) for reward in rewards)
    assert (high[:7], middle, low[-6:]) == ("rgb(40,", "", "60,60)")


def test_settings_reach_the_labels(cpmi: Any) -> None:
    """Each option gives other rewards than the default; the same options give the same."""
    sums = ("60 + 61 = 121, and 121 - 1 = 120", "So 2 times 60 is 120.")
    right = Trajectory("What is 60 + 60?", sums, "120", "120", id="r")
    write_records(Path("t.jsonl"), [right, Trajectory("What is 60 + 60?", sums, "120", "121", id="w")])
    seen = {}
    for name, options in {
        "default": [],
        "again": [],
        "context": ["--context", "leave-one-out"],
        "negatives": ["--negatives", "1"],
        "kinds": ["--negative-kinds", "rule"],
        "templates": ["--templates", "2"],
        "set": ["--template-set", "cues"],
        "weight": ["--weight", "0.5"],
        "contrast": ["--contrast", "hardest"],
        "normalization": ["--normalization", "sum"],
        "span": ["--span", "answer"],
        "truncation": ["--truncate-top-k", "3"],
    }.items():
        assert (
            cpmi("label", "t.jsonl", "--model", "toy:", "--method", "cpmi", "--output", f"run-{name}", *options)[0] == 0
        )
        seen[name] = tuple(r.rewards for r in read_rewards(f"run-{name}"))
    assert seen.pop("again") == seen["default"]
    assert len(set(seen.values())) == len(seen)


def test_a_limit_and_shards_make_up_the_whole(cpmi: Any) -> None:
    assert cpmi(*LABEL, "--limit", "1")[1].startswith("1 labeled")
    assert cpmi(*LABEL)[1].startswith("1 labeled, 0 failed, 1 already there of 2")
    for shard in ("0/2", "1/2"):
        assert cpmi("label", "t.jsonl", "--model", "toy:", "--output", "parts", "--shard", shard)[0] == 0
    whole = {r.trajectory_id: r.rewards for r in read_rewards("run")}
    assert {r.trajectory_id: r.rewards for r in read_rewards("parts")} == whole


def test_one_bad_trajectory_never_stops_a_run(cpmi: Any) -> None:
    bad = [
        Trajectory("No steps?", (), "1", id="no-steps"),
        Trajectory("An empty step?", ("a", ""), "1", id="empty-step"),
        Trajectory("No gold?", ("a",), id="no-gold"),
        Trajectory("A long step?", ("7 " * 25_000,), "1", "2", id="long"),
    ]
    write_records(Path("t.jsonl"), [bad[0], GOOD[0], *bad[1:], GOOD[1]])
    code, out, err = cpmi(*LABEL)
    assert code == 0
    assert out.startswith("3 labeled, 3 failed of 6 -> run\n")
    assert "failed, 1: no steps" in out
    assert "Traceback" not in err
    errors = {r.trajectory_id: r.error for r in read_rewards("run")}
    assert [name for name, error in errors.items() if error is None] == ["right", "long", "wrong"]
    assert errors["empty-step"] == "step 1 (from 0) is empty"


def test_a_run_in_which_all_fail_says_so_in_its_exit_status(cpmi: Any) -> None:
    write_records(Path("t.jsonl"), [Trajectory("Q", (), "1")])
    code, _, err = cpmi(*LABEL)
    assert (code, err.splitlines()[-1]) == (1, "cpmi: error: no trajectory could be labeled")


def bad_file(content: bytes) -> None:
    Path("bad.jsonl").write_bytes(content)


GOOD_LINE = b'{"question": "Q", "steps": ["a"], "id": "x"}\n'
BAD_INPUT = {
    "missing file": (["label", "none.jsonl"], b"", "none.jsonl: no such file"),
    "folder": (["label", "."], b"", ".: is a folder, not a file"),
    "empty file": (["label", "bad.jsonl"], b"", "bad.jsonl: holds no trajectory"),
    "broken JSON": (["label", "bad.jsonl"], GOOD_LINE + b"{\n", "bad.jsonl:2: broken JSON"),
    "invalid UTF-8": (["label", "bad.jsonl"], GOOD_LINE + b'"\xff"\n', "bad.jsonl:2: byte 2 is not UTF-8"),
    "duplicate ids": (["label", "bad.jsonl"], GOOD_LINE * 2, "the id 'x' occurs twice"),
    "mixed types": (["label", "bad.jsonl"], b'{"question": "Q", "steps": [1]}\n', "bad.jsonl:1: field 'steps' must be"),
    "unknown field": (["label", "bad.jsonl"], b'{"question": "Q", "steps": [], "x": 1}\n', "unknown field 'x'"),
    "no such model": (["label", "t.jsonl", "--model", "hf:./none"], b"", "model hf:./none: no such folder"),
    "no such engine": (["label", "t.jsonl", "--model", "gpt:4"], b"", "model 'gpt:4' is not one that can be opened"),
    "no such kind": (["label", "t.jsonl", "--negative-kinds", "best"], b"", "unknown kind of negatives 'best'"),
    "no such templates": (["label", "t.jsonl", "--template-set", "mine"], b"", "neither a built-in set"),
    "too many templates": (["label", "t.jsonl", "--templates", "9"], b"", "has 4 templates, 9 asked for"),
    "bad shard": (["label", "t.jsonl", "--shard", "4/4"], b"", "write i/n"),
}


@pytest.mark.parametrize(("arguments", "content", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gets_one_clear_line(cpmi: Any, arguments: list[str], content: bytes, message: str) -> None:
    bad_file(content)
    model = [] if "--model" in arguments else ["--model", "toy:"]
    code, out, err = cpmi(*arguments, *model, "--output", "run")
    assert code == 2
    assert out == ""
    assert err.startswith("cpmi: error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("run").exists()


def test_another_run_s_folder_is_refused_and_left_alone(cpmi: Any) -> None:
    cpmi(*CPMI)
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    code, _, err = cpmi(*CPMI, "--weight", "2", "--seed", "1")
    assert code == 2
    assert "settings.weight: 1.0 there, 2.0 here" in err
    assert "settings.negatives.seed: 0 there, 1 here" in err
    write_records(Path("t.jsonl"), GOOD[:1])
    code, _, err = cpmi(*CPMI)
    assert code == 2
    assert "input.sha256" in err
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_an_output_that_is_no_run_is_refused(cpmi: Any) -> None:
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("Monday")
    code, _, err = cpmi("label", "t.jsonl", "--model", "toy:", "--output", "notes")
    assert (code, err) == (2, "cpmi: error: notes is not empty and not a run; choose another --output\n")


def test_looking_at_runs_that_are_none(cpmi: Any) -> None:
    cpmi(*LABEL)
    Path("empty").mkdir()
    for arguments, message in (
        (["show", "none"], "none: no such file or run"),
        (["show", "empty"], "not a run directory"),
        (["show", "run", "--id", "nobody"], "run: has no nobody"),
        (["export", "run", "--to", "parquet", "--output", "x.jsonl"], "--to parquet writes .parquet"),
        (["export", "run", "--to", "stepwise", "--output", "x.csv"], "name the output so"),
    ):
        code, _, err = cpmi(*arguments)
        assert (code, message in err, len(err.splitlines())) == (2, True, 1), err


def test_trajectories_that_moved_or_changed(cpmi: Any) -> None:
    cpmi(*LABEL)
    Path("t.jsonl").rename("moved.jsonl")
    code, _, err = cpmi("show", "run")
    assert code == 2
    assert "name them with --trajectories FILE" in err
    assert cpmi("show", "run", "--trajectories", "moved.jsonl")[0] == 0
    write_records(Path("other.jsonl"), [GOOD[0]])
    code, _, err = cpmi("export", "run", "--to", "stepwise", "--output", "x.jsonl", "--trajectories", "other.jsonl")
    assert (code, "no trajectory has the id 'wrong'" in err) == (2, True)
    assert not Path("x.jsonl").exists()
    changed = Trajectory(GOOD[1].question, GOOD[1].steps[:1], id="wrong")
    write_records(Path("other.jsonl"), [GOOD[0], changed])
    code, _, err = cpmi("show", "run", "--trajectories", "other.jsonl")
    assert (code, "'wrong': 2 rewards for 1 steps" in err) == (2, True)


def test_failures_are_shown_with_their_reason(cpmi: Any) -> None:
    write_records(Path("r.jsonl"), [StepRewards("right", (), "cpmi", error="too long: 9 tokens")])
    _, out, _ = cpmi("show", "r.jsonl", "--trajectories", "t.jsonl")
    assert "not labeled: too long: 9 tokens" in out


def test_failures_reach_the_json_summary_and_can_be_tried_again(cpmi: Any) -> None:
    write_records(Path("t.jsonl"), [Trajectory("No gold?", ("a",), id="x"), GOOD[0]])
    _, out, _ = cpmi(*LABEL, "--json")
    (error,) = json.loads(out)["errors"]
    assert error.startswith("no gold answer")
    _, out, _ = cpmi(*LABEL)
    assert out == (
        "0 labeled, 0 failed, 2 already there (1 of them failed; --retry-errors tries those again) of 2 -> run\n"
    )
    assert cpmi(*LABEL, "--retry-errors")[1].startswith("0 labeled, 1 failed, 1 already there of 2 -> run\n")
    assert sorted(r.trajectory_id for r in read_rewards("run")) == ["right", "x"]


def test_a_line_taken_out_of_a_finished_run_is_labeled_again(cpmi: Any) -> None:
    cpmi(*LABEL)
    part = Path("run/part-00000-of-00001.jsonl")
    whole = {r.trajectory_id: r.rewards for r in read_rewards("run")}
    part.write_text(part.read_text().splitlines(keepends=True)[1])
    assert cpmi(*LABEL)[1] == "1 labeled, 0 failed, 1 already there of 2 -> run\n"
    assert {r.trajectory_id: r.rewards for r in read_rewards("run")} == whole


def test_an_unfinished_run_is_shown_and_said_to_be_one(cpmi: Any) -> None:
    cpmi("label", "t.jsonl", "--model", "toy:", "--output", "run", "--shard", "0/3")
    for arguments in (["show", "run"], ["export", "run", "--to", "jsonl", "--output", "x.jsonl"]):
        code, _, err = cpmi(*arguments)
        assert (code, err) == (0, "cpmi: run is not finished: 1 of 3 parts are complete\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight", "nan"], "the weight must be a finite number, not nan"),
        (["--negative-kinds", ""], "name a kind of wrong answers, or ask for 0 of them"),
    ],
)
def test_settings_that_make_no_sense_are_refused(cpmi: Any, options: list[str], message: str) -> None:
    code, _, err = cpmi(*CPMI, *options)
    assert (code, message in err, len(err.splitlines())) == (2, True, 1), err


def test_no_contrast_asked_for_is_said_so(cpmi: Any) -> None:
    assert cpmi(*CPMI, "--negatives", "0", "--negative-kinds", "")[0] == 0
    for record in read_rewards("run"):
        assert record.details["contrast"] == "none: no wrong answer was asked for"
        assert record.rewards == record.terms["gold"]


def test_an_export_never_replaces_what_it_reads(cpmi: Any) -> None:
    cpmi(*LABEL)
    before = Path("t.jsonl").read_bytes()
    for output in ("t.jsonl", "run/part-00000-of-00001.jsonl"):
        code, _, err = cpmi("export", "run", "--to", "stepwise", "--output", output)
        assert (code, "is one of the files that would be read" in err) == (2, True)
    assert Path("t.jsonl").read_bytes() == before
