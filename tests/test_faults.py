"""The fault harness in short: real processes, ten faults; ``make faults`` runs a hundred. And that it can tell."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "faults.py"


@pytest.fixture(scope="module")
def faults() -> Any:
    spec = importlib.util.spec_from_file_location("faults", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_ten_faults_change_nothing() -> None:
    command = [sys.executable, str(FILE), "--faults", "10", "--seed", "3", "--jobs", "cpmi,mc", "--disk", "limit"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (said["complaints"], said["survived"]) == ([], True)
    assert said["struck"] >= 10
    assert sum(row["alive"] for row in said["faults"].values()) >= 3
    assert said["compared"] > 0


LINE = b'{"trajectory_id":"t%d","rewards":[0.%d],"source":"mc","cost":{"tokens_generated":1,"seconds":%d}}\n'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([LINE % (1, 5, 9), LINE % (0, 5, 8)], (0, 0, 0)),  # another order, other costs
        ([LINE % (0, 5, 1)], (1, 0, 0)),
        ([LINE % (0, 5, 1), LINE % (1, 5, 1), LINE % (1, 5, 1)], (0, 1, 0)),
        ([LINE % (0, 5, 1), LINE % (1, 6, 1)], (0, 0, 1)),
        ([LINE % (0, 5, 1), LINE % (2, 5, 1)], (1, 0, 1)),
    ],
)
def test_what_is_lost_twice_or_changed_is_counted(
    faults: Any, tmp_path: Path, lines: list[bytes], expected: tuple[int, int, int]
) -> None:
    for name, content in (("here", lines), ("undisturbed", [LINE % (0, 5, 1), LINE % (1, 5, 1)])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-00000-of-00001.jsonl").write_bytes(b"".join(content))
    found = faults.difference(tmp_path / "here", tmp_path / "undisturbed")
    assert (found.lost, found.twice, found.changed) == expected


def test_a_line_that_vanishes_and_a_status_that_is_wrong_are_complaints(faults: Any, tmp_path: Path) -> None:
    """A command that loses what was there, and ends as if it had crashed."""
    part = tmp_path / "run" / "part-00000-of-00001.jsonl"
    part.parent.mkdir()
    part.write_bytes(LINE % (0, 5, 1))
    scene = faults.Scene(faults.Job("none", ("no-such-verb",), tmp_path), part.parent, None)
    scene.end(scene.start())
    assert scene.complaints == []
    part.write_bytes(b"")
    status, _ = scene.end(scene.start())
    assert status == 2
    assert len(scene.complaints) == 1
    assert scene.complaints[0].startswith("1 lines that were on the disk are gone")
    assert faults.terminate(scene, faults.random.Random(0)) is False
    assert "SIGTERM: exit status 2" in scene.complaints[1]
