"""Runs that are killed, damaged and starved, over and over: do they end as an undisturbed run does?

    python benchmarks/faults.py --faults 100 --seed 0

Real ``cpmi`` processes label (CPMI and Monte Carlo on the toy engine, Monte Carlo on a server) and score (a tiny reward
model), while faults are drawn by the seed. What is drawn is the same for the same seed; where in the work a fault
strikes depends on the machine. After the faults the same command is run to its end, and every record is compared with
that of an undisturbed run, byte for byte but for what it cost. A fault that found nothing to disturb does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpmi import Trajectory, write_records
from cpmi.rollout_file import rollout_lines

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # for the server and the tiny models of the tests

_LONGEST = 600.0  # seconds; a command that takes longer hangs
_SIZE = 48  # MiB of the disk that is filled

# Runs the command with a slow disk: every sync takes so many seconds longer. It is here and not in the product.
_SLOW = """
import os, sys, time
delay, real = float(sys.argv.pop(1)), os.fsync
def slow(descriptor):
    time.sleep(delay)
    real(descriptor)
os.fsync = slow
from cpmi.cli import main
main()
"""


# --- what is disturbed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """A command without its ``--output``.

    Attributes:
        reference: a folder with the undisturbed run.
        server: that it talks to.
    """

    name: str
    arguments: tuple[str, ...]
    reference: Path
    server: Server | None = None

    def command(self, output: Path) -> list[str]:
        return [*self.arguments, "--output", str(output)]


class Server:
    """The fake server of the tests as a process that can be killed, and comes back at the same address."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.start()

    def start(self) -> None:
        if self._process is None:
            command = [sys.executable, str(Path(__file__)), "--serve", str(self._port)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None  # noqa: S101
            self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @property
    def model(self) -> str:
        return f"openai:http://127.0.0.1:{self._port}/v1#tiny"


def serve(port: int) -> None:
    """Answer until killed. Half of the answers are right, so that a rollout that is lost or mixed up shows."""
    from fake_openai import Body, FakeServer, Handler, completions

    def answer(handler: Handler, body: Body) -> bool:
        said = completions(body)
        for choice in said["choices"]:
            question = str(body["prompt"])
            right = re.search(r"What is (\d+)", question)
            number = 2 * int(right[1]) if right else 0
            wrong = sum(question.encode()) + choice["index"]
            choice |= {"text": f"The answer is {number if wrong % 2 else wrong}.", "finish_reason": "stop"}
        time.sleep(0.004)
        handler.send(200, said)
        return True

    server = FakeServer(port)
    server.fault = answer
    print(server.server_port, flush=True)
    server.serve_forever()


def toy_jobs(folder: Path, names: Sequence[str]) -> Iterator[Job]:
    long_steps = tuple(f"step {k}: " + "1234567890 " * 40 for k in range(8))
    short_steps = tuple(f"In step {k} something is done." for k in range(4))
    long, short = folder / "long.jsonl", folder / "short.jsonl"
    write_records(long, [_trajectory(i, long_steps) for i in range(120)])
    write_records(short, [_trajectory(i, short_steps) for i in range(60)])
    sampled = ("--method", "mc", "--rollouts", "4", "--max-tokens", "250")
    toy = ("--model", "toy:", "--batch-size", "2")
    if "cpmi" in names:
        yield Job("cpmi", ("label", str(long), *toy), folder / "cpmi")
    if "mc" in names:
        yield Job("mc", ("label", str(short), *toy, *sampled), folder / "mc")


def server_job(folder: Path, server: Server) -> Job:
    """A server that is gone for longer than the retries may leave records with an error: ``--retry-errors``."""
    steps = tuple(f"In step {k} something is done." for k in range(4))
    file = folder / "served.jsonl"
    write_records(file, [_trajectory(i, steps) for i in range(80)])
    options = [
        each for option in ("retries=3", "first_delay=0.1", "parallel=4") for each in ("--engine-option", option)
    ]
    arguments = ("--model", server.model, "--method", "mc", "--batch-size", "4", "--retry-errors", *options)
    return Job("server", ("label", str(file), *arguments), folder / "server", server)


def score_job(folder: Path) -> Job:
    """One trajectory at a time: what is read together may differ in the last digit."""
    from cpmi.models import ModelSettings
    from cpmi.prm.data import TargetRow
    from cpmi.prm.settings import TrainSettings
    from cpmi.prm.train import train
    from tiny_models import byte_tokenizer, tiny_model

    base, prm, file = folder / "base", folder / "prm", folder / "scored.jsonl"
    tiny_model("llama").save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    rows = [TargetRow(str(i), f"Question {i}", ("Good.", "Bad."), (0.9, 0.1), (None, None), "test") for i in range(8)]
    train(rows, TrainSettings(ModelSettings(str(base), device="cpu"), epochs=1, held_out=0.0), prm)
    steps = tuple(f"Step {k} is done." for k in range(6))
    write_records(file, [_trajectory(i, steps) for i in range(300)])
    return Job(
        "score", ("score", str(file), "--prm", str(prm), "--device", "cpu", "--batch-size", "1"), folder / "score"
    )


def _trajectory(number: int, steps: tuple[str, ...]) -> Trajectory:
    return Trajectory(f"What is {number} + {number}?", steps, str(2 * number), str(2 * number + 1))


@dataclass(slots=True)
class Scene:
    """One run that is disturbed.

    Attributes:
        disk: fills the disk the run is on; None where there is none to fill.
        known: the lines that were in the part when it was last looked at; none of them may be lost.
        doubted: the kind of fault that may make good lines count as broken: one that damaged digests.
        complaints: what should not have happened.
    """

    job: Job
    run: Path
    disk: Disk | None
    finished: bool = False
    known: set[bytes] = field(default_factory=set)
    doubted: str = ""
    labeled_again: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def start(self, slow: float = 0.0, limit: int | None = None) -> subprocess.Popen[str]:
        command = ["-m", "cpmi"] if not slow else ["-c", _SLOW, str(slow)]

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [sys.executable, *command, *self.job.command(self.run)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limited,
        )  # fmt: skip

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for the process; its exit status and its last line."""
        try:
            _, stderr = process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
            self.complaints.append(f"hung: {stderr[-300:]}")
        if "Traceback" in stderr:
            self.complaints.append(f"a traceback: {stderr[-600:]}")
        self.finished = process.returncode == 0
        self._look()
        return process.returncode, (stderr.strip().splitlines() or [""])[-1]

    def _look(self) -> None:
        lines = set(self.lines())
        lost = {line for line in self.known - lines if b'"error":' not in line}  # those are tried again
        if lost and not self.doubted:
            self.complaints.append(f"{len(lost)} lines that were on the disk are gone, for example {lost.pop()[:80]!r}")
        self.labeled_again[self.doubted] += len(lost)
        self.known, self.doubted = lines, ""

    def lines(self) -> list[bytes]:
        """The whole lines of the part."""
        part = self.file("part", ".jsonl")
        content = part.read_bytes() if part.exists() else b""
        return content.splitlines(keepends=True) if content.endswith(b"\n") else content.splitlines(keepends=True)[:-1]

    def file(self, kind: str, suffix: str) -> Path:
        return self.run / ("attempts.jsonl" if kind == "attempts" else f"{kind}-00000-of-00001{suffix}")

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.run.glob("*-of-*.jsonl"))

    def wait_for_work(self, process: subprocess.Popen[str], rng: random.Random) -> bool:
        """Wait for a random moment, mostly soon after it has written something; whether the process is still there."""
        from_start, pause = rng.random() < 0.2, rng.uniform(0, 0.25)
        before, began = self.size(), time.monotonic()
        if from_start:
            pause *= 4
        while not from_start and process.poll() is None and self.size() <= before:
            if time.monotonic() - began > _LONGEST:
                self.complaints.append("wrote nothing")
                break
            time.sleep(0.005)
        time.sleep(pause)
        return process.poll() is None


# --- faults ---------------------------------------------------------------------------------------------------------

Fault = Callable[[Scene, random.Random], bool]
"""Disturbs a run; returns whether there was something to disturb."""


def kill(scene: Scene, rng: random.Random) -> bool:
    return _signaled(scene, rng, signal.SIGKILL, scene.start())


def terminate(scene: Scene, rng: random.Random) -> bool:
    return _signaled(scene, rng, signal.SIGTERM, scene.start())


def slow_disk(scene: Scene, rng: random.Random) -> bool:
    """Syncing takes long, so that the kill comes between two writes that belong together."""
    return _signaled(scene, rng, signal.SIGKILL, scene.start(slow=rng.uniform(0.02, 0.2)))


def _signaled(scene: Scene, rng: random.Random, what: signal.Signals, process: subprocess.Popen[str]) -> bool:
    alive = scene.wait_for_work(process, rng)
    process.send_signal(what)
    status, last = scene.end(process)
    # A process that has not come to its own handler yet is ended by the signal itself.
    if status not in (0, -what, 130):
        scene.complaints.append(f"{what.name}: exit status {status}: {last}")
    return alive and status != 0


def stall(scene: Scene, rng: random.Random) -> bool:
    """The process stands still for a while, wherever it is, as on a file system that hangs."""
    process = scene.start()
    pause, kills = rng.uniform(0.1, 0.6), rng.random() < 0.5
    alive = scene.wait_for_work(process, rng)
    process.send_signal(signal.SIGSTOP)
    time.sleep(pause)
    process.send_signal(signal.SIGCONT)
    if kills:
        process.kill()
    scene.end(process)
    return alive


def full_disk(scene: Scene, rng: random.Random) -> bool:
    """The disk is full, or files may not grow any more, somewhere within the next lines."""
    room = rng.randrange(1, 20_000)
    if scene.disk is None:
        largest = max((path.stat().st_size for path in scene.run.glob("*-of-*.jsonl")), default=0)
        status, last = scene.end(scene.start(limit=largest + room))
    else:
        with scene.disk.filled(room):
            status, last = scene.end(scene.start())
    if status != 0 and not (status == 1 and ("cannot be written" in last or "No space left" in last)):
        scene.complaints.append(f"full disk: exit status {status}: {last}")
    return status != 0


def second_run(scene: Scene, rng: random.Random) -> bool:
    """The same command at the same time: it is refused, and disturbs nothing."""
    first = scene.start(slow=0.05)
    kills = rng.random() < 0.5
    alive = scene.wait_for_work(first, rng)
    second = scene.start()
    _, stderr = second.communicate(timeout=_LONGEST)
    alive = alive and first.poll() is None
    lines = [line for line in stderr.splitlines() if line.startswith("cpmi: ")]
    refused = second.returncode == 2 and len(lines) == 1 and "another process is writing" in lines[0]
    if alive and not refused and second.returncode != -signal.SIGKILL:
        scene.complaints.append(f"a second run was not refused: exit status {second.returncode}: {stderr[-300:]}")
    if kills:
        first.kill()
    scene.end(first)
    return alive


def engine_gone(scene: Scene, rng: random.Random) -> bool:
    """The server dies, and comes back while the run tries again or after it has given up."""
    server = scene.job.server
    assert server is not None, scene.job.name  # noqa: S101
    process = scene.start()
    comes_back, pause = rng.random() < 0.5, rng.uniform(0, 0.4)
    alive = scene.wait_for_work(process, rng)
    server.kill()
    if comes_back:
        time.sleep(pause)
        server.start()
    status, last = scene.end(process)
    server.start()
    if status not in (0, 1, 2):  # 2: it was gone before the run had said hello
        scene.complaints.append(f"server gone: exit status {status}: {last}")
    return alive


def damage(change: Callable[[bytes, random.Random], bytes], *kinds: str) -> Fault:
    """A fault that changes a file between two attempts."""

    def fault(scene: Scene, rng: random.Random) -> bool:
        kind = rng.choice(kinds)
        draws = random.Random(rng.random())
        path = scene.file("part", ".sums") if kind == "sums" else scene.file(kind, ".jsonl")
        content = path.read_bytes() if path.exists() else b""
        if content.count(b"\n") < 2 or (kind == "sums" and scene.doubted):
            return False
        path.write_bytes(change(content, draws))
        if kind == "sums":
            scene.doubted = "?"
        elif kind == "part":
            kept = scene.known & set(scene.lines())
            scene.labeled_again["?"] += len(scene.known) - len(kept)
            scene.known = kept
            if scene.finished and _verify(scene.run) != 1:
                scene.complaints.append("verify did not notice a damaged part")
        return True

    return fault


def _torn(content: bytes, rng: random.Random) -> bytes:
    """Cut within the last line, or a few lines before."""
    start = content[:-1].rfind(b"\n") + 1
    return content[: rng.randrange(start, len(content))]


def _garbage(content: bytes, rng: random.Random) -> bytes:
    place = _line_start(content, rng)
    return content[:place] + rng.randbytes(rng.randrange(1, 200)).replace(b"\n", b"") + b"\n" + content[place:]


def _zeros(content: bytes, rng: random.Random) -> bytes:
    """Blocks that a power cut left empty."""
    place = rng.randrange(len(content))
    length = min(rng.randrange(1, 600), len(content) - place)
    return content[:place] + b"\0" * length + content[place + length :]


def _flip(content: bytes, rng: random.Random) -> bytes:
    """One bit, anywhere: also where the line stays a good one, with another number."""
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _twice(content: bytes, rng: random.Random) -> bytes:
    start = _line_start(content, rng)
    line = content[start : content.index(b"\n", start) + 1]
    place = _line_start(content, rng)
    return content[:place] + line + content[place:]


def _removed(content: bytes, rng: random.Random) -> bytes:
    start = _line_start(content, rng)
    return content[:start] + content[content.index(b"\n", start) + 1 :]


def _line_start(content: bytes, rng: random.Random) -> int:
    return rng.choice([0, *(match.end() for match in re.finditer(b"\n", content[:-1]))])


def not_done(scene: Scene, rng: random.Random) -> bool:
    del rng
    done = scene.file("part", ".done")
    if not done.exists():
        return False
    done.unlink()
    if _verify(scene.run) != 1:
        scene.complaints.append("verify did not notice that a part is not marked as done")
    return True


_AT_THE_END = "mark of being done removed"

ON_PROCESSES: dict[str, Fault] = {
    "SIGKILL": kill,
    "SIGTERM": terminate,
    "slow disk and SIGKILL": slow_disk,
    "process stalled": stall,
    "disk full": full_disk,
    "second run at once": second_run,
    "server gone": engine_gone,
    # Add here: Ray actors killed, a vLLM engine that stops. Each begins by scene.start() and ends by scene.end().
}

ON_FILES: dict[str, Fault] = {
    "last line torn": damage(_torn, "part", "part", "rollouts", "attempts", "sums"),
    "garbage in the middle": damage(_garbage, "part", "part", "rollouts", "attempts", "sums"),
    "zeros in the middle": damage(_zeros, "part", "part", "rollouts", "sums"),
    "a bit flipped": damage(_flip, "part", "part", "rollouts", "sums"),
    "a line twice": damage(_twice, "part", "part", "rollouts"),
    "a line removed": damage(_removed, "part", "part", "rollouts"),
    _AT_THE_END: not_done,
}

# --- the disk -------------------------------------------------------------------------------------------------------


class Disk:
    """A small file system in memory, to be filled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def filled(self, room: int) -> Iterator[None]:
        """But for some bytes (in whole pages)."""
        ballast = self.path / "ballast"
        stat = os.statvfs(self.path)
        with ballast.open("wb") as file:
            file.write(b"\0" * max(0, stat.f_bavail * stat.f_frsize - room))
        try:
            yield
        finally:
            ballast.unlink()


@contextlib.contextmanager
def disk(wanted: str, folder: Path) -> Iterator[Disk | None]:
    """A disk to fill, if it can be had; else files are limited in size (RLIMIT_FSIZE)."""
    path = folder / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}m", "tmpfs", str(path)]
    if wanted == "limit" or (wanted == "auto" and os.geteuid() != 0):
        yield None
        return
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        if wanted == "tmpfs":
            sys.exit(f"no tmpfs: {mounted.stderr.strip()}")
        yield None
        return
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)  # noqa: S607


# --- comparing ------------------------------------------------------------------------------------------------------


def records(run: Path) -> list[tuple[str, bytes]]:
    """The records of a run and their ids, without what they cost."""
    found: list[tuple[str, bytes]] = []
    for part in sorted(run.glob("part-*.jsonl")):
        lines = part.read_bytes().splitlines()
        found += [(json.loads(line)["trajectory_id"], re.sub(rb',"cost":\{[^{}]*\}', b"", line)) for line in lines]
    return found


def rollouts(run: Path) -> list[tuple[str, bytes]]:
    """The same for the rollouts that a run would take up; broken ones stay where no run needs them any more."""
    found = []
    for file in sorted(run.glob("rollouts-*.jsonl")):
        for _, _, line in rollout_lines(file):
            if not isinstance(line, str):
                key, sampled = line
                found.append((repr(key), repr(sampled.completions).encode()))
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a run from an undisturbed one: how many records are lost, there twice, or others."""

    lost: int = 0
    twice: int = 0
    changed: int = 0

    @classmethod
    def of(cls, there: list[tuple[str, bytes]], undisturbed: list[tuple[str, bytes]]) -> Difference:
        wanted, found = dict(undisturbed), dict(there)
        return cls(
            lost=len(wanted.keys() - found.keys()),
            twice=len(there) - len(found),
            changed=sum(wanted.get(name) != record for name, record in there),
        )

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.lost + other.lost, self.twice + other.twice, self.changed + other.changed)


def difference(run: Path, undisturbed: Path) -> Difference:
    found = Difference.of(records(run), records(undisturbed))
    # A rollout that a fault took and nobody needs is not sampled again, and one that is there twice does no harm.
    return found + Difference(changed=Difference.of(rollouts(run), rollouts(undisturbed)).changed)


def _verify(run: Path) -> int:
    return subprocess.run(
        [sys.executable, "-m", "cpmi", "verify", str(run)], capture_output=True, check=False
    ).returncode


# --- the experiment -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """What became of the faults of one kind.

    Attributes:
        drawn: how often it was drawn; ``struck``: how often there was something to disturb.
        alive: of these, how often a process at work.
        labeled_again: records that it destroyed on the disk, and that were labeled a second time.
        lost, twice, changed: records, in the end, of the runs that it struck.
    """

    drawn: int = 0
    struck: int = 0
    alive: int = 0
    labeled_again: int = 0
    lost: int = 0
    twice: int = 0
    changed: int = 0


@dataclass(slots=True)
class Experiment:
    """Faults so far, by kind, and what should not have happened."""

    rows: dict[str, Row]
    runs: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def struck(self) -> int:
        return sum(row.struck for row in self.rows.values())

    @property
    def survived(self) -> bool:
        return not self.complaints and not any(row.lost or row.twice or row.changed for row in self.rows.values())

    def disturb(self, scene: Scene, plan: Sequence[str], seeds: Sequence[int]) -> set[str]:
        """Apply faults one after the other; those that struck."""
        struck = set()
        for kind, seed in zip(plan, seeds, strict=True):
            row = self.rows[kind]
            row.drawn += 1
            on_process = kind in ON_PROCESSES
            if on_process and scene.finished:
                continue
            fault = ON_PROCESSES[kind] if on_process else ON_FILES[kind]
            if fault(scene, random.Random(seed)):
                struck.add(kind)
                row.struck += 1
                row.alive += on_process
            # What was destroyed on the disk is known at once; what damaged digests cost, after the next attempt.
            row.labeled_again += scene.labeled_again.pop("?", 0)
            scene.doubted = kind if scene.doubted == "?" else scene.doubted
            for doubted in self.rows.keys() & scene.labeled_again.keys():
                self.rows[doubted].labeled_again += scene.labeled_again.pop(doubted)
        return struck

    def finish(self, scene: Scene, struck: set[str]) -> None:
        """Run the command to its end, and compare."""
        if scene.job.server is not None:
            scene.job.server.start()
        status, last = scene.end(scene.start())
        if status:
            scene.complaints.append(f"did not go on: exit status {status}: {last}")
        for doubted in self.rows.keys() & scene.labeled_again.keys():
            self.rows[doubted].labeled_again += scene.labeled_again.pop(doubted)
        if (status := _verify(scene.run)) != 0:
            scene.complaints.append(f"verify says {status} in the end")
        found = difference(scene.run, scene.job.reference)
        self.compared += len(records(scene.run))
        for kind in struck:
            row = self.rows[kind]
            row.lost, row.twice, row.changed = (
                row.lost + found.lost,
                row.twice + found.twice,
                row.changed + found.changed,
            )
        if found != Difference():
            scene.complaints.append(f"differs in the end: {found}")


def experiment(
    jobs: Sequence[Job], weights: Sequence[int], faults: int, seed: int, where: Path, full: Disk | None
) -> Experiment:
    """Disturb runs until so many faults have struck."""
    has_server = any(job.server is not None for job in jobs)
    kinds = [kind for kind in (*ON_PROCESSES, *ON_FILES) if has_server or kind != "server gone"]
    done = Experiment({kind: Row() for kind in kinds})
    for number in range(10 * faults):
        if done.struck >= faults:
            break
        rng = random.Random(f"{seed}, {number}")
        job = jobs[number] if number < len(jobs) else rng.choices(jobs, weights)[0]  # each at least once
        plan = rng.choices(*_kinds_before_the_end(job), k=rng.randrange(3, 7))
        after = [rng.choice(list(ON_FILES)) for _ in range(rng.randrange(1, 3))]
        seeds = [rng.randrange(2**32) for _ in range(len(plan) + len(after))]
        scene = Scene(job, where / f"run-{number}", full)
        done.runs[job.name] += 1
        struck = done.disturb(scene, plan, seeds[: len(plan)])
        done.finish(scene, struck)
        struck |= done.disturb(scene, after, seeds[len(plan) :])
        done.finish(scene, struck)
        drawn = f"{job.name}, run {number} ({', '.join([*plan, *after])})"
        done.complaints += [f"{drawn}: {each}" for each in scene.complaints]
        print(f"{done.struck} of {faults} faults, {number + 1} runs", *scene.complaints, sep="; ", file=sys.stderr)
        _remove(scene.run)
    return done


def _kinds_before_the_end(job: Job) -> tuple[list[str], list[int]]:
    """The kinds of faults, and how often each is drawn: mostly those of processes, of a server above all."""
    often = dict.fromkeys(ON_PROCESSES, 3) | dict.fromkeys(ON_FILES, 1) | {"server gone": 8}
    del often[_AT_THE_END]
    if job.server is None:
        del often["server gone"]
    return list(often), list(often.values())


def _remove(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()
    run.rmdir()


def table(done: Experiment) -> str:
    names = ("drawn", "struck", "alive", "labeled again", "lost", "twice", "changed")
    lines = ["| fault | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, row in done.rows.items():
        values = asdict(row)
        alive = values["alive"] if kind in ON_PROCESSES else "-"
        cells = [values["drawn"], values["struck"], alive, values["labeled_again"]]
        lines.append("| " + " | ".join(map(str, [kind, *cells, row.lost, row.twice, row.changed])) + " |")
    return "\n".join(lines)


JOBS = {"cpmi": 4, "mc": 4, "server": 3, "score": 1}  # and how often each is drawn; score loads torch every time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="go on until so many have struck")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS), help="which of cpmi, mc, server, score")
    parser.add_argument("--disk", choices=["auto", "tmpfs", "limit"], default="auto", help="how a disk is filled")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
    names = options.jobs.split(",")
    if unknown := set(names) - set(JOBS):
        parser.error(f"no such jobs: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is unmounted
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        full = opened.enter_context(disk(options.disk, folder))
        jobs = list(toy_jobs(folder, names))
        if "server" in names:
            server = Server()
            opened.callback(server.kill)
            jobs.append(server_job(folder, server))
        if "score" in names:
            jobs.append(score_job(folder))
        for job in jobs:
            command = [sys.executable, "-m", "cpmi", *job.command(job.reference)]
            subprocess.run(command, check=True, capture_output=True)
        began = time.monotonic()
        where = folder / "disk"
        done = experiment(jobs, [JOBS[job.name] for job in jobs], options.faults, options.seed, where, full)
        seconds = time.monotonic() - began
    how = "files limited in size (RLIMIT_FSIZE)" if full is None else f"a tmpfs of {_SIZE} MiB, filled"
    if options.json:
        rows = {kind: asdict(row) for kind, row in done.rows.items()}
        said = {"seed": options.seed, "runs": done.runs, "struck": done.struck, "compared": done.compared, "disk": how}
        print(json.dumps({**said, "faults": rows, "complaints": done.complaints, "survived": done.survived}))
    else:
        print(table(done))
        runs = ", ".join(f"{count} {name}" for name, count in done.runs.items())
        print(
            f"\n{done.struck} faults struck {done.runs.total()} runs ({runs}) in {seconds:.0f} s, seed {options.seed}."
        )
        print(f"Full disk: {how}. {done.compared} records compared with those of undisturbed runs.")
        for each in done.complaints:
            print(f"NOT SURVIVED: {each}")
    sys.exit(not done.survived)


if __name__ == "__main__":
    main()
