"""``cpmi evaluate`` as a user meets it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cpmi import StepRewards, Trajectory, write_records
from cpmi.benchmarks.prmbench import CLASSES
from cpmi.cli import main
from cpmi.evaluate import published_table
from cpmi.metrics import Estimate
from cpmi.results import EvalResult, read_results

T, F, N = True, False, None


def trajectory(i: str, labels: tuple[bool | None, ...], answer: str = "5") -> Trajectory:
    steps = tuple(f"step {n}" for n in range(len(labels)))
    return Trajectory(f"Q {i}?", steps, "5", answer, labels, {"subset": i.partition("-")[0]}, id=i)


TRAJECTORIES = [
    trajectory("gsm8k-0", (T, F), "6"),
    trajectory("gsm8k-1", (T, T)),
    trajectory("math-0", (F, N), "7"),
    trajectory("math-1", (T, T)),
]
REWARDS = {"gsm8k-0": (0.9, 0.1), "gsm8k-1": (0.9, 0.8), "math-0": (0.2, 0.9), "math-1": (0.9, 0.4)}


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "t.jsonl", TRAJECTORIES)
    write_records(tmp_path / "r.jsonl", [StepRewards(i, r, "mine") for i, r in REWARDS.items()])

    return partial(run_cpmi, "evaluate")


MINE = ("--rewards", "r.jsonl", "--trajectories", "t.jsonl", "--bootstrap", "20")


def test_processbench(cpmi: Any) -> None:
    """MATH: the error found, the right one called wrong (0.4): F1 0. Outcome: all errors at the first step: MATH 1."""
    code, out, err = cpmi("processbench", *MINE, "--output", "result.json")
    assert (code, err) == (0, "")
    assert "| rewards | GSM8K | MATH | OlympiadBench | Omni-MATH | Avg. |" in out
    assert "| r.jsonl | 100.0 | 0.0 | - | - | 50.0 |" in out
    assert "| outcome (baseline) | 0.0 | 100.0 | - | - | 50.0 |" in out
    assert "* threshold: fixed-0.5 (0.5); a step is called right above it" in out
    results = read_results(Path("result.json"))
    assert [(each.source, each.subset) for each in results][:4] == [
        ("r.jsonl", "gsm8k"), ("r.jsonl", "math"), ("r.jsonl", "average"), ("outcome (baseline)", "gsm8k"),
    ]  # fmt: skip
    assert json.loads(Path("result.json").read_text())[0]["metrics"]["f1"]["value"] == 1.0


def test_the_oracle_is_marked(cpmi: Any) -> None:
    _, out, _ = cpmi("processbench", *MINE, "--threshold", "oracle")
    assert "| r.jsonl | 100.0 | 100.0 | - | - | 100.0 |" in out
    assert "oracle, tuned on the very labels that are reported: an upper bound" in out


def test_steps_of_a_run(cpmi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cpmi", "label", "t.jsonl", "--method", "outcome", "--output", "run"])
    with pytest.raises(SystemExit):
        main()
    code, out, _ = cpmi("steps", "--rewards", "run", "--json", "--bootstrap", "20")
    assert code == 0
    results = json.loads(out[out.index("[") :])
    assert {each["source"] for each in results} == {"run", "outcome (baseline)", "outcome + position (baseline)"}
    own, baseline = (
        next(each["metrics"] for each in results if each["source"] == name) for name in ("run", "outcome (baseline)")
    )
    assert own == baseline


def test_tuned_on_another_file(cpmi: Any) -> None:
    """GSM8K wants a line between 0.1 and 0.8, so 0.45, at which MATH is judged wrongly."""
    write_records(Path("dev.jsonl"), TRAJECTORIES[:2])
    write_records(Path("test.jsonl"), TRAJECTORIES[2:])
    mine = ("--rewards", "r.jsonl", "--trajectories", "test.jsonl", "--bootstrap", "5")
    code, out, _ = cpmi("processbench", *mine, "--threshold", "dev:dev.jsonl")
    assert code == 0
    assert "* threshold: dev:dev.jsonl (0.45)" in out
    assert "2 of the rewards belong to no trajectory here" in out


def test_what_a_threshold_is_tuned_on_is_not_reported(cpmi: Any) -> None:
    write_records(Path("dev.jsonl"), TRAJECTORIES[:2])
    code, out, _ = cpmi("processbench", *MINE, "--threshold", "dev:dev.jsonl", "--json")
    assert code == 0
    assert {each["subset"] for each in json.loads(out)} == {"math"}
    _, _, err = cpmi("processbench", *MINE, "--threshold", "dev:dev.jsonl", "--json")
    assert "cpmi: 2 trajectories that the threshold is tuned on are left out" in err
    code, _, err = cpmi("processbench", *MINE, "--threshold", "dev:t.jsonl")
    assert code == 2
    assert "these are the trajectories to report; tune on other ones, or say --threshold oracle" in err


def test_a_dev_file_without_known_outcomes_leaves_the_baselines_out(cpmi: Any) -> None:
    blind = [Trajectory(t.question, t.steps, step_labels=t.step_labels, id=t.id) for t in TRAJECTORIES[:2]]
    write_records(Path("dev.jsonl"), blind)
    code, out, _ = cpmi("processbench", *MINE, "--threshold", "dev:dev.jsonl")
    assert code == 0
    assert "no baseline outcome (baseline): it is not known on dev:dev.jsonl" in out


def test_baselines_are_probabilities_whatever_the_threshold_of_the_source(cpmi: Any) -> None:
    """At 0 the outcome baseline's F1 is that at 0.5; the source's threshold of 0 gets no warning."""
    _, out, _ = cpmi("processbench", *MINE, "--threshold", "fixed-0", "--json")
    results = {(each["source"], each["subset"]): each for each in json.loads(out)}
    baseline = results["outcome (baseline)", "math"]
    assert baseline["settings"]["threshold"] == "fixed-0.5"
    assert baseline["metrics"]["f1"]["value"] == 1.0
    notes = results["r.jsonl", "gsm8k"]["notes"]
    assert notes == ["the baselines are judged at fixed-0.5, since they are probabilities"]


def test_a_fixed_threshold_on_rewards_that_are_no_probabilities_gets_a_warning(cpmi: Any) -> None:
    write_records(Path("r.jsonl"), [StepRewards(i, tuple(9 * x for x in r), "mine") for i, r in REWARDS.items()])
    _, out, _ = cpmi("processbench", *MINE)
    assert "a threshold of 0.5 means little here" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", "best"), "unknown threshold 'best'"),
        (("--threshold", "dev:none.jsonl"), "none.jsonl: no such file"),
        (("--trajectories", "none.jsonl"), "none.jsonl: no such file"),
        (("--rewards", "none"), "steps judges one run, or one file of step rewards; --rewards names 2"),
        (("--output", "result.txt"), "the name of a result must end in .json"),
    ],
)
def test_bad_input_is_one_line(cpmi: Any, options: tuple[str, ...], message: str) -> None:
    code, _, err = cpmi("steps", *MINE, *options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("cost", ['{"seconds": NaN}', '{"seconds": "1"}', '{"hours": 1}'])
def test_costs_that_are_none_are_refused_with_their_line(cpmi: Any, cost: str) -> None:
    Path("r.jsonl").write_text(f'{{"trajectory_id": "gsm8k-0", "rewards": [0, 1], "source": "x", "cost": {cost}}}\n')
    code, _, err = cpmi("steps", *MINE)
    assert code == 2
    assert "r.jsonl:1: field 'cost' must be an object of finite numbers" in err


@pytest.mark.parametrize("number", ["1" + "0" * 400, "NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused_with_their_line(cpmi: Any, number: str) -> None:
    Path("r.jsonl").write_text(f'{{"trajectory_id": "gsm8k-0", "rewards": [{number}, 1], "source": "x"}}\n')
    code, _, err = cpmi("steps", *MINE)
    assert code == 2
    assert "r.jsonl:1: field 'rewards' must be a list of finite numbers" in err


def test_the_published_table_of_prmbench() -> None:
    """In percent with one decimal, in the paper's order: overall, and each group with its mean behind it."""
    subsets = [*CLASSES, "simplicity", "soundness", "sensitivity", "overall"]
    made = [EvalResult("prmbench", s, "x", {"prm_score": Estimate(i / 100 + 0.0004)}, 1) for i, s in enumerate(subsets)]
    found = published_table(made)
    assert found is not None
    columns, rows = found
    assert columns == [
        "rewards", "Overall", "NR.", "NCL.", "Simplicity Avg.", "ES.", "SC.", "DC.", "CI.", "Soundness Avg.",
        "PS.", "DR.", "MS.", "Sensitivity Avg.",
    ]  # fmt: skip
    assert rows == [["x", "12.0", "0.0", "1.0", "9.0", "2.0", "3.0", "4.0", "5.0", "10.0", "6.0", "7.0", "8.0", "11.0"]]
