"""``cpmi verify``: what is missing or broken is said, what is sound is not called broken, and nothing is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpmi import InputError, ModelSettings, Trajectory, write_records
from cpmi.labelers.monte_carlo import MonteCarloSettings
from cpmi.labelers.rollouts import RolloutSettings
from cpmi.labeling import LabelJob, MethodSettings, OutcomeSettings, label
from cpmi.parts import Part
from cpmi.protocols import SamplingParams
from cpmi.runs import RunDirectory, Shard
from cpmi.verify import Verification, verify

RunCpmi = Callable[..., tuple[int, str, str]]
PART = "part-00000-of-00001"
MC = MonteCarloSettings(RolloutSettings(n=1, sampling=SamplingParams(max_tokens=3)))


def some(count: int) -> list[Trajectory]:
    return [Trajectory(f"What is {i} + {i}?", ("One.", "Two."), str(2 * i), str(i), id=f"t{i}") for i in range(count)]


def labeled(folder: Path, shard: Shard = Shard(), limit: int | None = None, settings: MethodSettings = MC) -> Path:
    if not (folder / "t.jsonl").exists():
        write_records(folder / "t.jsonl", some(9))
    model = ModelSettings("toy:") if settings == MC else None
    label(LabelJob(folder / "t.jsonl", folder / "run", model, settings, shard=shard, limit=limit))
    return folder / "run"


def content(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def replace(path: Path, number: int, line: bytes) -> None:
    """Put this in the place of a line (counted from 1)."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[: number - 1], line, *lines[number:]]))


def test_a_finished_run_is_sound_and_untouched(tmp_path: Path) -> None:
    run = labeled(tmp_path)
    before = content(run)
    assert verify(run) == Verification(run, "mc", False, 9, 9, 0, 0, (), (), 0, (), "")
    assert verify(run).is_sound
    assert content(run) == before


def test_a_run_that_was_stopped_is_not_finished(tmp_path: Path) -> None:
    found = verify(labeled(tmp_path, limit=3))
    assert (found.rewarded, found.missing, found.first_missing) == (3, 6, ("t3", "t4", "t5", "t6", "t7"))
    assert found.problems == (f"{PART}.jsonl: not finished",)
    assert found.advice == "run the same cpmi label command again"
    assert not found.is_sound


def test_parts_that_nobody_began_are_named(tmp_path: Path) -> None:
    run = labeled(tmp_path, Shard(1, 3))
    here = [t.id for t in some(9) if Shard(1, 3).holds(t.id)]
    found = verify(run)
    assert (found.rewarded, found.missing) == (len(here), 9 - len(here))
    assert found.problems == ("part-00000-of-00003.jsonl: not begun", "part-00002-of-00003.jsonl: not begun")
    for index in (0, 2):
        labeled(tmp_path, Shard(index, 3))
    assert verify(run).is_sound


BROKEN = {
    "broken JSON": (b"{\n", "broken JSON"),
    "not UTF-8": (b'{"\xff"}\n', "byte 3 is not UTF-8"),
    "zeros": (b"\0\0\0\n", "broken JSON"),
    "another record": (b'{"question":"Q"}\n', "unknown field 'question'"),
    "changed": (b'{"trajectory_id":"t1","rewards":[0.5,0.5],"source":"mc"}\n', "not as it was written"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_lines_are_named_and_a_repair_mends_them(kind: str, tmp_path: Path) -> None:
    run = labeled(tmp_path)
    line, problem = BROKEN[kind]
    replace(run / f"{PART}.jsonl", 2, line)
    found = verify(run)
    assert (found.rewarded, found.missing, found.first_missing) == (8, 1, ("t1",))
    assert found.problems[0].startswith(f"{PART}.jsonl, line 2: {problem}")
    assert found.problems[1:] == (f"{PART}.jsonl: marked as done, and not all of its trajectories are there",)
    labeled(tmp_path)
    found = verify(run)
    assert found.is_sound
    assert found.notes == (f"{PART}.broken: 1 broken line, set aside by an earlier repair",)


def test_a_line_that_is_twice_torn_or_of_another_part(tmp_path: Path) -> None:
    for index in range(2):
        run = labeled(tmp_path, Shard(index, 2))
    first, second = (run / f"{Shard(index, 2).name}.jsonl" for index in range(2))
    first.with_suffix(".sums").unlink()
    lines = first.read_bytes().splitlines(keepends=True)
    stray = second.read_bytes().splitlines(keepends=True)[0]
    first.write_bytes(b"".join([*lines, lines[0], stray, b'{"traj']))
    found = verify(run)
    name, n = first.name, len(lines)
    assert found.rewarded == 9
    assert [problem.partition(": ")[0] for problem in found.problems] == [f"{name}, line {n + i}" for i in (1, 2, 3)]
    assert "is there twice" in found.problems[0]
    assert "belongs to another part" in found.problems[1]
    assert "torn by a kill" in found.problems[2]
    assert found.notes == (f"{name}: has no digests, so that a line that was changed cannot be told",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"trajectory_id":"t99","rewards":[],"source":"mc"}\n', "the trajectories have no 't99'"),
        (b'{"trajectory_id":"t1","rewards":[0.5],"source":"mc"}\n', "1 rewards for the 2 steps of 't1'"),
    ],
)
def test_records_of_something_else_are_for_the_user_to_remove(line: bytes, problem: str, tmp_path: Path) -> None:
    run = labeled(tmp_path)
    (run / f"{PART}.sums").unlink()  # else they would be told as lines that were changed
    replace(run / f"{PART}.jsonl", 2, line)
    found = verify(run)
    assert found.problems[0] == f"{PART}.jsonl, line 2: {problem}"
    assert found.advice == f"remove {PART}.jsonl, line 2, then run the same cpmi label command again"
    assert found.missing == 1


def test_many_problems_are_counted(tmp_path: Path) -> None:
    run = labeled(tmp_path)
    part = run / f"{PART}.jsonl"
    part.write_bytes(b"{\n" * 1000 + part.read_bytes())
    found = verify(run)
    assert (found.rewarded, found.problem_count, len(found.problems)) == (9, 1000, 20)


def test_a_run_that_is_being_written_is_under_way(tmp_path: Path) -> None:
    run = labeled(tmp_path, limit=3)
    part = run / f"{PART}.jsonl"
    with Part(RunDirectory.open(run), Shard()):
        part.write_bytes(part.read_bytes() + b'{"traj')
        found = verify(run)
        assert (found.under_way, found.problems, found.missing) == (True, (), 6)
        assert found.advice == "wait for the process that writes it"
        assert not found.is_sound
    assert len(verify(run).problems) == 2  # torn, and not finished


def test_without_the_trajectories_it_counts(tmp_path: Path) -> None:
    run = labeled(tmp_path)
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "t.jsonl").rename(moved)
    found = verify(run)
    assert (found.rewarded, found.missing, found.is_sound) == (9, 0, True)
    assert "no longer at" in found.notes[0]
    assert verify(run, moved).notes == ()
    replace(run / f"{PART}.jsonl", 2, b"")
    assert (verify(run).missing, verify(run).first_missing) == (1, ())
    assert verify(run, moved).first_missing == ("t1",)
    write_records(tmp_path / "t.jsonl", some(4))
    assert "has changed since the run began" in verify(run).notes[0]


def test_failures_are_counted_and_are_not_broken(tmp_path: Path) -> None:
    write_records(tmp_path / "t.jsonl", [*some(2), Trajectory("Q", (), "1", id="none")])
    found = verify(labeled(tmp_path))
    assert (found.rewarded, found.failed, found.is_sound) == (2, 1, True)
    assert "--retry-errors" in found.advice


def test_rollouts_are_broken_only_where_they_are_needed(tmp_path: Path) -> None:
    run = labeled(tmp_path)
    rollouts = run / "rollouts-00000-of-00001.jsonl"
    replace(rollouts, 1, b"{}\n")
    found = verify(run)
    assert found.is_sound
    assert found.notes[0].startswith(f"{rollouts.name}, line 1: no line of rollouts")
    (run / f"{PART}.done").unlink()
    assert verify(run).problems[1].startswith(f"{rollouts.name}, line 1: no line of rollouts")


def test_how_the_last_attempt_ended(tmp_path: Path) -> None:
    run = labeled(tmp_path, settings=OutcomeSettings())
    diary = run / "attempts.jsonl"
    start, end = diary.read_text().splitlines(keepends=True)
    diary.write_text(start)
    assert "has no end: it was killed" in verify(run).notes[0]
    stopped = json.dumps(json.loads(end) | {"stopped": "CpmiError", "reason": "full"})
    diary.write_text(start + "torn" + "\n" + stopped + "\n")
    assert verify(run).notes[0] == "attempts.jsonl: 1 broken line; nothing depends on that"
    assert verify(run).notes[1].endswith("was stopped by CpmiError (full)")
    assert verify(run).is_sound


def test_what_is_no_run(tmp_path: Path) -> None:
    run = labeled(tmp_path)
    for path in (tmp_path / "absent", tmp_path, tmp_path / "t.jsonl"):
        with pytest.raises(InputError, match="not a run directory"):
            verify(path)
    for manifest, problem in (("{", "broken"), ('{"format": 99}', "not a manifest"), ("[]", "not a manifest")):
        (run / "manifest.json").write_text(manifest)
        found = verify(run)
        assert (found.problem_count, found.is_sound) == (1, False)
        assert problem in found.problems[0]
        assert "restore manifest.json" in found.advice


def test_parts_of_another_count_are_strays(tmp_path: Path) -> None:
    run = labeled(tmp_path)
    (run / "part-00000-of-00007.jsonl").write_bytes(b"")
    assert verify(run).problems == ("part-00000-of-00007.jsonl: no part of this run of 1",)


def test_the_command_says_it_in_lines_or_json(tmp_path: Path, run_cpmi: RunCpmi) -> None:
    run = labeled(tmp_path)
    assert run_cpmi("verify", str(run)) == (0, f"{run} (mc): 9 of 9 done; complete and sound\n", "")
    replace(run / f"{PART}.jsonl", 2, b"")
    status, out, _ = run_cpmi("verify", str(run))
    assert status == 1
    assert out.splitlines() == [
        f"{run} (mc): 8 of 9 done, 1 missing, 1 problem; not complete and sound",
        f"  {PART}.jsonl: marked as done, and not all of its trajectories are there",
        "  missing: t1",
        "  what to do: run the same cpmi label command again",
    ]
    status, out, _ = run_cpmi("verify", str(run), "--json")
    assert status == 1
    said = json.loads(out)
    assert (said["missing"], said["first_missing"], said["sound"], said["path"]) == (1, ["t1"], False, str(run))
    status, out, err = run_cpmi("verify", str(tmp_path))
    assert (status, out) == (2, "")
    assert err.startswith(f"cpmi: error: {tmp_path}: not a run directory")


# --- candidates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def candidates(tmp_path: Path, run_cpmi: RunCpmi) -> Path:
    write_records(tmp_path / "q.jsonl", [Trajectory(f"What is {i}?", (), str(i), id=f"q{i}") for i in range(3)])
    output = tmp_path / "out.jsonl"
    question, to = str(tmp_path / "q.jsonl"), str(output)
    status, _, err = run_cpmi("solve", question, "--model", "toy:", "--n", "2", "--max-tokens", "3", "-o", to)
    assert status == 0, err
    return output


def test_candidates_are_checked_too(candidates: Path) -> None:
    found = verify(candidates)
    assert (found.total, found.rewarded, found.missing, found.problems, found.is_sound) == (3, 3, 0, (), True)


def test_candidates_that_are_gone_or_broken(candidates: Path) -> None:
    whole = candidates.read_bytes()
    replace(candidates, 3, b"")
    found = verify(candidates)
    assert (found.rewarded, found.missing, found.first_missing) == (2, 1, ("q1",))
    assert found.advice == "run the same cpmi solve command again"
    candidates.write_bytes(whole)
    replace(candidates, 3, b"{\n")
    found = verify(candidates)
    assert found.problems[0].startswith("out.jsonl, line 3: broken JSON")
    assert found.advice == "remove out.jsonl, line 3, then run the same cpmi solve command again"
    candidates.write_bytes(whole + whole.splitlines(keepends=True)[0])
    assert "is there twice" in verify(candidates).problems[0]
    candidates.write_bytes(whole)
    questions = candidates.with_name("out.jsonl.run") / "questions.jsonl"
    replace(questions, 2, b"")
    found = verify(candidates)
    assert (found.rewarded, found.missing) == (2, 1)
    assert found.problems == ("out.jsonl: 2 candidates of questions that are not done, left by a kill",)
