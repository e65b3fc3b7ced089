"""Runs that are killed, damaged and starved, over and over: do they end as an undisturbed run does?

    python benchmarks/faults.py --faults 100 --seed 0
    python benchmarks/faults.py --faults 20 --jobs ray
    python benchmarks/faults.py --faults 5 --jobs vllm --python .venv-vllm/bin/python

Real ``cpmi`` processes label (CPMI and Monte Carlo on the toy engine, Monte Carlo on a server; CPMI on a Ray cluster
and on vLLM where that is asked for) and score (a tiny reward model), while faults are drawn by the seed. What is drawn
is the same for the same seed; where in the work a fault strikes depends on the machine. After the faults the same
command is run to its end, and every record is compared with that of an undisturbed run, byte for byte but for what it
cost (rewards of vLLM within a tolerance). After every attempt no process that it has started may be left. A fault that
found nothing to disturb does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cpmi import Trajectory, write_records
from cpmi.rollout_file import rollout_lines

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # for the server and the tiny models of the tests

_LONGEST = 600.0  # seconds; a command that takes longer hangs
_SIZE = 48  # MiB of the disk that is filled
_LEAVING = 30.0  # seconds that processes have to end after the one that started them
_MARK = "CPMI_FAULTS_RUN"  # in the environment of whatever an attempt starts

RAY_FAULTS = ("Ray actor killed", "Ray worker killed", "Ray desk killed", "raylet killed")
VLLM_FAULTS = ("vLLM engine killed",)

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
        own: kinds of faults that strike this job alone.
        python: that has what it needs.
        environment: more of it.
        tolerance: of a reward; 0: records are the same bytes.
        may_leave: names of processes that are known to outlive a command that was killed.
    """

    name: str
    arguments: tuple[str, ...]
    reference: Path
    server: Server | None = None
    own: tuple[str, ...] = ()
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 0.0
    may_leave: tuple[str, ...] = ()

    def command(self, output: Path) -> list[str]:
        return [*self.arguments, "--output", str(output)]

    def surroundings(self, mark: Path) -> dict[str, str]:
        """The environment of an attempt."""
        return {**os.environ, **self.environment, _MARK: str(mark)}


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
        yield Job("cpmi", ("label", str(long), *toy, "--method", "cpmi"), folder / "cpmi")
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
    return Job("server", ("label", str(file), *arguments), folder / "server", server, ("server gone",))


def ray_job(folder: Path) -> Job:
    """A cluster of this machine, started and ended with each attempt; what Ray writes goes away with the folder."""
    steps = tuple(f"step {k}: " + "1234567890 " * 40 for k in range(8))
    file = folder / "on-ray.jsonl"
    write_records(file, [_trajectory(i, steps) for i in range(100)])
    arguments = ("--model", "toy:", "--method", "cpmi", "--batch-size", "2", "--ray", "local", "--ray-actors", "2")
    return Job(
        "ray",
        ("label", str(file), *arguments, "--ray-option", "num_cpus=0.5"),
        folder / "ray-reference",
        own=RAY_FAULTS,
        environment={"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
        may_leave=tuple(before + name for before in ("", "ray::") for name in ("RuntimeEnvAgent", "DashboardAgent")),
    )


def vllm_job(folder: Path, python: str, model: str) -> Job:
    """Scores, not samples: vLLM's random numbers depend on what else is in a batch.

    The engine is in a process of its own, as on a GPU; on CPU cpmi would have it in the process of the command.
    """
    steps = ("In step 0 something is done.", "In step 1 something else is done.")
    file = folder / "vllm.jsonl"
    write_records(file, [_trajectory(i, steps) for i in range(16)])
    options = ("enforce_eager=true", "max_model_len=512", "kv_cache_memory_bytes=268435456")
    arguments = ("--model", model, "--method", "cpmi", "--dtype", "float32", "--batch-size", "1")
    engine = [each for option in options for each in ("--engine-option", option)]
    return Job(
        "vllm",
        ("label", str(file), *arguments, *engine),
        folder / "vllm",
        own=VLLM_FAULTS,
        python=python,
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        tolerance=1e-3,
        may_leave=("VLLM::", "python"),  # of an engine that is just starting, nothing has its name yet
    )


def why_not(name: str, python: str, model: str) -> str:
    """Why a job cannot be run here; empty if it can."""
    if name == "ray" and importlib.util.find_spec("ray") is None:
        return "Ray is not installed here: pip install 'cpmi[ray]'"
    if name == "vllm":
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        if not Path(python).is_file() or subprocess.run([python, "-c", code], check=False).returncode:
            return f"{python} has no vLLM: make vllm-env, and --python .venv-vllm/bin/python"
        if not (Path(model.removeprefix("vllm:")) / "config.json").is_file():
            return f"no model at {model}: name the folder of one with --model vllm:PATH (make test-vllm brings one)"
    return ""


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
        relatives: the processes that the latest attempt had started when a fault struck.
        left: how many processes were left of those that may be, and were ended here.
        wordless: how often Ray ended the command itself, without a line of ours.
        known: the lines that were in the part when it was last looked at; none of them may be lost.
        doubted: the kind of fault that may make good lines count as broken: one that damaged digests.
        complaints: what should not have happened.
    """

    job: Job
    run: Path
    disk: Disk | None
    finished: bool = False
    relatives: list[psutil.Process] = field(default_factory=list)
    left: int = 0
    wordless: int = 0
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
            [self.job.python, *command, *self.job.command(self.run)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limited,
            env=self.job.surroundings(self.run),
        )  # fmt: skip

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for the process; its exit status and its last line."""
        stderr = self.output(process)
        self._see_them_leave()
        if "Traceback" in stderr:
            self.complaints.append(f"a traceback: {stderr[-600:]}")
        self.finished = process.returncode == 0
        self._look()
        lines = stderr.strip().splitlines() or [""]
        own = [line for line in lines if line.startswith("cpmi: ")]  # others may write behind it, as Python itself does
        return process.returncode, (own or lines)[-1]

    def output(self, process: subprocess.Popen[str]) -> str:
        """Wait for the process; what it wrote to standard error."""
        began, hung = time.monotonic(), False
        while True:
            try:
                _, stderr = process.communicate(timeout=1.0)
            except subprocess.TimeoutExpired:
                if process.poll() is not None:
                    self._see_them_leave()  # they hold its standard error
                elif time.monotonic() - began > _LONGEST:
                    hung = True
                    process.kill()
            else:
                break
        if hung:
            self.complaints.append(f"hung: {stderr[-300:]}")
        return stderr

    def _see_them_leave(self) -> None:
        """Whatever an attempt has started ends with it; what does not is ended here, and is a complaint."""
        deadline = time.monotonic() + _LEAVING
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                name = _title(process)
                process.kill()
                if name.startswith(self.job.may_leave or ("/",)):
                    self.left += 1
                else:
                    self.complaints.append(f"left a process behind: {name}")

    def _left(self) -> list[psutil.Process]:
        """By their environment, and by their ancestors, since some write their titles over their environment."""
        found = {process for process in self.relatives if _alive(process)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                if process.environ().get(_MARK) == str(self.run) and _alive(process):
                    found.add(process)
        return list(found)

    def offspring(self, process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> list[psutil.Process]:
        """Those that the process has started, and that have such a title."""
        try:
            self.relatives = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            self.relatives = []
        return [each for each in self.relatives if wanted(_title(each))]

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

    def wait_for_work(self, process: subprocess.Popen[str], rng: random.Random, *, early: bool = True) -> bool:
        """Wait for a random moment, mostly soon after it has written something; whether the process is still there.

        Args:
            early: it may also be one before that.
        """
        from_start, pause = rng.random() < 0.2 and early, rng.uniform(0, 0.25)
        before, began = self.size(), time.monotonic()
        if from_start:
            pause *= 4
        while not from_start and process.poll() is None and self.size() <= before:
            if time.monotonic() - began > _LONGEST:
                self.complaints.append("wrote nothing")
                break
            time.sleep(0.005)
        time.sleep(pause)
        self.offspring(process, bool)
        return process.poll() is None


def _title(process: psutil.Process) -> str:
    """What it calls itself; empty if it has ended."""
    try:
        return Path((process.cmdline() or [process.name()])[0].split(" ")[0]).name
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
    if scene.disk is None and scene.job.own in (RAY_FAULTS, VLLM_FAULTS):
        return False  # the limit would be one of their files as well
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
    scene.offspring(first, bool)
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


def kill_of(wanted: Callable[[str], bool], *, ends: bool) -> Fault:
    """SIGKILL for a process that the command has started, and, half of the time, for the command soon after.

    Args:
        ends: the run may end with a line; else it goes on by itself.
    """

    def fault(scene: Scene, rng: random.Random) -> bool:
        process = scene.start()
        draws, kills, pause = random.Random(rng.random()), rng.random() < 0.5, rng.uniform(0, 1.0)
        alive = scene.wait_for_work(process, rng, early=False)
        victims = sorted(scene.offspring(process, wanted), key=lambda each: each.pid)
        if alive and victims:
            victim = draws.choice(victims)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        if kills:
            time.sleep(pause)
            process.kill()
        status, last = scene.end(process)
        expected = status == 0 or (kills and status == -signal.SIGKILL) or (ends and status == 1)
        if expected and status == 1 and not last.startswith(("cpmi: ", "Ray")):
            scene.wordless += 1  # Ray's own library ends the process whose raylet is gone, from C++
        if not expected:
            scene.complaints.append(f"a process of its own killed: exit status {status}: {last}")
        return alive and bool(victims)

    return fault


def _is_actor(title: str) -> bool:
    return title.startswith("ray::MapWorker")


def _is_desk(title: str) -> bool:
    return title.startswith("ray::Desk")


def _is_other_worker(title: str) -> bool:
    """One that reads the input, or waits for something to do."""
    return title.startswith("ray::") and not _is_actor(title) and not _is_desk(title)


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
    "Ray actor killed": kill_of(_is_actor, ends=False),
    "Ray worker killed": kill_of(_is_other_worker, ends=False),
    "Ray desk killed": kill_of(_is_desk, ends=True),
    "raylet killed": kill_of(lambda title: title == "raylet", ends=True),
    "vLLM engine killed": kill_of(lambda title: title.startswith("VLLM::EngineCore"), ends=True),
}

_OWN = {"server gone": 8} | dict.fromkeys(RAY_FAULTS, 6) | dict.fromkeys(VLLM_FAULTS, 24)
"""How often faults are drawn that strike one job alone; others are drawn three times, or once."""

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
    def of(
        cls, there: list[tuple[str, bytes]], undisturbed: list[tuple[str, bytes]], tolerance: float = 0.0
    ) -> Difference:
        """Tolerance: of each reward; 0: the same bytes."""
        wanted, found = dict(undisturbed), dict(there)
        return cls(
            lost=len(wanted.keys() - found.keys()),
            twice=len(there) - len(found),
            changed=sum(not same(wanted.get(name), record, tolerance) for name, record in there),
        )

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.lost + other.lost, self.twice + other.twice, self.changed + other.changed)


def same(wanted: bytes | None, record: bytes, tolerance: float) -> bool:
    if not tolerance or wanted is None:
        return wanted == record
    one, other = json.loads(wanted), json.loads(record)
    if one.get("error") != other.get("error") or len(one["rewards"]) != len(other["rewards"]):
        return False
    return all(abs(a - b) <= tolerance for a, b in zip(one["rewards"], other["rewards"], strict=True))


def difference(run: Path, undisturbed: Path, tolerance: float = 0.0) -> Difference:
    found = Difference.of(records(run), records(undisturbed), tolerance)
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
    left: int = 0
    wordless: int = 0
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
        found = difference(scene.run, scene.job.reference, scene.job.tolerance)
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
    possible = {kind for job in jobs for kind in job.own}
    kinds = [kind for kind in (*ON_PROCESSES, *ON_FILES) if kind not in _OWN or kind in possible]
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
        done.left += scene.left
        done.wordless += scene.wordless
        done.complaints += [f"{drawn}: {each}" for each in scene.complaints]
        print(f"{done.struck} of {faults} faults, {number + 1} runs", *scene.complaints, sep="; ", file=sys.stderr)
        _remove(scene.run)
    return done


def _kinds_before_the_end(job: Job) -> tuple[list[str], list[int]]:
    """The kinds of faults, and how often each is drawn: mostly those of processes, of a server above all."""
    often = dict.fromkeys(ON_PROCESSES, 3) | dict.fromkeys(ON_FILES, 1) | _OWN
    del often[_AT_THE_END]
    for kind in _OWN.keys() - set(job.own):
        del often[kind]
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
ASKED_FOR = {"ray": 1, "vllm": 1}  # they take long to start
MODEL = f"vllm:{Path.home() / '.cache' / 'cpmi-models' / 'smollm2-135m'}"


def possible(names: Sequence[str], python: str, model: str) -> list[str]:
    """The jobs that can be run here; says why others cannot."""
    reasons = {name: why for name in names if (why := why_not(name, python, model))}
    for name, why in reasons.items():
        print(f"{name} is skipped: {why}", file=sys.stderr)
    if len(reasons) == len(names):
        sys.exit("nothing is left to do")
    return [name for name in names if name not in reasons]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="go on until so many have struck")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS), help="which of cpmi, mc, server, score; ray, vllm")
    parser.add_argument("--python", default=sys.executable, help="for the job vllm: one that has vLLM and cpmi")
    parser.add_argument("--model", default=MODEL, help="for the job vllm: vllm:PATH of a small model")
    parser.add_argument("--disk", choices=["auto", "tmpfs", "limit"], default="auto", help="how a disk is filled")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
    names = options.jobs.split(",")
    if unknown := set(names) - {*JOBS, *ASKED_FOR}:
        parser.error(f"no such jobs: {', '.join(sorted(unknown))}")
    names = possible(names, options.python, options.model)
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
        if "ray" in names:
            jobs.append(ray_job(folder))
        if "vllm" in names:
            jobs.append(vllm_job(folder, str(Path(options.python).absolute()), options.model))
        for job in jobs:
            command = [job.python, "-m", "cpmi", *job.command(job.reference)]
            surroundings = job.surroundings(job.reference)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=surroundings)
        began = time.monotonic()
        where = folder / "disk"
        weights = [(JOBS | ASKED_FOR)[job.name] for job in jobs]
        done = experiment(jobs, weights, options.faults, options.seed, where, full)
        seconds = time.monotonic() - began
    how = "files limited in size (RLIMIT_FSIZE)" if full is None else f"a tmpfs of {_SIZE} MiB, filled"
    if options.json:
        rows = {kind: asdict(row) for kind, row in done.rows.items()}
        said = {
            "seed": options.seed,
            "runs": done.runs,
            "struck": done.struck,
            "compared": done.compared,
            "disk": how,
            "left": done.left,
            "wordless": done.wordless,
        }
        print(json.dumps({**said, "faults": rows, "complaints": done.complaints, "survived": done.survived}))
    else:
        print(table(done))
        runs = ", ".join(f"{count} {name}" for name, count in done.runs.items())
        print(
            f"\n{done.struck} faults struck {done.runs.total()} runs ({runs}) in {seconds:.0f} s, seed {options.seed}."
        )
        print(f"Full disk: {how}. {done.compared} records compared with those of undisturbed runs.")
        if done.left:
            print(
                f"{done.left} processes of an engine or of Ray (agents) outlived a command that was killed; ended here."
            )
        if done.wordless:
            print(f"{done.wordless} times Ray ended the command with status 1 and no line, for want of its raylet.")
        for each in done.complaints:
            print(f"NOT SURVIVED: {each}")
    sys.exit(not done.survived)


if __name__ == "__main__":
    main()
