"""``cpmi label`` with the methods that roll out, ``compare`` and ``combine``, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpmi import Trajectory, read_rewards, write_records

GOOD = [
    Trajectory("What is 2 + 3?", ("2 + 3 = 5", "The answer is 5."), "5", "5", (True, True), id="right"),
    Trajectory("What is 2 + 3?", ("2 + 3 = 6", "So 6", "The answer is 6."), "5", "6", (False, None, None), id="wrong"),
    Trajectory("What is 4 + 3?", ("4 + 3 = 7", "The answer is 8."), "7", "8", (True, False), id="late"),
]


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, tmp_path: Path) -> Any:
    """Run the command in ``tmp_path``; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "t.jsonl", GOOD)

    return run_cpmi


MC = ("label", "t.jsonl", "--model", "toy:", "--method", "mc", "--max-tokens", "20", "--output", "mc")
PAV = ("label", "t.jsonl", "--model", "toy:", "--method", "pav", "--max-tokens", "20", "--output", "pav")


def rewards(run: str) -> dict[str, tuple[float, ...]]:
    return {record.trajectory_id: record.rewards for record in read_rewards(run)}


def test_monte_carlo_from_the_command_line(cpmi: Any) -> None:
    code, out, err = cpmi(*MC)
    assert (code, out) == (0, "3 labeled, 0 failed of 3 -> mc\n")
    assert "32 rollouts" in err  # four prefixes of eight; three more are whole solutions
    assert rewards("mc") == {"right": (0.0, 1.0), "wrong": (0.0, 0.0, 0.0), "late": (0.0, 0.0)}
    assert cpmi(*MC)[1] == "0 labeled, 0 failed, 3 already there of 3 -> mc\n"
    settings = json.loads(Path("mc/manifest.json").read_text())["settings"]
    assert settings["rollouts"]["sampling"]["max_tokens"] == 20
    assert settings["value"] == "soft"


def test_binary_search_from_the_command_line(cpmi: Any) -> None:
    code, _, err = cpmi(*MC[:-1], "binary", "--rollout-search", "binary")
    assert code == 0
    assert "16 rollouts" in err  # a prefix each of the two wrong solutions, none of the right one
    assert rewards("binary")["right"] == (1.0, 1.0)
    settings = json.loads(Path("binary/manifest.json").read_text())["settings"]
    assert (settings["search"], settings["value"]) == ("binary", "hard")


def test_rollouts_of_another_kind_are_another_run(cpmi: Any) -> None:
    cpmi(*MC)
    code, _, err = cpmi(*MC, "--temperature", "1")
    assert code == 2
    assert "settings.rollouts.sampling.temperature: 0.6 there, 1.0 here" in err


def test_process_advantage_from_the_command_line(cpmi: Any) -> None:
    code, _, err = cpmi(*PAV, "--alpha", "2")
    assert code == 0
    assert "56 rollouts" in err  # the empty prefixes too
    right = next(record for record in read_rewards("pav") if record.trajectory_id == "right")
    assert right.rewards == (0.0, 3.0)
    assert set(right.terms) == {"policy", "advantage"}


def test_a_prover_that_is_another_model(cpmi: Any) -> None:
    code, _, err = cpmi(*PAV, "--prover", "toy:", "--prover-rollouts", "2", "--rollouts", "3")
    assert code == 0
    assert "the prover is the policy itself" in err
    manifest = json.loads(Path("pav/manifest.json").read_text())
    assert manifest["prover"] == {"model": "toy:"}
    assert "26 rollouts" in err  # 4 prefixes of 3, and with the empty ones 7 of 2
    roles = [json.loads(line)["role"] for line in Path("pav/rollouts-00000-of-00001.jsonl").read_text().splitlines()]
    assert (roles.count("policy"), roles.count("prover")) == (4, 7)


def test_rollouts_that_another_run_has_paid_for_are_taken_over(cpmi: Any) -> None:
    cpmi(*MC)
    code, _, err = cpmi(*PAV, "--rollouts-from", "mc")
    assert code == 0
    assert "24 rollouts" in err  # of the three empty prefixes alone, instead of 56
    assert {r.trajectory_id: r.terms["policy"] for r in read_rewards("pav")} == rewards("mc")
    paid = {r.trajectory_id: r.cost.tokens_generated for r in read_rewards("mc")}
    assert all(r.cost.tokens_generated > paid[r.trajectory_id] > 0 for r in read_rewards("pav"))


def test_rollouts_of_another_kind_are_not_taken_over(cpmi: Any) -> None:
    cpmi(*MC)
    code, _, err = cpmi(*PAV, "--rollouts-from", "mc", "--temperature", "1")
    assert code == 2
    assert "mc: its rollouts cannot be taken, its settings.rollouts is" in err
    code, _, err = cpmi(*PAV, "--rollouts-from", "elsewhere")
    assert code == 2
    assert "elsewhere: not a run directory" in err
    assert "Traceback" not in err


def test_failures_beyond_the_limit_are_not_counted_within_it(cpmi: Any) -> None:
    bad = [Trajectory("Q?", ("a",), None, id=f"bad{i}") for i in range(3)]
    write_records(Path("mixed.jsonl"), [*GOOD, *bad])
    mixed = ("label", "mixed.jsonl", "--method", "outcome", "--output", "outcome")
    code, out, _ = cpmi(*mixed)
    assert (code, out.splitlines()[0]) == (0, "3 labeled, 3 failed of 6 -> outcome")
    assert cpmi(*mixed, "--limit", "3")[:2] == (0, "0 labeled, 0 failed, 3 already there of 3 -> outcome\n")
    (Path("outcome") / "part-00000-of-00001.done").unlink()
    assert cpmi(*mixed, "--limit", "3")[:2] == (0, "0 labeled, 0 failed, 3 already there of 3 -> outcome\n")


def test_trajectories_that_changed_under_a_run_get_a_warning(cpmi: Any) -> None:
    assert cpmi("label", "t.jsonl", "--method", "outcome", "--output", "outcome")[0] == 0
    assert "has changed" not in cpmi("compare", "outcome", "--bootstrap", "2")[2]
    write_records(Path("t.jsonl"), GOOD[::-1])
    assert "t.jsonl has changed since outcome labeled it" in cpmi("compare", "outcome", "--bootstrap", "2")[2]


def test_unfinished_runs_are_named_where_they_are_combined_or_made_targets(cpmi: Any) -> None:
    cpmi("label", "t.jsonl", "--model", "toy:", "--method", "cpmi", "--limit", "2", "--output", "cpmi")
    cpmi("label", "t.jsonl", "--method", "outcome", "--output", "outcome")
    said = "cpmi: cpmi is not finished: 0 of 1 parts are complete\n"
    assert cpmi("combine", "cpmi", "outcome", "--weights", "1,1", "--output", "both.jsonl")[2] == said
    assert cpmi("targets", "cpmi", "--output", "targets.jsonl")[2] == said


def test_outcome_from_the_command_line_loads_no_model(cpmi: Any) -> None:
    code, _, _ = cpmi("label", "t.jsonl", "--method", "outcome", "--model", "hf:./none", "--output", "outcome")
    assert code == 0
    assert rewards("outcome") == {"right": (1.0, 1.0), "wrong": (0.0, 0.0, 0.0), "late": (0.0, 0.0)}
    assert "engine" not in json.loads(Path("outcome/manifest.json").read_text())


def test_a_run_without_labels_to_share_the_time_over(cpmi: Any) -> None:
    write_records(Path("none.jsonl"), [Trajectory("Q?", (), "1", id="none")])
    code, out, err = cpmi("label", "none.jsonl", "--model", "toy:", "--method", "mc", "--output", "run")
    assert (code, out) == (1, "0 labeled, 1 failed of 1 -> run\n  failed, 1: no steps\n")
    assert err.endswith("cpmi: error: no trajectory could be labeled\n")


BAD = {
    "an option of another method": (("--method", "cpmi", "--rollouts", "4"), "--rollouts is for --method mc or pav"),
    "and the other way": (("--method", "mc", "--negatives", "4"), "--negatives is for --method posterior or cpmi, not"),
    "of cpmi alone": (("--weight", "2"), "--weight is for --method cpmi, not for posterior"),
    "of pav alone": (("--method", "mc", "--alpha", "2"), "--alpha is for --method pav, not for mc"),
    "of mc alone": (("--method", "pav", "--value", "hard"), "--value is for --method mc, not for pav"),
    "no rollouts": (("--method", "mc", "--rollouts", "0"), "be greater than or equal to 1"),
    "soft binary": (("--method", "mc", "--rollout-search", "binary", "--value", "soft"), "gives hard labels"),
    "best of too many": (("--method", "pav", "--prover", "best-of-9"), "k must be from 1 to their number"),
    "best of none": (("--method", "pav", "--prover", "best-of-0"), "k must be from 1 to their number"),
    "no such prover": (("--method", "pav", "--prover", "best"), "model 'best' is not one that can be opened"),
    "alpha": (("--method", "pav", "--alpha", "nan"), "alpha must be a finite number"),
    "an option of another prover": (
        ("--method", "pav", "--prover-rollouts", "2"),
        "for a prover that is another model",
    ),
    "engine option": (("--method", "mc", "--engine-option", "x"), "engine option 'x': write NAME=VALUE"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options_get_one_clear_line(cpmi: Any, options: tuple[str, ...], message: str) -> None:
    code, out, err = cpmi("label", "t.jsonl", "--model", "toy:", "--output", "run", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not Path("run").exists()
