"""``cpmi train``, ``cpmi score`` and what goes with them, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpmi import Trajectory, read_rewards, write_records
from cpmi.prm.data import read_targets
from cpmi.records import write_rows


def trajectories(count: int = 20) -> list[Trajectory]:
    """A wrong step says so; the third is never judged."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        labels = [bool(rng.random() < 0.6) for _ in range(3)]
        steps = tuple(f"step {i} of {number}{'' if right else ' !!!'}" for i, right in enumerate(labels))
        known = (labels[0], labels[1], None)
        made.append(Trajectory(f"question {number}?", steps, "5", "5", known, {"subset": "gsm8k"}, id=f"t{number}"))
    return made


@pytest.fixture
def base(tiny_base: Path) -> Path:
    return tiny_base


@pytest.fixture
def cpmi(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, tmp_path: Path) -> Any:
    """Run a command in a folder with trajectories; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_records(tmp_path / "t.jsonl", trajectories())

    return run_cpmi


@pytest.fixture
def trained(cpmi: Any, base: Path) -> Any:
    assert cpmi("targets", "t.jsonl", "--from-labels", "-o", "targets.jsonl")[0] == 0
    options = ("--base-model", str(base), "--device", "cpu", "--epochs", "3", "--features", "features")
    assert cpmi("train", "targets.jsonl", *options, "-o", "prm")[0] == 0
    return cpmi


# --- targets from labels --------------------------------------------------------------------------------------------


def test_human_labels_become_targets(cpmi: Any) -> None:
    write_records(
        Path("none.jsonl"), [Trajectory("q", ("a",), id="bare"), Trajectory("q", ("a",), step_labels=(None,))]
    )
    code, out, _ = cpmi("targets", "t.jsonl", "none.jsonl", "--from-labels", "-o", "targets.jsonl")
    assert (code, out) == (0, "20 trajectories, 2 without labels -> targets.jsonl\n")
    for row, trajectory in zip(read_targets(Path("targets.jsonl")), trajectories(), strict=True):
        assert trajectory.step_labels is not None
        expected = tuple(None if label is None else float(label) for label in trajectory.step_labels)
        assert (row.id, row.targets, row.rewards, row.source) == (trajectory.id, expected, expected, "human")
    assert not Path("targets.maps.json").exists()
    code, out, _ = cpmi("targets", "t.jsonl", "--from-labels", "-o", "targets.parquet", "--json")
    assert json.loads(out)["rows"] == 20
    assert read_targets(Path("targets.parquet")) == read_targets(Path("targets.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["t.jsonl", "t.jsonl"], "the id 't0' is in two of the files; name each once"),
        (["none.jsonl"], "there is no trajectory with step labels"),
        (["t.jsonl", "--normalizer", "rank"], "--normalizer and --from-labels: human labels are targets as they are"),
        (["t.jsonl", "--maps", "m.json"], "--maps and --from-labels"),
        (["missing.jsonl"], "missing.jsonl: no such file"),
    ],
)
def test_labels_that_make_no_targets(arguments: list[str], says: str, cpmi: Any) -> None:
    write_records(Path("none.jsonl"), [Trajectory("q", ("a",), id="bare")])
    code, _, err = cpmi("targets", *arguments, "--from-labels", "-o", "targets.jsonl")
    assert (code, len(err.splitlines())) == (2, 1)
    assert says in err


# --- the whole way --------------------------------------------------------------------------------------------------


def test_from_labels_to_a_benchmark(trained: Any) -> None:
    code, out, err = trained("score", "t.jsonl", "--prm", "prm", "--features", "features", "-o", "scored", "--json")
    assert code == 0
    assert err.splitlines()[-1].startswith("scoring: 20/20, ")
    summary = json.loads(out)
    assert (summary["rewarded"], summary["failed"], summary["cost"]["tokens_scored"]) == (20, 0, 0)  # all were known
    records = list(read_rewards("scored"))
    assert {record.source for record in records} == {"prm"}
    assert all(0 < reward < 1 for record in records for reward in record.rewards)
    manifest = json.loads(Path("scored/manifest.json").read_text())
    assert manifest["method"] == "prm"
    assert manifest["engine"]["dtype"] == "float32"
    assert trained("evaluate", "processbench", "--rewards", "scored")[0] == 0
    code, out, _ = trained("report", "scored", "-o", "page.html")
    assert (code, out) == (0, "20 trajectories, 1 run -> page.html\n")
    code, out, _ = trained("plot", "training", "prm", "-o", "loss.png")
    assert (code, out) == (0, "training -> loss.png\n")
    assert Path("loss.png").read_bytes().startswith(b"\x89PNG")


def test_scoring_goes_on_where_it_stopped(trained: Any) -> None:
    assert "5 scored, 0 failed of 5" in trained("score", "t.jsonl", "--prm", "prm", "-o", "scored", "--limit", "5")[1]
    assert (
        "15 scored, 0 failed, 5 already there of 20" in trained("score", "t.jsonl", "--prm", "prm", "-o", "scored")[1]
    )
    assert "0 scored, 0 failed, 20 already there" in trained("score", "t.jsonl", "--prm", "prm", "-o", "scored")[1]
    trained("train", "targets.jsonl", "--base-model", json.loads(Path("prm/config.json").read_text())["cpmi"]["base"],
            "--device", "cpu", "--epochs", "1", "-o", "other")  # fmt: skip
    code, _, err = trained("score", "t.jsonl", "--prm", "other", "-o", "scored", "--limit", "20", "--retry-errors")
    assert code in (0, 2)  # nothing is left to do: no model is opened, so that none can be told from another
    Path("scored/part-00000-of-00001.done").unlink()
    part = Path("scored/part-00000-of-00001.jsonl")
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:10]))
    code, _, err = trained("score", "t.jsonl", "--prm", "other", "-o", "scored")
    assert code == 2
    assert (
        "scored belongs to a run with other settings (engine.model: 'prm' there, 'other' here; engine.revision" in err
    )


def test_what_it_says_in_the_end(trained: Any) -> None:
    code, out, _ = trained(
        "train", "targets.jsonl", "--base-model", _base(), "--device", "cpu", "-o", "b", "--epochs", "2"
    )
    assert code == 0
    first, second, third, fourth = out.splitlines()
    assert first.endswith("held out: 2 epochs -> b")
    assert second.startswith("  best held-out loss: 0.")
    assert third.startswith("  seconds: features ")
    assert fourth.startswith("  20 trajectories hold the separator's token elsewhere, too")
    code, out, _ = trained("train", "targets.jsonl", "--base-model", _base(), "--device", "cpu", "-o", "c", "--json",
                           "--epochs", "2")  # fmt: skip
    report = json.loads(out)
    assert report["output"] == "c"
    assert report["trained"] + report["held_out"] == 20
    assert [row for row in report["history"] if "eval_loss" in row]


def test_a_model_that_learned_nothing_is_told_of(cpmi: Any, base: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"id": str(i), "question": f"q{i}", "steps": ["same"], "targets": [float(rng.random() < 0.5)]}
        for i in range(40)
    ]
    write_rows(Path("noise.jsonl"), rows, {})
    code, out, _ = cpmi("train", "noise.jsonl", "--base-model", str(base), "--device", "cpu", "-o", "prm",
                        "--head-learning-rate", "50", "--warmup", "0", "--held-out", "0.3")  # fmt: skip
    assert code == 0
    assert "nothing was learned that a constant does not know" in out


def _base() -> str:
    return str(json.loads(Path("prm/config.json").read_text())["cpmi"]["base"])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["t.jsonl"], "t.jsonl:1: missing field 'targets'; a row of targets has id, question, steps, targets"),
        (["targets.jsonl", "--base-model", "./nothing"], "./nothing: no such folder"),
        (["targets.jsonl", "--ambiguous", "a"], "ambiguous 'a': write two numbers"),
        (["targets.jsonl", "--ambiguous", "0.6,0.4"], "ambiguous range 0.6,0.4 is empty"),
        (["targets.jsonl", "--positive-weight", "x"], "positive weight 'x': write a number, or balanced"),
        (["targets.jsonl", "--positive-weight", "0"], "weight of right steps must be a number above 0"),
        (["targets.jsonl", "--separator", ""], "the separator of steps is empty"),
        (["targets.jsonl", "--objective", "pqm", "--weight-by", "target"], "pqm compares steps"),
        (["targets.jsonl", "--epochs", "0"], "epochs must be above 0"),
        (["targets.jsonl", "--log-to", "wandb"], "wandb"),
        (["targets.jsonl", "--device", "cuda"], "device 'cuda' cannot be used"),
        (["targets.jsonl", "--device", "cuda:1"], "device 'cuda:1': training takes the first it sees"),
        (["targets.jsonl", "--learning-rate", "1e-4"], "--learning-rate is for --tune lora or full, not for features"),
        (["targets.jsonl", "--tune", "full", "--features", "f"], "--features is for --tune features, not for full"),
        (["targets.jsonl", "--lora-rank", "8"], "--lora-rank is for --tune lora, not for features"),
        (["targets.jsonl", "--no-merge"], "--merge is for --tune lora, not for features"),
        (["targets.jsonl", "--gamma", "1"], "--gamma is for --objective focal, not for bce"),
        (["targets.jsonl", "--held-out", "0", "--patience", "2"], "--patience needs trajectories that are held out"),
    ],
)
def test_training_that_cannot_be(arguments: list[str], says: str, cpmi: Any, base: Path) -> None:
    cpmi("targets", "t.jsonl", "--from-labels", "-o", "targets.jsonl")
    more = () if "--base-model" in arguments else ("--base-model", str(base))
    code, _, err = cpmi("train", *arguments, *more, "-o", "prm")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert says in err
    assert not Path("prm").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["t.jsonl", "--prm", "./nothing"], "./nothing: no such folder"),
        (["missing.jsonl", "--prm", "prm"], "missing.jsonl: no such file"),
        (["t.jsonl", "--prm", "BASE"], "without a head 'score' is no process reward model"),
        (["t.jsonl", "--prm", "prm", "--family", "tlr"], "did you mean 'trl'?"),
        (["t.jsonl", "--prm", "prm", "--features", "prm"], "prm holds no cached features"),
        (["t.jsonl", "--prm", "prm", "--features", "features", "--dtype", "bfloat16"], "features of another decoder"),
        (["t.jsonl", "--prm", "prm", "--family", "trl"], "leave --family out"),
    ],
)
def test_scoring_that_cannot_be(arguments: list[str], says: str, trained: Any) -> None:
    code, _, err = trained("score", *(_base() if a == "BASE" else a for a in arguments), "-o", "scored")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert says in err
    assert not Path("scored").exists()


def test_a_polite_kill_keeps_what_is_done(base: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "t.jsonl", trajectories(60))
    run = [sys.executable, "-m", "cpmi"]
    subprocess.run([*run, "targets", "t.jsonl", "--from-labels", "-o", "targets.jsonl"], cwd=tmp_path, check=True)
    command = [*run, "train", "targets.jsonl", "--base-model", str(base), "--device", "cpu", "--tune", "full"]
    command += ["--epochs", "400", "--patience", "400", "-o", "prm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "prm.training" / "checkpoints"
    for _ in range(600):
        if len(list(checkpoints.glob("checkpoint-*/trainer_state.json"))) > 1:
            break
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on from the last whole epoch" in err
    assert "Traceback" not in err
    assert not (tmp_path / "prm").exists()


def test_the_help_names_every_choice(cpmi: Any) -> None:
    """The options repeat the names of modules that are not imported for them."""
    from typing import get_args

    from cpmi.cli import train as verbs
    from cpmi.prm import settings
    from cpmi.prm.data import WeightSettings
    from cpmi.prm.families import FAMILIES
    from cpmi.prm.objectives import OBJECTIVES

    assert get_args(verbs.Objective) == tuple(OBJECTIVES)
    assert get_args(verbs.Tune) == get_args(settings.Tune)
    assert get_args(verbs.Head) == get_args(settings.Head)
    assert get_args(verbs.TooLong) == get_args(settings.TooLong)
    assert get_args(verbs.LogTo) == get_args(settings.LogTo)
    for by in get_args(verbs.Confidence):
        WeightSettings(by)
    printed = cpmi("score", "--help")[1]
    assert all(name in printed for name in FAMILIES)
