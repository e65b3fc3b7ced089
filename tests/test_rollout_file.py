"""Finished rollouts on disk, and rollout runs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi import ModelSettings, Trajectory, read_rewards, write_records
from cpmi.errors import CpmiError
from cpmi.labelers.monte_carlo import MonteCarloSettings
from cpmi.labelers.rollouts import RolloutSettings
from cpmi.labeling import LabelJob, label
from cpmi.models.toy import ToyModel
from cpmi.protocols import Completion, OnSampled, Prompt, Sampled, SamplingParams, ignore_sampled
from cpmi.records import Cost
from cpmi.rollout_file import RolloutFile
from cpmi.runs import RunDirectory, Shard

SAMPLED = Sampled((Completion("a\nb ∑", "stop"), Completion("", "length")), Cost(7, 3, 0.25))
NAME = "rollouts-00000-of-00001.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create_or_resume(tmp_path / "run", {"method": "mc"})


def test_what_is_put_is_there_next_time(run: RunDirectory) -> None:
    counted: list[int] = []
    store = RolloutFile(counted.append)
    with store.opened(run, Shard(), ()):
        assert store.get("policy", "t", 2) is None
        store.put("policy", "t", 2, SAMPLED)
        store.put("prover", "t", 2, SAMPLED)
    assert counted == [2, 2]
    again = RolloutFile()
    with again.opened(run, Shard(), ()):
        assert again.get("policy", "t", 2) == again.get("prover", "t", 2) == SAMPLED
        assert again.get("policy", "t", 1) is None
    with again.opened(run, Shard(), {"t"}):  # labeled already: not held in memory
        assert again.get("policy", "t", 2) is None


def test_nothing_sampled_makes_no_file(run: RunDirectory) -> None:
    with RolloutFile().opened(run, Shard(), ()):
        pass
    assert not (run.path / NAME).exists()


@given(cut=st.integers(0, 400))
def test_a_torn_end_is_cut_off_and_the_rest_is_good(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunDirectory.create_or_resume(tmp_path_factory.mktemp("run") / "r", {"method": "mc"})
    store = RolloutFile()
    with store.opened(run, Shard(), ()):
        for prefix in range(3):
            store.put("policy", "t", prefix, SAMPLED)
    file = run.path / NAME
    data = file.read_bytes()
    file.write_bytes(data[: max(0, len(data) - cut)])
    kept = file.read_bytes().count(b"\n")
    with store.opened(run, Shard(), ()):
        assert [store.get("policy", "t", i) is not None for i in range(3)] == [i < kept for i in range(3)]
        store.put("policy", "t", 9, SAMPLED)
    assert [json.loads(line)["prefix"] for line in file.read_text().splitlines()] == [*range(kept), 9]


BROKEN = [b"{}\n", b"nonsense\n", b"[1]\n", b'{"role":1,"completions":[{}]}\n', b"\xff\n", b"\0\0\n"]


@pytest.mark.parametrize("line", [*BROKEN, b'{"role":1,"trajectory_id":"t","prefix":0,"completions":[],"cost":{}}\n'])
def test_a_broken_line_is_set_aside(line: bytes, run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    store = RolloutFile()
    with store.opened(run, Shard(), ()):
        store.put("policy", "t", 0, SAMPLED)
        store.put("policy", "t", 1, SAMPLED)
    file = run.path / NAME
    good = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(good[0] + line + good[1])
    with store.opened(run, Shard(), ()):
        assert store.get("policy", "t", 0) == store.get("policy", "t", 1) == SAMPLED
    assert file.read_bytes() == b"".join(good)
    assert file.with_suffix(".broken").read_bytes() == line
    [warning] = [record.message for record in caplog.records]
    assert f"{NAME}: 1 broken line moved to rollouts-00000-of-00001.broken (line 2: no line of rollouts" in warning


def test_a_line_that_was_changed_is_noticed(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    store = RolloutFile()
    with store.opened(run, Shard(), ()):
        store.put("policy", "t", 0, SAMPLED)
    file = run.path / NAME
    line = file.read_bytes()
    file.write_bytes(line.replace(b'"text": "a', b'"text": "b'))
    assert file.read_bytes() != line
    with store.opened(run, Shard(), ()):
        assert store.get("policy", "t", 0) is None
    assert "line 1: not as it was written" in caplog.text
    old = json.loads(line)
    del old["sum"]
    file.write_text(json.dumps(old) + "\n")  # as an older version wrote it
    with store.opened(run, Shard(), ()):
        assert store.get("policy", "t", 0) == SAMPLED


def test_broken_lines_of_another_run_are_not_taken(
    run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = RolloutFile()
    with store.opened(run, Shard(), ()):
        store.put("policy", "t", 0, SAMPLED)
    file = run.path / NAME
    content = b"nonsense\n" + file.read_bytes() + b"torn"
    file.write_bytes(content)
    other = RunDirectory.create_or_resume(tmp_path / "other", {"method": "mc"})
    with store.opened(other, Shard(), (), taken_from=run.path):
        assert store.get("policy", "t", 0) == SAMPLED
    assert file.read_bytes() == content
    assert "broken and not taken: 1" in caplog.text


# --- runs -----------------------------------------------------------------------------------------------------------


def some_trajectories(path: Path, count: int = 6) -> Path:
    trajectories = [
        Trajectory(f"What is {i} + {i} + 1?", (f"{i} + {i} = {2 * i}", f"{2 * i} + 1 = {2 * i + 1}", "Done."), str(i))
        for i in range(count)
    ]
    write_records(path, trajectories)
    return path


def job(folder: Path, **more: Any) -> LabelJob:
    sampling = SamplingParams(max_tokens=10)
    settings = MonteCarloSettings(RolloutSettings(n=2, sampling=sampling))
    return LabelJob(folder / "t.jsonl", folder / "run", ModelSettings("toy:"), settings, **more)


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "run/part-00000-of-00001.jsonl").read_text().splitlines()]
    for row in rows:
        del row["cost"]["seconds"]
    return rows


def test_an_engine_that_dies_loses_no_finished_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine dies again and again; each attempt goes on from the rollouts of the one before it."""
    (whole := tmp_path / "whole").mkdir()
    (broken := tmp_path / "broken").mkdir()
    some_trajectories(whole / "t.jsonl"), some_trajectories(broken / "t.jsonl")
    label(job(whole))

    sampled: list[str] = []
    usual = ToyModel.sample

    def mortal(
        self: ToyModel, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        def die_after_five(index: int, one: Sampled) -> None:
            on_done(index, one)
            sampled.append(prompts[index].text)
            if len(sampled) % 5 == 0:
                raise CpmiError("the engine died")

        return usual(self, prompts, n, params, die_after_five)

    monkeypatch.setattr(ToyModel, "sample", mortal)
    for _ in range(3):
        with pytest.raises(CpmiError, match="the engine died"):
            label(job(broken))
    label(job(broken))
    assert len(sampled) == len(set(sampled)) == 18  # six trajectories, three prefixes; none sampled twice
    assert without_seconds(broken) == without_seconds(whole)
    ended = [json.loads(line) for line in (broken / "run/attempts.jsonl").read_text().splitlines()]
    assert [line.get("reason") for line in ended if line["event"] == "end"] == ["the engine died"] * 3 + [None]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL at several moments; then the same lines as an undisturbed run."""
    (whole := tmp_path / "whole").mkdir()
    (broken := tmp_path / "broken").mkdir()
    some_trajectories(whole / "t.jsonl", 40), some_trajectories(broken / "t.jsonl", 40)
    command = [sys.executable, "-m", "cpmi", "label", "t.jsonl", "--output", "run", "--model", "toy:"]
    command += ["--method", "mc", "--rollouts", "4", "--max-tokens", "200", "--batch-size", "10"]
    subprocess.run(command, cwd=whole, check=True, capture_output=True)
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(command, cwd=broken, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = _size(broken)
        while process.poll() is None and _size(broken) < size + 20_000:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run(command, cwd=broken, check=True, capture_output=True)
    assert killed == 3
    assert without_seconds(broken) == without_seconds(whole)
    keys = [json.loads(line)["trajectory_id"] for line in (broken / "run" / NAME).read_text().splitlines()]
    assert len(keys) == 120  # every prefix once
    assert len(list(read_rewards(broken / "run"))) == 40


def _size(folder: Path) -> int:
    file = folder / "run" / NAME
    return file.stat().st_size if file.exists() else 0


def test_errors_are_tried_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_trajectories(tmp_path / "t.jsonl")
    usual = ToyModel.sample
    down = True

    def flaky(
        self: ToyModel, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        asked.append(len(prompts))
        results = usual(self, prompts, n, params)
        for i, prompt in enumerate(prompts):
            if down and "What is 3 + 3 + 1?" in prompt.text and prompt.text.endswith("= 7\n\n"):
                results[i] = Sampled((), error="server: 500")
            on_done(i, results[i])
        return results

    asked: list[int] = []
    monkeypatch.setattr(ToyModel, "sample", flaky)
    progress = label(job(tmp_path))
    assert (progress.rewarded, progress.failed) == (5, 1)
    down = False
    progress = label(job(tmp_path, retry_errors=True))
    assert (progress.rewarded, progress.failed) == (1, 0)
    assert asked == [18, 1]


def test_progress_counts_rollouts_as_they_come(tmp_path: Path) -> None:
    some_trajectories(tmp_path / "t.jsonl")
    seen: list[tuple[int, int]] = []
    label(job(tmp_path, batch_size=3), lambda progress: seen.append((progress.done, progress.rollouts)))
    assert seen[0] == (0, 0)
    assert (0, 2) in seen
    assert seen[-1] == (6, 36)
