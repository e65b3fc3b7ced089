"""Files in a store: what grows there, who may write, and whole runs on a server that speaks S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi import InputError, Trajectory, read_rewards, read_trajectories, write_records
from cpmi.errors import CpmiError
from cpmi.parts import Part
from cpmi.runs import RunDirectory, Shard
from cpmi.storage import MERGED, Lease, Segments, create, grown, is_remote, location, uncovered

pytest.importorskip("upath", reason="needs universal-pathlib (pip install 'cpmi[remote]')")


def memory(name: str = "") -> Path:
    return location(f"memory://{uuid.uuid4().hex}/{name}")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory://folder/file.jsonl", "memory:/folder/file.jsonl"])
def test_a_url_is_a_place_in_a_store_and_survives_path(name: str) -> None:
    for spelled in (name, Path(name)):
        found = location(spelled)
        assert is_remote(found)
        assert str(found) == "memory://folder/file.jsonl"
        assert location(found) is found


@pytest.mark.parametrize("name", ["folder/file.jsonl", "/folder/file", "c:/folder", "a:b", "."])
def test_anything_else_is_a_path(name: str) -> None:
    assert location(name) == Path(name)
    assert not is_remote(location(name))


@pytest.mark.parametrize("name", ["gopher://a/b", "nosuch://a/b"])
def test_a_store_that_nobody_knows_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no way to reach a store"):
        location(name)


# --- what grows -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3 * MERGED), st.sets(st.integers(0, 3 * MERGED)))
def test_segments_hold_what_was_appended_however_often_they_were_taken_up(count: int, restarts: set[int]) -> None:
    path = memory("part.jsonl")
    segments = Segments(path)
    for number in range(count):
        if number in restarts:
            segments = Segments(path)
        segments.append(f"{number}\n".encode())
    assert b"".join(file.read_bytes() for file in grown(path)).split() == [b"%d" % n for n in range(count)]


def test_many_segments_become_few() -> None:
    path = memory("part.jsonl")
    segments = Segments(path)
    for number in range(MERGED * MERGED + 1):
        segments.append(f"{number}\n".encode())
    names = [file.name for file in path.parent.iterdir()]
    assert sorted(names) == ["part.00000000-00001023.jsonl", "part.00001024-00001024.jsonl"]


def test_a_merge_that_was_killed_halfway_leaves_nothing_twice() -> None:
    path = memory("part.jsonl")
    for number in range(3):
        create(path.with_name(f"part.{number:08d}-{number:08d}.jsonl"), b"%d\n" % number)
    create(path.with_name("part.00000000-00000001.jsonl"), b"0\n1\n")
    assert b"".join(file.read_bytes() for file in grown(path)) == b"0\n1\n2\n"
    Segments(path).append(b"3\n")
    assert b"".join(file.read_bytes() for file in grown(path)) == b"0\n1\n2\n3\n"


def test_rows_of_segments_do_not_cover_one_another() -> None:
    names = ["a.00000000-00000031.jsonl", "b.00000000-00000000.jsonl", "b.jsonl", "a.00000032-00000032.jsonl"]
    assert sorted(file.name for file in uncovered(map(Path, names))) == sorted(names)


def test_two_that_append_to_one_row_do_not_overwrite_each_other() -> None:
    path = memory("part.jsonl")
    one, other = Segments(path), Segments(path)
    one.append(b"1\n")
    with pytest.raises(CpmiError, match="another process writes here too"):
        other.append(b"2\n")
    assert b"".join(file.read_bytes() for file in grown(path)) == b"1\n"


# --- who may write --------------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one() -> None:
    path = memory("part.lock")
    with Lease(path, Path("part.jsonl")), pytest.raises(InputError, match="another process is writing this part"):
        Lease(path, Path("part.jsonl"))
    with Lease(path, Path("part.jsonl")):
        pass


def test_a_lease_is_renewed_while_it_is_held() -> None:
    path = memory("part.lock")
    with Lease(path, Path("part.jsonl"), seconds=0.4):
        time.sleep(0.8)
        with pytest.raises(InputError, match="another process"):
            Lease(path, Path("part.jsonl"), seconds=0.4)


def test_the_lease_of_a_killed_holder_runs_out_and_a_holder_that_stood_still_writes_no_more() -> None:
    path = memory("part.lock")
    stale = Lease(path, Path("part.jsonl"), seconds=0.6)
    path.write_bytes(json.dumps({"holder": "a process that was killed", "until": time.time() - 1}).encode())
    with Lease(path, Path("part.jsonl"), seconds=60):
        deadline = time.monotonic() + 10
        while not stale.is_lost and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(CpmiError, match="another one has taken over"):
            stale.check()
        stale.close()
        assert path.exists(), "the new holder's lease must outlive the old one"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"until": "soon"}'])
def test_a_lease_that_cannot_be_read_is_taken(content: bytes) -> None:
    path = memory("part.lock")
    path.write_bytes(content)
    with Lease(path, Path("part.jsonl")):
        assert b"holder" in path.read_bytes()


# --- files ----------------------------------------------------------------------------------------------------------

TRAJECTORIES = [Trajectory(f"What is {n} + {n}?", (f"{n} + {n} = {2 * n}.",), str(2 * n)) for n in range(6)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_records_are_written_to_a_store_and_read_from_there(suffix: str) -> None:
    path = memory(f"data.{suffix}")
    assert write_records(path, TRAJECTORIES) == len(TRAJECTORIES)
    assert list(read_trajectories(path)) == TRAJECTORIES


def test_what_goes_wrong_on_the_way_leaves_no_object() -> None:
    def broken() -> Iterator[Trajectory]:
        yield TRAJECTORIES[0]
        raise CpmiError("no more")

    path = memory("data.jsonl")
    with pytest.raises(CpmiError, match="no more"):
        write_records(path, broken())
    assert not path.exists()


def test_broken_lines_in_a_store_are_set_aside_and_nothing_else_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    from cpmi import StepRewards

    run = RunDirectory.create_or_resume(memory("run"), {"shards": 1})
    with Part(run, Shard()) as part:
        part.append([StepRewards("a", (1.0,), "test"), StepRewards("b", (2.0,), "test")])
        part.append([StepRewards("c", (3.0,), "test")])
        part.mark_done()
    first = grown(part.path)[0]
    good, _ = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(good + b"{broken\n" + good + b'{"torn')
    with Part(run, Shard()) as part:
        assert part.ids == {"a", "c"}
        assert not part.is_done
        part.append([StepRewards("b", (2.0,), "test")])
    assert "2 broken lines moved" in caplog.text
    assert sorted(record.trajectory_id for record in read_rewards(run.path)) == ["a", "b", "c"]


# --- whole runs on S3 -----------------------------------------------------------------------------------------------


def cpmi(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cpmi", *arguments], capture_output=True, text=True, check=False)


def lines(run: str | Path) -> dict[str, tuple[float, ...]]:
    return {record.trajectory_id: record.rewards for record in read_rewards(run)}


def test_a_run_on_s3_survives_a_kill_and_equals_one_on_a_disk(s3: str, tmp_path: Path) -> None:
    many = [
        Trajectory(f"What is {n} + {n}?", tuple(f"{n} + {n} = {2 * n}. So far {i}." for i in range(8)), str(2 * n))
        for n in range(60)
    ]
    local = tmp_path / "in.jsonl"
    write_records(local, many)
    write_records(location(f"{s3}/in.jsonl"), many)
    done = cpmi("label", str(local), "--model", "toy:", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    arguments = ["label", f"{s3}/in.jsonl", "--model", "toy:", "--output", f"{s3}/run", "--batch-size", "1"]
    with subprocess.Popen([sys.executable, "-m", "cpmi", *arguments], stderr=subprocess.DEVNULL) as process:
        part = location(f"{s3}/run/part-00000-of-00001.jsonl")
        deadline = time.monotonic() + 120
        while len(grown(part)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
            part.fs.invalidate_cache()  # type: ignore[attr-defined]
        second = cpmi(*arguments)
        assert second.returncode == 2
        assert "another process is writing this part" in second.stderr
        assert second.stderr.count("\n") == 1
        os.kill(process.pid, signal.SIGKILL)
    before = len(lines(f"{s3}/run"))
    assert 3 <= before < len(many), "the kill came too late to show anything"
    lease = location(f"{s3}/run/part-00000-of-00001.lock")
    lease.write_bytes(json.dumps({"holder": "killed", "until": time.time() - 1}).encode())  # instead of waiting for it
    again = cpmi(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"{len(many) - before} labeled, 0 failed, {before} already there" in again.stdout
    assert lines(f"{s3}/run") == lines(tmp_path / "run")
    exported = tmp_path / "flat.jsonl"
    shown = cpmi("export", f"{s3}/run", "--to", "jsonl", "-o", str(exported))
    assert shown.returncode == 0, shown.stderr
    assert len(exported.read_text().splitlines()) >= len(many)


def test_rollouts_on_s3_are_kept(s3: str) -> None:
    write_records(location(f"{s3}/few.jsonl"), TRAJECTORIES)
    arguments = ["--model", "toy:", "--method", "mc", "--rollouts", "2", "--max-tokens", "8", "--output", f"{s3}/mc"]
    done = cpmi("label", f"{s3}/few.jsonl", *arguments)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for file in grown(location(f"{s3}/mc/rollouts-00000-of-00001.jsonl"))
            for line in file.read_bytes().splitlines()]  # fmt: skip
    assert {row["trajectory_id"] for row in kept} <= {each.id for each in TRAJECTORIES}
    assert len(lines(f"{s3}/mc")) == len(TRAJECTORIES)


@pytest.mark.parametrize(
    ("place", "said"),
    [("s3://nowhere/in.jsonl", "no such file"), ("s3://bucket/absent.jsonl", "no such file")],
)
def test_what_is_not_there_is_one_line(s3: str, tmp_path: Path, place: str, said: str) -> None:
    done = cpmi("label", place, "--model", "toy:", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    done = cpmi("label", "s3://bucket/in.jsonl", "--model", "toy:", "--output", str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cpmi: error:" in done.stderr
