"""Runs: killed anywhere, resumed, sharded, refused: nothing lost, nothing twice, nothing mixed up."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpmi
from cpmi import Cost, CpmiError, InputError, StepRewards, Trajectory, read_rewards, write_records
from cpmi.parts import Part
from cpmi.running import Progress, run_part
from cpmi.runs import RunDirectory, Shard

SETTINGS = {"method": "length", "settings": {"weight": 1.0, "templates": [{"cue": "a"}]}, "shards": 1}


class Lengths:
    """Rewards a step by its length; can fail, crash or mix things up on demand."""

    name = "lengths"

    def __init__(self, crash_after: int = 10**9) -> None:
        self.seen: list[str] = []
        self.crash_after = crash_after

    def describe(self) -> dict[str, Any]:
        return {}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        if len(self.seen) >= self.crash_after:
            raise RuntimeError("crashed")
        self.seen += [t.id for t in trajectories]
        return [self._one(t) for t in trajectories]

    def _one(self, trajectory: Trajectory) -> StepRewards:
        if not trajectory.steps:
            return StepRewards(trajectory.id, (), self.name, cost=Cost(0, 1, 0.5), error="no steps")
        return StepRewards(
            trajectory.id, tuple(float(len(s)) for s in trajectory.steps), self.name, cost=Cost(1, 1, 0.5)
        )


def some(n: int) -> list[Trajectory]:
    return [Trajectory(f"q{i}", tuple("x" * (k + 1) for k in range(i % 3)), id=f"t{i}") for i in range(n)]


def do(path: Path, rewarder: Lengths, n: int = 9, shard: Shard = Shard(), **options: Any) -> Progress:
    run = RunDirectory.create_or_resume(path, SETTINGS | {"shards": shard.count})
    retry = options.pop("retry_errors", False)
    with Part(run, shard, retry_errors=retry) as part:
        return run_part(rewarder, some(n), part, shard, n, batch_size=2, **options)


def ids(path: Path) -> list[str]:
    return [record.trajectory_id for record in read_rewards(path)]


def test_a_run_holds_a_line_per_trajectory_failures_included(tmp_path: Path) -> None:
    seen: list[int] = []
    progress = do(tmp_path / "run", Lengths(), on_progress=lambda p: seen.append(p.done))
    assert (progress.rewarded, progress.failed, progress.before, progress.done) == (6, 3, 0, 9)
    assert progress.errors == {"no steps": 3}
    assert progress.cost == Cost(6, 9, 4.5)
    assert seen == [0, 2, 4, 6, 8, 9]
    records = {r.trajectory_id: r for r in read_rewards(tmp_path / "run")}
    assert list(records) == [f"t{i}" for i in range(9)]
    assert records["t5"].rewards == (1.0, 2.0)
    assert records["t3"].error == "no steps"
    assert (tmp_path / "run" / "part-00000-of-00001.done").exists()


def test_after_a_crash_only_the_batch_in_flight_is_done_again(tmp_path: Path) -> None:
    first = Lengths(crash_after=4)
    with pytest.raises(RuntimeError, match="crashed"):
        do(tmp_path / "run", first)
    assert ids(tmp_path / "run") == ["t0", "t1", "t2", "t3"]
    assert not (tmp_path / "run" / "part-00000-of-00001.done").exists()
    second = Lengths()
    progress = do(tmp_path / "run", second)
    assert second.seen == ["t4", "t5", "t6", "t7", "t8"]
    assert (progress.before, progress.rewarded + progress.failed) == (4, 5)
    assert ids(tmp_path / "run") == [f"t{i}" for i in range(9)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_cut_at_any_byte_the_run_becomes_the_same(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Whatever part of the file a kill left behind, going on gives the lines of an undisturbed run."""
    path = tmp_path_factory.mktemp("cut")
    do(path / "whole", Lengths())
    whole = (path / "whole" / "part-00000-of-00001.jsonl").read_bytes()
    run = RunDirectory.create_or_resume(path / "run", SETTINGS)
    (run.path / "part-00000-of-00001.jsonl").write_bytes(whole[: cut % (len(whole) + 1)])
    do(path / "run", Lengths())
    assert (path / "run" / "part-00000-of-00001.jsonl").read_bytes() == whole


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6))
def test_any_number_of_shards_gives_the_same_records(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    path = tmp_path_factory.mktemp("shards") / "run"
    for index in range(count):
        do(path, Lengths(), shard=Shard(index, count))
    assert sorted(ids(path)) == sorted(f"t{i}" for i in range(9))
    assert len(list(path.glob("*.done"))) == count


def test_a_limit_leaves_the_part_open_for_more(tmp_path: Path) -> None:
    do(tmp_path / "run", Lengths(), n=4, complete=False)
    assert not list((tmp_path / "run").glob("*.done"))
    second = Lengths()
    do(tmp_path / "run", second, n=9)
    assert second.seen == ["t4", "t5", "t6", "t7", "t8"]


def test_errors_are_tried_again_when_asked_for(tmp_path: Path) -> None:
    do(tmp_path / "run", Lengths())
    again = Lengths()
    progress = do(tmp_path / "run", again, retry_errors=True)
    assert again.seen == ["t0", "t3", "t6"]
    assert progress.before == 6
    assert sorted(ids(tmp_path / "run")) == sorted(f"t{i}" for i in range(9))


def test_other_settings_are_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    RunDirectory.create_or_resume(tmp_path / "run", SETTINGS)
    other = {"method": "length", "settings": {"weight": 2.0, "templates": [{"cue": "b"}]}, "shards": 1}
    with pytest.raises(InputError) as caught:
        RunDirectory.create_or_resume(tmp_path / "run", other)
    assert "settings.weight: 1.0 there, 2.0 here" in str(caught.value)
    assert "settings.templates.0.cue: 'a' there, 'b' here" in str(caught.value)
    assert "method" not in str(caught.value)


def test_places_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"format": 1')
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "manifest.json").write_text('{"format": 99}')
    for name, message in (
        ("full", "not empty and not a run"),
        ("file", "is a file"),
        ("broken", "broken"),
        ("future", "not a manifest that this version"),
    ):
        with pytest.raises(InputError, match=message):
            RunDirectory.create_or_resume(tmp_path / name, SETTINGS)


PART = "part-00000-of-00001.jsonl"


def flipped(line: bytes) -> bytes:
    """A line that is as good as before, with another reward."""
    assert b'"rewards":[1.0,2.0]' in line
    return line.replace(b"2.0", b"3.0", 1)


DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str, list[str]]] = {
    "garbage": (lambda lines: [*lines[:3], b"\x81\x02{\n", *lines[3:]], "line 4: byte 1 is not UTF-8", []),
    "broken JSON": (lambda lines: [*lines[:2], lines[2][:20] + b"\n", *lines[3:]], "line 3: broken JSON", ["t2"]),
    "zeros": (lambda lines: [b"\0" * len(lines[0]) + b"\n", *lines[1:]], "line 1: broken JSON", ["t0"]),
    "wrong type": (lambda lines: [lines[0], b'{"trajectory_id":7}\n', *lines[2:]], "line 2: missing field", ["t1"]),
    "twice": (lambda lines: [*lines[:4], lines[1], *lines[4:]], "line 5: the id 't1' is there twice", []),
    "another digit": (lambda lines: [*lines[:5], flipped(lines[5]), *lines[6:]], "line 6: not as it was", ["t5"]),
    "two lines in one": (
        lambda lines: [*lines[:6], lines[6][:-1] + lines[7], lines[8]],
        "line 7: broken",
        ["t6", "t7"],
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_broken_lines_are_set_aside_and_labeled_again(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    do(tmp_path / "run", Lengths())
    part = tmp_path / "run" / PART
    whole = part.read_bytes().splitlines(keepends=True)
    damage, problem, again = DAMAGE[kind]
    damaged = damage(whole)
    part.write_bytes(b"".join(damaged))
    rewarder = Lengths()
    do(tmp_path / "run", rewarder)
    assert rewarder.seen == again
    assert sorted(part.read_bytes().splitlines(keepends=True)) == sorted(whole)
    unknown = [line for i, line in enumerate(damaged) if line not in whole or line in damaged[:i]]
    assert part.with_suffix(".broken").read_bytes() == b"".join(unknown)
    [warning] = [record.message for record in caplog.records]
    assert f"{PART}: 1 broken line moved to part-00000-of-00001.broken ({problem}" in warning
    assert part.with_suffix(".done").exists()


def test_a_repair_adds_to_what_is_set_aside_and_takes_back_that_the_part_is_done(tmp_path: Path) -> None:
    do(tmp_path / "run", Lengths())
    part = tmp_path / "run" / PART
    run = RunDirectory.open(tmp_path / "run")
    for garbage in (b"{\n", b"}\n"):
        part.write_bytes(garbage + part.read_bytes())
        with Part(run, Shard()) as opened:
            assert len(opened.ids) == 9
            assert not opened.is_done
    assert part.with_suffix(".broken").read_bytes() == b"{\n}\n"


def test_a_part_that_lost_a_line_is_not_done_until_it_is_back(tmp_path: Path) -> None:
    do(tmp_path / "run", Lengths())
    part = tmp_path / "run" / PART
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-1]))  # by hand
    do(tmp_path / "run", Lengths(), complete=False)
    assert not part.with_suffix(".done").exists()
    assert ids(tmp_path / "run") == [f"t{i}" for i in range(9)]


def test_a_line_of_another_part_is_set_aside(tmp_path: Path) -> None:
    shards = [Shard(0, 2), Shard(1, 2)]
    for shard in shards:
        do(tmp_path / "run", Lengths(), shard=shard)
    first, second = (tmp_path / "run" / f"{shard.name}.jsonl" for shard in shards)
    whole = first.read_bytes()
    stray = second.read_bytes().splitlines(keepends=True)[0]
    first.write_bytes(whole + stray)
    first.with_suffix(".sums").unlink()  # as a run of an older version, which had none
    do(tmp_path / "run", Lengths(), shard=shards[0])
    assert first.read_bytes() == whole
    assert first.with_suffix(".broken").read_bytes() == stray


def test_a_run_of_an_older_version_has_no_digests_and_gets_some(tmp_path: Path) -> None:
    do(tmp_path / "run", Lengths())
    part = tmp_path / "run" / PART
    sums = part.with_suffix(".sums")
    written = sums.read_bytes()
    assert len(written.splitlines()) == 9
    for torn in (None, written[:-1], b""):
        sums.unlink() if torn is None else sums.write_bytes(torn)
        if torn is not None:  # digests are written first, so that the line of a torn one was never there
            part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[: torn.count(b"\n")]))
        rewarder = Lengths()
        do(tmp_path / "run", rewarder)
        assert len(rewarder.seen) == {None: 0, written[:-1]: 1, b"": 9}[torn]
        assert sums.read_bytes() == written
        assert not part.with_suffix(".broken").exists()


def test_a_repair_on_a_full_disk_leaves_everything_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(tmp_path / "run", Lengths())
    part = tmp_path / "run" / PART
    damaged = b"{broken\n" + part.read_bytes()
    part.write_bytes(damaged)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CpmiError, match="cannot be written"):
            do(tmp_path / "run", Lengths())
    assert part.read_bytes() == damaged
    assert not list(part.parent.glob("*.partial"))
    with pytest.raises(InputError, match=r":1: broken JSON .*; cpmi verify .*run tells more; run the same cpmi label"):
        ids(tmp_path / "run")
    do(tmp_path / "run", Lengths())
    assert ids(tmp_path / "run") == [f"t{i}" for i in range(9)]


def test_two_processes_cannot_write_one_part(tmp_path: Path) -> None:
    run = RunDirectory.create_or_resume(tmp_path / "run", SETTINGS)
    with Part(run, Shard()), pytest.raises(InputError, match="another process is writing this part"):
        Part(run, Shard())
    with Part(run, Shard()):
        pass


def test_shards_that_start_at_once_agree_on_one_manifest(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def start(_: int) -> dict[str, Any]:
        barrier.wait()
        return RunDirectory.create_or_resume(tmp_path / "run", SETTINGS).manifest

    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(start, range(8)))
    assert manifests == [json.loads((tmp_path / "run" / "manifest.json").read_text())] * 8
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    RunDirectory.create_or_resume(tmp_path / "run", SETTINGS)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_the_same_model_may_move_and_another_may_not(tmp_path: Path) -> None:
    here = {"engine": {"model": "hf:./m", "revision": "abc", "dtype": "float32"}}
    RunDirectory.create_or_resume(tmp_path / "run", here)
    RunDirectory.create_or_resume(tmp_path / "run", {"engine": here["engine"] | {"model": "hf:/data/m"}})
    with pytest.raises(InputError, match=r"engine\.revision: 'abc' there, 'def' here"):
        RunDirectory.create_or_resume(tmp_path / "run", {"engine": here["engine"] | {"revision": "def"}})


def test_another_version_of_the_package_goes_on_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RunDirectory.create_or_resume(tmp_path / "run", SETTINGS)
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(cpmi.__version__, "0.0.1"))
    RunDirectory.create_or_resume(tmp_path / "run", SETTINGS)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'run'} was begun by cpmi 0.0.1, this is {cpmi.__version__}"
    ]


def test_a_full_disk_is_one_clear_line_and_keeps_what_is_there(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    do(tmp_path / "run", Lengths(), n=4, complete=False)
    run = RunDirectory.open(tmp_path / "run")
    with Part(run, Shard()) as part:
        with Path("/dev/full").open("ab", buffering=0) as full:
            part._file._file, kept = full, part._file._file
            with pytest.raises(CpmiError, match=f"{os.strerror(errno.ENOSPC)}.*what is labeled so far is kept"):
                run_part(Lengths(), some(9), part, Shard(), 9)
        part._file._file = kept
    assert ids(tmp_path / "run") == ["t0", "t1", "t2", "t3"]


class Swapped(Lengths):
    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        return super().rewards(trajectories)[::-1]


class Short(Lengths):
    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        return [StepRewards(t.id, (1.0,) * 7, self.name) for t in trajectories]


@pytest.mark.parametrize("rewarder", [Swapped(), Short()])
def test_a_rewarder_that_mixes_things_up_never_reaches_the_disk(tmp_path: Path, rewarder: Lengths) -> None:
    with pytest.raises(CpmiError, match="do not fit that trajectory's steps"):
        do(tmp_path / "run", rewarder)
    assert ids(tmp_path / "run") == []


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/b", "1/", "/", "1/0"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write i/n"):
        Shard.parse(text)
    assert Shard.parse("0/4") == Shard(0, 4)


@given(st.text(min_size=1), st.integers(1, 20))
def test_every_id_is_in_exactly_one_shard(trajectory_id: str, count: int) -> None:
    assert sum(Shard(i, count).holds(trajectory_id) for i in range(count)) == 1


# --- the real command, really killed --------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cpmi", *arguments]


def kill_while_labeling(arguments: list[str], run: Path, rng: random.Random) -> bool:
    """Run the command and send SIGKILL soon after it has written something new; whether it was killed."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = size(run)
    while process.poll() is None and size(run) == before:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    return process.wait() == -signal.SIGKILL


def size(run: Path) -> int:
    return sum(part.stat().st_size for part in run.glob("part-*.jsonl"))


def without_cost(path: Path) -> list[tuple[Any, ...]]:
    return [(r.trajectory_id, r.rewards, r.terms, r.details, r.error) for r in read_rewards(path)]


def test_killed_again_and_again_the_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL at random moments while the real command labels with the toy engine."""
    steps = tuple(f"step {k}: " + "1234567890 " * 40 for k in range(8))
    trajectories = [Trajectory(f"What is {i} + {i}?", steps, str(2 * i), str(2 * i + 1)) for i in range(150)]
    write_records(tmp_path / "t.jsonl", trajectories)
    fixed = ["label", str(tmp_path / "t.jsonl"), "--model", "toy:", "--batch-size", "2", "--output"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    subprocess.run(command(*fixed, str(whole)), check=True, capture_output=True)
    rng = random.Random(0)
    kills = sum(kill_while_labeling([*fixed, str(run)], run, rng) for _ in range(5))
    assert kills >= 3
    subprocess.run(command(*fixed, str(run)), check=True, capture_output=True)
    assert without_cost(run) == without_cost(whole)
    attempts = (run / "attempts.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "start" for line in attempts) >= kills + 1


def test_sigterm_stops_with_a_line_and_keeps_what_is_labeled(tmp_path: Path) -> None:
    steps = tuple("1234567890 " * 300 for _ in range(10))
    write_records(tmp_path / "t.jsonl", [Trajectory(f"Q{i}", steps, "1", "2") for i in range(300)])
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("label", str(tmp_path / "t.jsonl"), "--model", "toy:", "--batch-size", "1", "--output", str(run)),
        stderr=subprocess.PIPE,
        text=True,
    )
    part = run / "part-00000-of-00001.jsonl"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "keeps what is labeled, and the same command goes on there" in stderr
    assert "Traceback" not in stderr
    assert len(ids(run)) >= 1
