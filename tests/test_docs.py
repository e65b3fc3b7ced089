"""What the pages of docs/ show is what happens: every console block runs, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<printed>(?:(?!\$ ).*\n)*)", re.MULTILINE)
SHOWN = {
    page: [match for block in CONSOLE.findall(page.read_text()) for match in COMMAND.findall(block)] for page in PAGES
}


def test_there_is_something_to_run() -> None:
    assert sum(map(len, SHOWN.values())) >= 8


@pytest.mark.parametrize("page", [page for page in PAGES if SHOWN[page]], ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    """One after the other in one folder, as a reader would type them."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    for command, printed in SHOWN[page]:
        assert command.startswith("cpmi ")
        if " --ray " in command:
            pytest.importorskip("ray", reason="Ray is not installed here; run: make test-ray")
        line = ["bash", "-c", f"{sys.executable} -m {command}"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed, command


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
