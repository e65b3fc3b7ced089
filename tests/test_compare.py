"""``cpmi compare`` and ``cpmi combine``: runs side by side, and two made one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cpmi import Cost, StepRewards, Trajectory, read_rewards, write_records
from cpmi.benchmarks.baselines import OUTCOME, OUTCOME_AND_POSITION
from cpmi.benchmarks.cases import Settings
from cpmi.benchmarks.thresholds import Protocol
from cpmi.combine import Rule, combine
from cpmi.compare import Comparison, compare, correlation_table, notes, table
from cpmi.errors import InputError
from cpmi.evaluate import evaluate
from cpmi.grader import Grader
from cpmi.labeling import LabelJob, OutcomeSettings, label

TRAJECTORIES = [
    Trajectory("Q1?", ("a", "b", "c"), "1", "1", (True, True, True), id="right"),
    Trajectory("Q2?", ("a", "b", "c"), "2", "5", (True, False, None), id="wrong"),
    Trajectory("Q3?", ("a", "b"), "3", "3", (False, None), id="lucky"),
    Trajectory("Q4?", ("a",), "4", "4", None, id="unjudged"),
]


CHEAP = Cost(0, 10, 1.0)


def line(name: str, *rewards: float, source: str = "cpmi", cost: Cost = CHEAP) -> StepRewards:
    return StepRewards(name, rewards, source, cost=cost)


def failed(name: str, source: str = "cpmi") -> StepRewards:
    return StepRewards(name, (), source, cost=Cost(7, 0, 0.5), error="broken")


GOOD = [line("right", 2, 2, 2), line("wrong", 2, -1, 0), line("lucky", -1, 5), line("unjudged", 3)]
MC = [
    line("right", 1, 0.5, 1, source="mc", cost=Cost(100, 1, 10)),
    line("wrong", 0.5, 0.5, 0, source="mc", cost=Cost(300, 1, 30)),
    line("lucky", 0.5, 1, source="mc", cost=Cost(0, 1, 0)),
    line("unjudged", 1, source="mc", cost=Cost(100, 1, 60)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "t.jsonl", TRAJECTORIES)
    write_records(tmp_path / "good.jsonl", GOOD)
    write_records(tmp_path / "mc.jsonl", MC)
    return tmp_path


def compared(folder: Path, *names: str, trajectories: bool = True, **more: Any) -> Comparison:
    file = folder / "t.jsonl" if trajectories else None
    with Grader() as grader:
        return compare([folder / f"{name}.jsonl" for name in names], file, grader=grader, **more)


# --- compare --------------------------------------------------------------------------------------------------------


def test_costs_by_hand(folder: Path) -> None:
    """4 s against 100 s, and no token against 500: the Monte Carlo run is the one to refer to."""
    result = compared(folder, "good", "mc")
    assert (result.trajectories, result.baseline) == (4, "mc.jsonl")
    good, mc, outcome, both = result.rows
    assert (good.name, good.source, good.rewarded, good.failed, good.missing) == ("good.jsonl", "cpmi", 4, 0, 0)
    assert good.cost == Cost(0, 40, 4.0)
    assert good.seconds_saved == pytest.approx(96.0)
    assert good.tokens_saved == 100.0
    assert mc.cost == Cost(500, 4, 100.0)
    assert (mc.seconds_saved, mc.tokens_saved) == (0.0, 0.0)
    assert (outcome.name, outcome.cost) == (OUTCOME, None)
    assert (both.name, both.source, both.cost) == (OUTCOME_AND_POSITION, "baseline", None)


def test_quality_by_hand(folder: Path) -> None:
    """Right steps 2 2 2 | 2, wrong -1 | -1: all told apart. Outcome: right steps 1 1 1 | 0, wrong 0 | 1: 5 of 8."""
    result = compared(folder, "good", "mc")
    assert result.judged == 3
    assert result.threshold_protocol == "oracle"
    good, mc, outcome = (row.quality for row in result.rows[:3])
    assert good is not None
    assert mc is not None
    assert outcome is not None
    assert (good.roc_auc.value, good.within_auc.value, good.first_error_f1.value) == (1.0, 1.0, 1.0)
    assert outcome.roc_auc.value == pytest.approx((3 + 0.5 + 3 * 0.5) / 8)
    assert outcome.within_auc.value == 0.5
    # Monte Carlo at 0.75: "lucky" is found, "wrong" called wrong at its first step already, "right" at its second.
    assert mc.first_error_f1.value == 0.0
    assert good.f1_gain is not None
    assert good.f1_gain.value == 1.0
    assert mc.f1_gain is None


def test_the_order_and_the_baseline_are_as_asked_for(folder: Path) -> None:
    result = compared(folder, "mc", "good", baseline="good.jsonl")
    assert [row.name for row in result.rows] == ["mc.jsonl", "good.jsonl", OUTCOME, OUTCOME_AND_POSITION]
    assert result.rows[0].seconds_saved == pytest.approx(-2400.0)
    assert result.rows[0].tokens_saved is None  # against nothing
    with pytest.raises(InputError, match=r"unknown baseline 'god\.jsonl'; did you mean 'good\.jsonl'"):
        compared(folder, "mc", "good", baseline="god.jsonl")


def test_without_monte_carlo_the_slowest_is_the_baseline(folder: Path) -> None:
    write_records(folder / "slow.jsonl", [line(r.trajectory_id, *r.rewards, cost=Cost(0, 1, 9)) for r in GOOD])
    assert compared(folder, "good", "slow").baseline == "slow.jsonl"


def test_failures_and_gaps_are_counted_and_compared_fairly(folder: Path) -> None:
    """An unfinished run is not cheap: costs are over what all attempted, quality over what all rewarded."""
    write_records(folder / "part.jsonl", [GOOD[0], failed("wrong")])
    result = compared(folder, "part", "mc")
    assert (result.trajectories, result.judged) == (2, 1)
    part, mc, _ = result.rows
    assert (part.rewarded, part.failed, part.missing) == (1, 1, 2)
    assert part.cost == Cost(7, 10, 1.5)
    assert mc.cost == Cost(400, 2, 40.0)
    assert part.quality is not None
    assert part.quality.roc_auc.value is None  # no wrong step is left
    assert any("no first-error F1" in note for note in result.notes)


def test_rank_correlation_by_hand(folder: Path) -> None:
    write_records(folder / "minus.jsonl", [line(r.trajectory_id, *(-x for x in r.rewards)) for r in GOOD])
    write_records(folder / "same.jsonl", [line(r.trajectory_id, *(1.0 for _ in r.rewards)) for r in GOOD])
    result = compared(folder, "good", "minus", "same")
    assert {(each.first, each.second): each.value for each in result.correlations} == {
        ("good.jsonl", "minus.jsonl"): pytest.approx(-1.0),
        ("good.jsonl", "same.jsonl"): None,
        ("minus.jsonl", "same.jsonl"): None,
    }
    assert correlation_table(result) == (
        ["rank correlation", "minus.jsonl", "same.jsonl"],
        [["good.jsonl", "-1.00", "-"], ["minus.jsonl", "", "-"]],
    )


def test_without_human_labels_costs_are_compared_all_the_same(folder: Path) -> None:
    write_records(folder / "t.jsonl", [Trajectory(t.question, t.steps, t.gold_answer, id=t.id) for t in TRAJECTORIES])
    result = compared(folder, "good", "mc")
    assert result.judged == 0
    assert [row.quality for row in result.rows] == [None, None]
    assert "no trajectory that every run rewarded has human step labels, so quality is not compared" in result.notes
    assert len(table(result)[0]) == 10
    assert len(compared(folder, "good", "mc", trajectories=False).rows) == 2


def test_a_solution_without_an_answer_is_wrong_for_the_outcome_baseline(folder: Path) -> None:
    changed = [*TRAJECTORIES[:2], Trajectory("Q3?", ("a", "b"), "an apple", None, (False, None), id="lucky")]
    write_records(folder / "t.jsonl", [*changed, TRAJECTORIES[3]])
    result = compared(folder, "good")
    assert "outcome baseline: 1 without an answer and 0 undecided count as wrong" in result.notes


def test_the_baselines_are_those_of_evaluate(folder: Path) -> None:
    """Also where the data, not a gold answer, say whether a solution is right."""
    told = [
        Trajectory(
            t.question, t.steps, None, None, t.step_labels, {"final_answer_correct": str(t.first_error is None)}, t.id
        )
        for t in TRAJECTORIES
    ]
    write_records(folder / "t.jsonl", told)
    rows = {row.name: row.quality for row in compared(folder, "good", "mc", count=20).rows}
    settings = Settings(Protocol.parse("oracle"), 20)
    with Grader() as grader:
        results = evaluate("steps", folder / "good.jsonl", folder / "t.jsonl", settings, grader=grader)
    for name in (OUTCOME, OUTCOME_AND_POSITION):
        quality = rows[name]
        assert quality is not None
        (found,) = (each for each in results if each.source == name)
        assert quality.first_error_f1.value == found.metrics["first_error_f1"].value
        assert quality.roc_auc.value == pytest.approx(found.metrics["roc_auc"].value)


def test_intervals_are_seeded(folder: Path) -> None:
    first, again = (compared(folder, "mc", count=200, seed=5) for _ in range(2))
    assert first == again
    quality = first.rows[0].quality
    assert quality is not None
    assert quality.roc_auc.low is not None
    assert quality.roc_auc.low <= (quality.roc_auc.value or math.nan) <= (quality.roc_auc.high or math.nan)


def test_runs_over_files_that_hold_one_another_are_compared_in_any_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(folder / "few.jsonl", TRAJECTORIES[:2])
    for name, file in (("many", "t"), ("few", "few")):
        label(LabelJob(folder / f"{file}.jsonl", folder / name, settings=OutcomeSettings()))
    for order in (("many", "few"), ("few", "many")):
        with Grader() as grader:
            result = compare([folder / name for name in order], grader=grader, count=5)
        assert result.trajectories == 2
        assert f"few has no line for {len(TRAJECTORIES) - 2} of the {len(TRAJECTORIES)} trajectories" in result.notes


def test_runs_of_one_name_are_told_apart(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        write_records(folder / name / "run.jsonl", GOOD)
    assert [row.name for row in compared(folder, "a/run", "b/run").rows][:2] == ["a/run.jsonl", "b/run.jsonl"]


BAD: dict[str, tuple[list[StepRewards], str]] = {
    "another length": ([line("right", 1, 2)], "'right': 2 rewards in bad.jsonl, 3 steps in its trajectory"),
    "another file's": ([line("nobody", 1)], "bad.jsonl: no trajectory has the id 'nobody'"),
    "twice": ([line("right", 1, 2, 3), line("right", 1, 2, 3)], "the id 'right' occurs twice"),
    "nothing": ([], "bad.jsonl: holds no rewards"),
}


@pytest.mark.parametrize(("records", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_compared_is_one_line(folder: Path, records: list[StepRewards], message: str) -> None:
    write_records(folder / "bad.jsonl", records)
    with pytest.raises(InputError) as raised:
        compared(folder, "good", "bad")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_in_common(folder: Path) -> None:
    write_records(folder / "one.jsonl", GOOD[:1])
    write_records(folder / "other.jsonl", GOOD[1:])
    with pytest.raises(InputError, match="no trajectory in common"):
        compared(folder, "one", "other")
    with pytest.raises(InputError, match="a run is named twice"):
        compared(folder, "one", "one")


def test_the_table_says_what_a_reader_must_know(folder: Path) -> None:
    result = compared(folder, "good", "mc", count=50)
    columns, rows = table(result)
    assert all(len(row) == len(columns) == 13 for row in rows)
    assert dict(zip(columns, rows[0], strict=True)) | {"step AUC": "", "within AUC": "", "first-error F1": ""} == {
        "run": "good.jsonl", "method": "cpmi", "rewarded": "4", "failed": "0", "s each": "1", "s total": "4",
        "time saved": "96.0 %", "generated each": "0", "scored each": "10", "tokens saved": "100.0 %",
        "step AUC": "", "within AUC": "", "first-error F1": "",
    }  # fmt: skip
    said = " ".join(notes(result))
    for piece in (
        "over the 4 trajectories",
        "against mc.jsonl",
        "over the 3 of them",
        "50 resamples",
        "oracle",
        "Spear",
    ):
        assert piece in said


# --- combine --------------------------------------------------------------------------------------------------------


def test_first_steps_from_one_and_the_rest_from_the_other(folder: Path) -> None:
    report = combine(folder / "mc.jsonl", folder / "good.jsonl", folder / "c.jsonl", Rule(first_steps=1), "none")
    assert (report.combined, report.failed) == (4, 0)
    records = {record.trajectory_id: record for record in read_rewards(folder / "c.jsonl")}
    assert records["wrong"].rewards == (0.5, -1.0, 0.0)
    assert records["unjudged"].rewards == (1.0,)
    assert records["wrong"].source == "mc+cpmi"
    assert records["wrong"].cost == Cost(300, 11, 31.0)
    assert records["wrong"].terms == {"first": (0.5, 0.5, 0.0), "second": (2.0, -1.0, 0.0)}
    assert records["wrong"].details == {"runs": ["mc.jsonl", "good.jsonl"], "scale": "none", "first_steps": 1}


def test_a_weighted_sum_of_z_scores_by_hand(tmp_path: Path) -> None:
    """First: 1, 3 (mean 2, deviation 1) becomes -1, 1. Second: 10, 50 (30, 20) becomes -1, 1."""
    write_records(tmp_path / "a.jsonl", [line("x", 1, 3)])
    write_records(tmp_path / "b.jsonl", [line("x", 50, 10)])
    combine(tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl", Rule(weights=(2.0, 0.5)))
    (record,) = read_rewards(tmp_path / "c.jsonl")
    assert record.rewards == (-2 + 0.5, 2 - 0.5)


def test_equal_rewards_that_floats_round_apart_cannot_be_scaled(tmp_path: Path) -> None:
    """The deviation of seven times 0.1 is 1e-17, not 0."""
    for name, reward in (("flat", 0.1), ("other", 1.0)):
        rewards = [reward] * 7 if name == "flat" else [float(i) for i in range(7)]
        write_records(tmp_path / f"{name}.jsonl", [line("a", *rewards)])
    with pytest.raises(InputError, match=r"all its rewards are 0\.1"):
        combine(tmp_path / "flat.jsonl", tmp_path / "other.jsonl", tmp_path / "c.jsonl", Rule(weights=(1.0, 1.0)))


def test_ranks_by_hand(tmp_path: Path) -> None:
    """Of 1, 1, 5, 9 the ranks are 1.5, 1.5, 3, 4; less a half, of four."""
    write_records(tmp_path / "a.jsonl", [line("x", 5, 1), line("y", 1, 9)])
    write_records(tmp_path / "b.jsonl", [line("x", 0, 0), line("y", 0, 0)])
    combine(tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl", Rule(weights=(1.0, 0.0)), "rank")
    assert [record.rewards for record in read_rewards(tmp_path / "c.jsonl")] == [(0.625, 0.25), (0.25, 0.875)]


def test_what_only_one_run_has_is_kept_as_an_error(folder: Path) -> None:
    write_records(folder / "part.jsonl", [GOOD[3], failed("wrong"), line("new", 1, 2), GOOD[0]])
    report = combine(folder / "mc.jsonl", folder / "part.jsonl", folder / "c.jsonl", Rule(weights=(1.0, 1.0)))
    assert (report.combined, report.failed) == (2, 3)
    errors = {record.trajectory_id: record.error for record in read_rewards(folder / "c.jsonl")}
    assert errors == {
        "right": None,
        "wrong": "failed in part.jsonl: broken",
        "lucky": "not in part.jsonl",
        "unjudged": None,
        "new": "not in mc.jsonl",
    }
    costs = {record.trajectory_id: record.cost for record in read_rewards(folder / "c.jsonl")}
    assert costs["wrong"] == Cost(307, 1, 30.5)


def test_what_cannot_be_combined_is_one_line(folder: Path) -> None:
    write_records(folder / "short.jsonl", [line("right", 1, 2)])
    write_records(folder / "flat.jsonl", [line("right", 1, 1, 1)])
    write_records(folder / "other.jsonl", [line("nobody", 1)])
    rule = Rule(weights=(1.0, 1.0))
    for name, message in {
        "short": r"'right': 2 rewards in .*short.jsonl, 3 in .*mc.jsonl",
        "flat": "all its rewards are 1, which cannot be scaled",
        "other": "have no trajectory with rewards in common",
    }.items():
        with pytest.raises(InputError, match=message):
            combine(folder / f"{name}.jsonl", folder / "mc.jsonl", folder / "c.jsonl", rule)
        assert not (folder / "c.jsonl").exists()
    with pytest.raises(InputError, match="is one of the files that would be read"):
        combine(folder / "good.jsonl", folder / "mc.jsonl", folder / "mc.jsonl", rule)


@pytest.mark.parametrize(
    "rule", [{}, {"first_steps": 1, "weights": (1.0, 1.0)}, {"first_steps": 0}, {"weights": (math.nan, 1.0)}]
)
def test_a_rule_is_one_thing(rule: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Rule(**rule)


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, folder: Path) -> Any:
    """Run the command in ``folder``; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(folder)

    return run_cpmi


def test_compare_from_the_command_line(cpmi: Any) -> None:
    """Run directories know where their trajectories are; a combination is a run like any other."""
    for method in ("outcome", "cpmi"):
        assert cpmi("label", "t.jsonl", "--model", "toy:", "--method", method, "--output", method)[0] == 0
    code, out, err = cpmi("combine", "cpmi", "outcome", "--weights", "1,0.5", "--output", "both.jsonl")
    assert (code, out, err) == (0, "4 combined -> both.jsonl\n", "")
    code, out, err = cpmi("compare", "outcome", "cpmi", "both.jsonl", "mc.jsonl", "--bootstrap", "20")
    assert (code, err) == (0, "")
    rows = [row.split("|")[1].strip() for row in out.splitlines() if row.startswith("|")]
    names = ["outcome", "cpmi", "both.jsonl", "mc.jsonl"]
    assert rows == ["run", "---", *names, OUTCOME, OUTCOME_AND_POSITION, "rank correlation", "---", *names[:-1]]
    code, out, _ = cpmi("compare", "outcome", "cpmi", "--json")
    parsed = json.loads(out)
    assert code == 0
    assert parsed["rows"][0]["quality"]["roc_auc"]["value"] == parsed["rows"][2]["quality"]["roc_auc"]["value"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "none"), "none: no such file"),
        (("compare", "good.jsonl", "--trajectories", "none.jsonl"), "none.jsonl: no such file"),
        (("combine", "good.jsonl", "mc.jsonl", "-o", "c.jsonl"), "name one way of combining"),
        (("combine", "good.jsonl", "mc.jsonl", "-o", "c.jsonl", "--weights", "1"), "write two numbers, for example"),
        (("combine", "good.jsonl", "mc.jsonl", "-o", "c.txt", "--weights", "1,1"), "must end in .jsonl"),
    ],
)
def test_bad_input_is_one_line(cpmi: Any, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = cpmi(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err
