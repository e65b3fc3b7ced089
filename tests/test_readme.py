"""The README's own commands, as they stand there; only the model is a smaller one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cpmi import read_rewards, read_trajectories

ROOT = Path(__file__).resolve().parents[1]


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_commands_and_the_program_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = block("sh").replace("hf:Qwen/Qwen2.5-7B", "toy:").replace("cpmi ", f"{sys.executable} -m cpmi ")
    assert "toy:" in commands
    subprocess.run(["bash", "-euc", commands], check=True, capture_output=True, env=os.environ | {"NO_COLOR": "1"})
    printed = subprocess.run([sys.executable, "-c", block("python")], check=True, capture_output=True, text=True).stdout
    rewards = [reward for record in read_rewards("run") for reward in record.rewards]
    assert len(rewards) == sum(len(trajectory.steps) for trajectory in read_trajectories("trajectories.jsonl")) > 6
    for reward in rewards:
        assert f"{reward:+.3f}  " in printed
    assert len((tmp_path / "stepwise.jsonl").read_text().splitlines()) == 6


def test_what_it_installs_is_what_its_commands_need() -> None:
    """``train`` brings ``hf`` for labeling, ``report`` is for the page, ``eval`` for the baselines in it."""
    (extras,) = re.findall(r"pip install '\.\[(.*?)\]'", (ROOT / "README.md").read_text())
    assert {"train", "eval", "report"} <= set(extras.split(","))
