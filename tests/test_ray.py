"""Runs on Ray: a real cluster of several raylets on this machine, with actors, nodes and drivers that die."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from cpmi import CpmiError, InputError, StepRewards, Trajectory, read_rewards, write_records
from cpmi.labelers.cpmi import CPMISettings
from cpmi.labelers.monte_carlo import MonteCarloSettings
from cpmi.labelers.negatives import NegativeSettings, SiblingAnswers
from cpmi.labelers.rollouts import RolloutSettings, RolloutStore
from cpmi.labeling import LabelJob, _open_rewarder, label
from cpmi.models import ModelSettings
from cpmi.prm.data import TargetRow
from cpmi.prm.settings import TrainSettings
from cpmi.prm.train import train
from cpmi.protocols import SamplingParams
from cpmi.ray_runs import Plan, RayRun, RaySettings, Worker
from cpmi.running import Progress
from cpmi.runs import Shard
from cpmi.storage import location
from cpmi.verify import verify

ray = pytest.importorskip("ray", reason="Ray is not installed here; run: make test-ray")

pytestmark = [
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),  # Ray's own, of its own settings
]

long = pytest.mark.ray  # all but a few that stand for the others in make test

TOY = ModelSettings("toy:")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two nodes of two CPUs (a label: this machine may have fewer)."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ[MARK] = str(os.getpid())
    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(2):
        cluster.add_node(num_cpus=2, **small)
    try:
        assert len(of_ray()) >= 4  # a gcs_server and three raylets, which the look at what is left over would find
        yield cluster
    finally:
        cluster.shutdown()
        del os.environ[MARK]
        deadline = time.monotonic() + 10
        while (left := of_ray()) and time.monotonic() < deadline:  # workers follow their raylet in a moment
            time.sleep(0.1)
        assert not left, "processes of Ray are left over"


MARK = "CPMI_TEST_RAY"
"""In the environment of whatever the cluster starts: a process that its parent left behind is no child of ours."""


def of_ray() -> list[psutil.Process]:
    """What Ray has started for these tests: raylets, gcs_server, workers."""
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            name = Path((process.cmdline() or [""])[0]).name
            is_ray = name.startswith(("ray::", "raylet", "gcs_server"))
            if is_ray and (process.pid in ours or process.environ().get(MARK) == str(os.getpid())):
                found.append(process)
    return found


def workers(name: str) -> list[psutil.Process]:
    """The actors of a class."""
    found = []
    for process in of_ray():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if (process.cmdline() or [""])[0].startswith(f"ray::{name}"):
                found.append(process)
    return found


def some(n: int, length: int = 10) -> list[Trajectory]:
    steps = tuple(f"step {k}: " + "1234567890 " * length for k in range(3))
    return [Trajectory(f"What is {i} + {i}?", steps, str(2 * i), str(2 * i + 1), id=f"t{i}") for i in range(n)]


def written(path: Path, trajectories: Sequence[Trajectory]) -> Path:
    write_records(path, trajectories)
    return path


def on(cluster: Any, actors: int = 2, **more: Any) -> RaySettings:
    return RaySettings(cluster.address, (actors, actors), **more)


def content(run: Path) -> list[str]:
    """Everything of a run's records but what they cost, in one order."""
    return sorted(
        json.dumps([r.trajectory_id, r.rewards, r.terms, r.details, r.source, r.error]) for r in read_rewards(run)
    )


def once(action: Callable[[], None]) -> Callable[[Progress], None]:
    """An ``on_progress`` that acts when the first trajectories are done."""
    acted: list[bool] = []

    def update(progress: Progress) -> None:
        if progress.done and not acted:
            acted.append(True)
            action()

    return update


def test_the_records_are_those_of_a_plain_run(cluster: Any, tmp_path: Path) -> None:
    trajectories = [*some(40), Trajectory("No steps?", (), "1", id="empty")]
    file = written(tmp_path / "t.jsonl", trajectories)
    label(LabelJob(file, tmp_path / "plain", TOY))
    progress = label(LabelJob(file, tmp_path / "ray", TOY, ray=on(cluster)))
    assert content(tmp_path / "ray") == content(tmp_path / "plain")
    assert (progress.rewarded, progress.failed, progress.total) == (40, 1, 41)
    plain, ray = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "ray"))
    assert plain | {"created": ""} == ray | {"created": ""}
    assert (tmp_path / "ray" / "part-00000-of-00001.done").exists()
    # One begun by one is gone on with by the other.
    again = label(LabelJob(file, tmp_path / "ray", TOY))
    assert (again.before, again.rewarded) == (41, 0)


@long
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_limits_shards_and_resumes_give_each_trajectory_once(cluster: Any, tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path / f"t{suffix}", some(30))
    run = tmp_path / "run"
    for index in range(2):
        shard = Shard(index, 2)
        first = label(LabelJob(file, run, TOY, shard=shard, limit=11, batch_size=2, ray=on(cluster)))
        assert first.done == first.total == sum(shard.holds(f"t{i}") for i in range(11))
        assert not (run / f"{shard.name}.done").exists()
        second = label(LabelJob(file, run, TOY, shard=shard, batch_size=2, ray=on(cluster)))
        assert second.before == first.total
        assert (run / f"{shard.name}.done").exists()
    assert sorted(r.trajectory_id for r in read_rewards(run)) == sorted(f"t{i}" for i in range(30))


def test_a_killed_actor_costs_its_batch_and_nothing_else(cluster: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(60, 60))
    killed: list[int] = []

    def kill() -> None:
        victim = workers("MapWorker")[0]
        victim.kill()
        killed.append(victim.pid)

    label(LabelJob(file, tmp_path / "plain", TOY))
    label(LabelJob(file, tmp_path / "ray", TOY, batch_size=2, ray=on(cluster)), once(kill))
    assert killed
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


@long
def test_nodes_come_and_go(cluster: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(80, 60))
    doomed = cluster.add_node(num_cpus=2, resources={"spot": 2}, object_store_memory=80 * 2**20)

    added: list[Any] = []

    def change() -> None:
        added.append(cluster.add_node(num_cpus=2, resources={"spot": 2}, object_store_memory=80 * 2**20))
        cluster.remove_node(doomed, allow_graceful=False)

    label(LabelJob(file, tmp_path / "plain", TOY))
    settings = on(cluster, options={"resources": {"spot": 1}})
    try:
        label(LabelJob(file, tmp_path / "ray", TOY, batch_size=2, ray=settings), once(change))
    finally:
        for node in added:
            cluster.remove_node(node)
    assert added
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


@long
def test_negatives_of_siblings_are_those_of_a_plain_run(cluster: Any, tmp_path: Path) -> None:
    """A trajectory's siblings are in other batches, and with other actors."""
    trajectories = [
        Trajectory(f"What is {i % 4} + 1?", ("so it is",), str(i % 4 + 1), str(5 + i // 4), id=f"t{i}")
        for i in range(20)
    ]
    file = written(tmp_path / "t.jsonl", trajectories)
    settings = CPMISettings(negatives=NegativeSettings(choices=((("sibling", None),),)))
    label(LabelJob(file, tmp_path / "plain", TOY, settings))
    progress = label(LabelJob(file, tmp_path / "ray", TOY, settings, batch_size=2, ray=on(cluster)))
    assert content(tmp_path / "ray") == content(tmp_path / "plain")
    assert (progress.rewarded, progress.failed) == (20, 0)
    assert all(record.details["kinds"] == ["gold", *["sibling"] * 4] for record in read_rewards(tmp_path / "ray"))


@long
def test_a_reward_model_scores_as_in_a_plain_run(
    cluster: Any, tiny_base: Path, tmp_path: Path, run_cpmi: Callable[..., tuple[int, str, str]]
) -> None:
    prm = tmp_path / "prm"
    rows = [TargetRow(str(i), f"Question {i}", ("Good.", "Bad."), (0.9, 0.1), (None, None), "test") for i in range(8)]
    train(rows, TrainSettings(ModelSettings(str(tiny_base), device="cpu"), epochs=1, held_out=0.0), prm)
    file = written(tmp_path / "t.jsonl", some(12, 1))
    # The same batches in both: what is read together decides the last digits.
    asked = ["score", str(file), "--prm", str(prm), "--batch-size", "3", "--device", "cpu"]
    assert run_cpmi(*asked, "--output", str(tmp_path / "plain"))[0] == 0
    on_ray = ["--ray", cluster.address, "--ray-actors", "2"]
    status, said, _ = run_cpmi(*asked, "--output", str(tmp_path / "ray"), *on_ray)
    assert (status, said) == (0, f"12 scored, 0 failed of 12 -> {tmp_path / 'ray'}\n")
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


MC = MonteCarloSettings(RolloutSettings(2, "plain", SamplingParams(max_tokens=40)))


@long
def test_rollouts_are_kept_as_they_are_finished_and_taken_up(cluster: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(6, 2))
    run = tmp_path / "run"
    label(LabelJob(file, tmp_path / "plain", TOY, MC))
    progress = label(LabelJob(file, run, TOY, MC, batch_size=2, ray=on(cluster)))
    assert content(run) == content(tmp_path / "plain")
    kept = run / "rollouts-00000-of-00001.jsonl"
    lines = kept.read_text().splitlines()
    assert progress.rollouts == 2 * len(lines) > 0
    # Without its records the run makes them again, of the rollouts that are there.
    for name in ("part-00000-of-00001.jsonl", "part-00000-of-00001.sums", "part-00000-of-00001.done"):
        (run / name).unlink()
    again = label(LabelJob(file, run, TOY, MC, batch_size=2, ray=on(cluster)))
    assert (again.rewarded, again.rollouts) == (6, 0)
    assert kept.read_text().splitlines() == lines
    assert content(run) == content(tmp_path / "plain")


def test_input_and_output_may_lie_in_a_store(
    cluster: Any, s3: str, tmp_path: Path, run_cpmi: Callable[..., tuple[int, str, str]]
) -> None:
    """The nodes were started without its keys: actors and read tasks get them."""
    local = written(tmp_path / "t.jsonl", some(30))
    label(LabelJob(local, tmp_path / "plain", TOY))
    write_records(location(f"{s3}/t.jsonl"), some(30))
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    on_ray = ["--ray", cluster.address, "--ray-option", f"runtime_env={json.dumps({'env_vars': keys})}"]
    asked = ["label", f"{s3}/t.jsonl", "--model", "toy:", "--batch-size", "2", "--output", f"{s3}/on-ray"]
    status, said, _ = run_cpmi(*asked, *on_ray, "--limit", "7")
    assert (status, said) == (0, f"7 labeled, 0 failed of 7 -> {s3}/on-ray\n")
    status, said, _ = run_cpmi(*asked, *on_ray, "--ray-actors", "2")
    assert (status, said) == (0, f"23 labeled, 0 failed, 7 already there of 30 -> {s3}/on-ray\n")
    run = location(f"{s3}/on-ray")
    assert content(run) == content(tmp_path / "plain")
    found = verify(run)
    assert (found.is_sound, found.rewarded, found.notes) == (True, 30, ())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cpmi", "label", *arguments]


def wait_for_lines(process: subprocess.Popen[str], part: Path) -> None:
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver_may_die_and_the_same_command_goes_on(cluster: Any, tmp_path: Path, number: int) -> None:
    file = written(tmp_path / "t.jsonl", some(100, 60))
    run = tmp_path / "run"
    asked = [str(file), "--model", "toy:", "--batch-size", "2", "--output", str(run), "--ray", cluster.address]
    process = subprocess.Popen(command(*asked), stderr=subprocess.PIPE, text=True)
    wait_for_lines(process, run / "part-00000-of-00001.jsonl")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert stderr.splitlines()[-1] == f"stopped; {run} keeps what is labeled, and the same command goes on there"
        assert "Traceback" not in stderr
    deadline = time.monotonic() + 30
    while workers("MapWorker") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers("MapWorker")
    before = len(content(run))
    assert 0 < before < 100
    done = subprocess.run(command(*asked, "--json"), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["before"] == before
    label(LabelJob(file, tmp_path / "plain", TOY))
    assert content(run) == content(tmp_path / "plain")
    lines = done.stderr.splitlines()
    assert all(line.startswith("labeling: ") for line in lines), lines


# --- one line for what cannot be ------------------------------------------------------------------------------------


@long
def test_what_no_node_can_hold_is_refused_before_anything_is_spent(cluster: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(3))
    job = LabelJob(file, tmp_path / "run", TOY, ray=on(cluster, options={"num_gpus": 1}))
    with pytest.raises(
        InputError, match=r"no node .* can hold an actor, which wants CPU 1, GPU 1; its nodes have .*CPU"
    ):
        label(job)
    patient = on(cluster, options={"num_gpus": 1}, wait_seconds=2)
    with pytest.raises(CpmiError, match="no actor came up within 2 s; each wants CPU 1, GPU 1"):
        label(LabelJob(file, tmp_path / "run", TOY, ray=patient))
    assert not (tmp_path / "run").exists()


@long
def test_an_engine_that_cannot_be_opened_is_one_line(cluster: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(3))
    with pytest.raises(InputError, match="model 'nonsense' is not one that can be opened"):
        label(LabelJob(file, tmp_path / "run", ModelSettings("nonsense"), ray=on(cluster)))
    assert not (tmp_path / "run").exists()


class Shapes:
    """Rewards; the second actor that opens it says that it is something else, or it kills its actor."""

    name = "shapes"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / f"opened-{os.getpid()}").touch()
        try:
            (folder / "first").touch(exist_ok=False)
            self._number = 1
        except FileExistsError:
            self._number = 2

    def describe(self) -> dict[str, Any]:
        return {"engine": {"dtype": f"float{16 * self._number}"} if (self._folder / "differ").exists() else "same"}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        if (self._folder / "die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (self._folder / "grow").exists() and len(opened_by(self._folder)) < 2:
            if time.monotonic() > deadline:
                (self._folder / "grow").unlink()
            time.sleep(0.1)
        time.sleep(0.5)
        return [StepRewards(t.id, (1.0,) * len(t.steps), self.name, details={"pid": os.getpid()}) for t in trajectories]


def opened_by(folder: Path) -> list[str]:
    """The actors that have opened ``Shapes``, one process each."""
    return sorted(path.name.removeprefix("opened-") for path in folder.glob("opened-*"))


def open_shapes(folder: Path, store: RolloutStore, opened: ExitStack) -> Shapes:
    del store, opened
    return Shapes(folder)


def run_shapes(cluster: Any, file: Path, folder: Path, least: int, most: int) -> list[StepRewards]:
    """Rewards from ``Shapes``; its code travels to the actors, who do not know this module."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    plan = Plan.of(file, 2, holds=lambda _: True, limit=None)
    try:
        with RayRun(RaySettings(cluster.address, (least, most)), plan, open_shapes, folder, computes=False) as run:
            run.describe()
            run.begin()
            return [record for batch in run.batches() for record in batch]
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@long
def test_actors_that_open_different_engines_are_refused(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "differ").touch()
    with pytest.raises(CpmiError, match=r"has opened something else than the first one .*float16.*float32"):
        run_shapes(cluster, written(tmp_path / "t.jsonl", some(40)), tmp_path, 2, 2)


@long
def test_a_batch_that_kills_every_actor_is_given_up(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with pytest.raises(CpmiError, match="the batch that begins with the trajectory 't0' has ended 4 actors"):
        run_shapes(cluster, written(tmp_path / "t.jsonl", some(2)), tmp_path, 1, 1)


@long
def test_more_actors_come_while_batches_wait(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "grow").touch()  # the first actor holds its batches until there is another one
    records = run_shapes(cluster, written(tmp_path / "t.jsonl", some(60)), tmp_path, 1, 3)
    assert sorted(record.trajectory_id for record in records) == sorted(f"t{i}" for i in range(60))
    by = {str(record.details["pid"]) for record in records}
    assert 2 <= len(by) <= len(opened_by(tmp_path)) <= 3
    assert by <= {*opened_by(tmp_path)}


def test_an_input_that_is_not_there_or_not_the_same_is_one_line(tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(9))
    (piece,) = Plan.of(file, 4, holds=lambda _: True, limit=None).pieces
    assert [len(batch.splitlines()) for batch in piece.batches()] == [4, 4, 1]
    write_records(file, some(10)[1:])
    with pytest.raises(InputError, match=r"t\.jsonl: the node .* has another file of this name"):
        next(piece.batches())
    file.unlink()
    with pytest.raises(InputError, match=r"t\.jsonl: no such file on the node"):
        next(piece.batches())


def test_slices_hold_what_is_wanted_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpmi.ray_runs.plan.SLICE_BATCHES", 2)
    file = written(tmp_path / "t.jsonl", some(20))
    plan = Plan.of(file, 3, holds=lambda name: name != "t5", limit=18, labeled={"t0", "t1", "t7"}, failed={"t7"})
    ids = [
        [json.loads(line)["id"] for line in batch.splitlines()] for piece in plan.pieces for batch in piece.batches()
    ]
    assert ids == [["t2", "t3", "t4"], ["t6", "t8", "t9"], ["t10", "t11", "t12"], ["t13", "t14", "t15"], ["t16", "t17"]]
    assert (len(plan.pieces), plan.batches, plan.trajectories) == (3, 5, 14)
    assert (plan.before, plan.failed_before) == (3, 1)
    assert plan.pieces[0].start == len("".join(file.read_text().splitlines(keepends=True)[:2]).encode())


def test_errors_of_a_worker_travel_as_rows(tmp_path: Path) -> None:
    from cpmi.ray_runs.rows import raise_row, read_slice

    (piece,) = Plan.of(written(tmp_path / "t.jsonl", some(2)), 2, holds=lambda _: True, limit=None).pieces
    piece.path.unlink()
    (row,) = read_slice(piece)
    passed = Worker.__call__(object.__new__(Worker), row)
    with pytest.raises(InputError, match="no such file on the node"):
        raise_row(passed["data"][0].as_py())


def test_a_store_that_a_node_cannot_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpmi.ray_runs.rows import raise_row, read_slice

    (piece,) = Plan.of(written(tmp_path / "t.jsonl", some(2)), 2, holds=lambda _: True, limit=None).pieces
    monkeypatch.setattr(Path, "exists", functools.partial(_refused, 403))
    (row,) = read_slice(piece)
    with pytest.raises(CpmiError, match=r"t\.jsonl: the node .* cannot read this \(.*403"):
        raise_row(row["data"][0].as_py())


def _refused(status: int, *_: object) -> bool:
    raise PermissionError(status, "Forbidden")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "ray://host:10001"}, "cannot be driven through a Ray client"),
        ({"actors": (0, 1)}, "actors must be N, or MIN:MAX"),
        ({"actors": (3, 2)}, "actors must be N, or MIN:MAX"),
        ({"options": {"num_gpu": 1}}, "unknown Ray option 'num_gpu'; did you mean 'num_gpus'"),
        ({"options": {"num_cpus": "two"}}, "num_cpus must be a number"),
        ({"options": {"resources": [1]}}, "resources must be an object of numbers"),
        ({"wait_seconds": -1}, "must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RaySettings(**settings)


def test_the_number_of_actors_is_one_or_two_numbers() -> None:
    assert RaySettings.parse_actors(None) is None
    assert RaySettings.parse_actors("3") == (3, 3)
    assert RaySettings.parse_actors("1:8") == (1, 8)
    for text in ("", "a", "1:", "1:b", "-1"):
        with pytest.raises(InputError, match="write N, or MIN:MAX"):
            RaySettings.parse_actors(text)


def test_options_of_ray_need_ray(run_cpmi: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = written(tmp_path / "t.jsonl", some(2))
    status, _, error = run_cpmi("label", str(file), "-o", str(tmp_path / "run"), "--ray-actors", "2")
    assert (status, error) == (2, "cpmi: error: --ray-actors, --ray-option and --ray-wait go with --ray ADDRESS\n")


def test_a_cluster_that_is_not_there_is_one_line(
    run_cpmi: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", dead)
        asked = [str(written(tmp_path / "t.jsonl", some(2))), "--model", "toy:", "--output", str(tmp_path / "run")]
        for address in (dead, "auto"):
            status, _, error = run_cpmi("label", *asked, "--ray", address)
            assert (status, error) == (2, f"cpmi: error: no Ray cluster at {dead} (Connection refused)\n")
    assert not (tmp_path / "run").exists()


def test_a_desk_that_is_gone_is_one_line(cluster: Any, tmp_path: Path) -> None:
    """It dies with the driver's node at the latest; whoever asks it next says so."""
    plan = Plan.of(written(tmp_path / "t.jsonl", some(8)), 2, holds=lambda _: True, limit=None)
    opener = functools.partial(_open_rewarder, LabelJob(plan.pieces[0].path, tmp_path / "run", TOY))
    message = "Ray: .* What is labeled so far is kept: the same command goes on there"
    with RayRun(on(cluster), plan, opener, SiblingAnswers(), computes=False) as run:
        run.describe()
        (desk,) = workers("Desk")
        desk.kill()
        with pytest.raises(CpmiError, match=message) as raised:
            run.begin()
    assert "\n" not in str(raised.value)


def test_a_run_that_was_given_up_leaves_nothing_behind(cluster: Any, tmp_path: Path) -> None:
    """While no batch has come: Ray Data's threads end, and no connection is left or comes again."""
    patient = on(cluster, options={"num_gpus": 1}, wait_seconds=0.5)
    with pytest.raises(CpmiError, match="no actor came up"):
        label(LabelJob(written(tmp_path / "t.jsonl", some(3)), tmp_path / "run", TOY, ray=patient))
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("cpmi-ray", "StreamingExec"))]
    assert not left
    assert not ray.is_initialized()
