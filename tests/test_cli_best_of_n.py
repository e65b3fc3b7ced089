"""``cpmi evaluate best-of-n`` as a user meets it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cpmi import Cost, StepRewards, Trajectory, write_records
from cpmi.results import read_results

ANSWERS = {"one": ("5", "6", "5"), "two": ("7", "5", "8")}  # 5 is right
REWARDS = {"one/0": 0.2, "one/1": 0.9, "one/2": 0.3, "two/0": 0.1, "two/1": 0.8, "two/2": 0.2}


def candidates(**tags: str) -> list[Trajectory]:
    return [
        Trajectory(
            f"Q {q}?", ("First.", f"So {answer}"), "5", answer, id=f"{q}/{i}",
            tags={"score": str(REWARDS[f"{q}/{i}"])} | tags,
        )
        for q, answers in ANSWERS.items()
        for i, answer in enumerate(answers)
    ]  # fmt: skip


def rewards(source: str = "mine", scale: float = 1.0) -> list[StepRewards]:
    return [StepRewards(i, (0.5, scale * r), source, cost=Cost(1, 2, 0.5)) for i, r in REWARDS.items()]


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    write_records(Path("t.jsonl"), candidates())
    write_records(Path("r.jsonl"), rewards())
    return partial(run_cpmi, "evaluate", "best-of-n", "--bootstrap", "5")


T = ("--trajectories", "t.jsonl")


def test_best_of_n(cpmi: Any) -> None:
    """N = 3, last: the highest are one/1 (wrong) and two/1 (right); weighted: 0.5 to 0.9, and 0.8: the same."""
    code, out, err = cpmi("--rewards", "r.jsonl", "--rewards", "tag:score", *T, "--n", "1,3", "-o", "result.json")
    assert (code, err) == (0, "")
    assert "| rule | aggregation | rewards | N = 1 | N = 3 | ties at 3 |" in out
    assert "* accuracy in percent, with 95 % intervals over 5 resamples of questions" in out
    results = {
        (each.source, each.settings["aggregation"], each.settings["rule"]): each
        for each in read_results(Path("result.json"))
    }
    last = results["r.jsonl", "last", "best-of-n"]
    assert last.metrics["accuracy@3"].value == 0.5
    assert last.cost == Cost(6, 12, 3.0)
    assert results["tag:score", "score", "weighted"].metrics["accuracy@3"].value == 0.5
    assert results["oracle", None, "oracle"].metrics["accuracy@3"].value == 1.0
    assert (last.benchmark, last.subset, last.n, last.n_unscored) == ("best-of-n", "all", 2, 0)
    assert last.settings == {
        "rule": "best-of-n", "aggregation": "last", "subsets": 1000, "temperature": 1.0, "resamples": 5, "seed": 0,
    }  # fmt: skip


def test_without_rewards_as_json(cpmi: Any) -> None:
    code, out, err = cpmi(*T, "--json")
    assert code == 0
    assert [each["source"] for each in json.loads(out)] == ["one sample", "majority", "oracle"]
    assert err == ""
    write_records(Path("t.jsonl"), [*candidates(), Trajectory("Other?", ("So 5",), None, "5")])
    code, out, err = cpmi(*T, "--json")
    json.loads(out)
    assert err.splitlines()[0] == "cpmi: 1 questions without a gold answer are left out"


def test_a_run_knows_its_candidates_and_that_it_knew_the_answer(cpmi: Any, run_cpmi: Any) -> None:
    assert run_cpmi("label", "t.jsonl", "--method", "outcome", "--output", "run")[0] == 0
    code, out, _ = cpmi("--rewards", "run", "--rewards", "r.jsonl", "--aggregation", "min", "--n", "3")
    assert code == 0
    assert "| best-of-n | min | run | 100.0 (100.0-100.0) | 0.0 (0.0-0.0) |" in out
    assert "* run, all: outcome: made knowing the right answer: no way to choose an answer in use" in out
    assert "r.jsonl, all" not in out
    write_records(Path("u.jsonl"), candidates(other="file"))
    assert run_cpmi("label", "u.jsonl", "--method", "outcome", "--output", "other")[0] == 0
    code, _, err = cpmi("--rewards", "run", "--rewards", "other")
    assert code == 2
    assert "the runs are over different files of candidates; name the one to use with --trajectories FILE" in err
    assert cpmi("--rewards", "run", "--rewards", "other", *T)[0] == 0


def test_failed_and_missing_rewards_are_counted(cpmi: Any) -> None:
    lines = [
        StepRewards("one/1", (), "mine", error="too long"),
        *(r for r in rewards() if r.trajectory_id[:3] == "two"),
    ]
    write_records(Path("r.jsonl"), [*lines, StepRewards("gone", (1.0,), "mine")])
    _, out, _ = cpmi("--rewards", "r.jsonl", *T, "--json")
    results = json.loads(out)
    assert {each["n_unscored"] for each in results} == {0, 3}
    _, out, _ = cpmi("--rewards", "r.jsonl", *T)
    assert "* r.jsonl, all: 1 of the rewards belong to no candidate here, and are left out" in out
    assert "* r.jsonl, all: 3 candidates have no rewards: they cannot be chosen" in out


def test_two_files_of_one_name_keep_their_paths(cpmi: Any) -> None:
    write_records(Path("a/r.jsonl"), rewards())
    _, out, _ = cpmi("--rewards", "a/r.jsonl", "--rewards", "r.jsonl", *T, "--json")
    sources = {each["source"] for each in json.loads(out)}
    assert {str(Path("a/r.jsonl").resolve()), str(Path("r.jsonl").resolve())} < sources


RUN = ("--rewards", "r.jsonl", *T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*RUN, "--n", "0"), "N must be a number from 1, not '0'"),
        ((*RUN, "--n", "-2"), "N must be a number from 1, not '-2'"),
        ((*RUN, "--n", "many"), "N must be a number from 1, not 'many'"),
        ((*RUN, "--aggregation", "median"), "unknown aggregation 'median' (known: last, min, prod, mean, sum)"),
        ((*RUN, "--temperature", "0"), "the temperature must be a number above 0, not 0"),
        ((*RUN, "--threshold", "oracle"), "--threshold is for steps, processbench, prmbench, not for best-of-n"),
        ((*RUN, "--output", "result.txt"), "the name of a result must end in .json"),
        ((*RUN, "--rewards", "./r.jsonl"), "a source of rewards is named twice"),
        ((*RUN, "--rewards", "none"), "none: no such file"),
        ((*T, "--rewards", "tag:none"), "'one/0' has no tag 'none'"),
        ((*T, "--rewards", "tag:word"), "'one/0': its tag 'word' is no number: 'good'"),
        ((*T, "--aggregation", "min"), "--aggregation is for step rewards, and there are none"),
        ((*T, "--temperature", "2"), "--temperature is for votes weighed by rewards, and there are none"),
        ((), "no run says where the candidates are; name them with --trajectories FILE"),
        (("--rewards", "tag:score"), "no run says where the candidates are; name them with --trajectories FILE"),
        (("--rewards", "r.jsonl"), "r.jsonl is a file, so its trajectories must be named: --trajectories FILE"),
        ((*T, "--rewards", "strange.jsonl"), "strange.jsonl: none of its 1 ids is one of the 6 candidates"),
        (
            (*T, "--rewards", "failed.jsonl"),
            "failed.jsonl: none of the 6 candidates has rewards (no)",
        ),
        ((*T, "--rewards", "long.jsonl"), "'one/0': 1 rewards for 2 steps"),
        ((*T, "--rewards", "first.jsonl", "--rewards", "second.jsonl"), "have no candidate in common"),
    ],
)
def test_bad_input_is_one_line(cpmi: Any, options: tuple[str, ...], message: str) -> None:
    write_records(Path("t.jsonl"), candidates(word="good"))
    write_records(Path("strange.jsonl"), [StepRewards("x", (1.0,), "mine")])
    write_records(Path("failed.jsonl"), [StepRewards("one/0", (), "mine", error="no")])
    write_records(Path("long.jsonl"), [StepRewards("one/0", (1.0,), "mine")])
    write_records(Path("first.jsonl"), rewards()[:2])
    write_records(Path("second.jsonl"), rewards()[2:])
    code, out, err = cpmi(*options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--rewards", "r.jsonl", "--rewards", "r.jsonl"),
            "steps judges one run, or one file of step rewards; --rewards",
        ),
        ((), "steps judges one run, or one file of step rewards; --rewards names 0"),
        (("--rewards", "r.jsonl", "--n", "2"), "--n is for best-of-n, not for steps"),
        (("--rewards", "r.jsonl", "--aggregation", "min"), "--aggregation is for best-of-n, not for steps"),
        (("--rewards", "r.jsonl", "--temperature", "1"), "--temperature is for best-of-n, not for steps"),
        (("--rewards", "r.jsonl", "--subsets", "9"), "--subsets is for best-of-n, not for steps"),
    ],
)
def test_the_other_benchmarks_refuse_its_options(
    cpmi: Any, run_cpmi: Any, options: tuple[str, ...], message: str
) -> None:
    code, _, err = run_cpmi("evaluate", "steps", *options, *T)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
