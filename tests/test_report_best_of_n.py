"""Best-of-N in the report: its curves and its table say what the result says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cpmi import StepRewards, Trajectory, write_records
from cpmi.errors import InputError
from cpmi.report.choice_figure import MOST_PANELS, blocks, choice_panels, left_out
from cpmi.results import EvalResult, read_results

RunCpmi = Callable[..., tuple[int, str, str]]
ANSWERS = {"a": "4445", "b": "1244", "c": "3333", "d": "5454"}  # of four candidates each; 4 is right


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cpmi: RunCpmi) -> Path:
    """Candidates of two subsets, rewards that like right answers, and the result."""
    monkeypatch.chdir(tmp_path)
    candidates, rewards = [], []
    for name, answers in ANSWERS.items():
        for i, answer in enumerate(answers):
            tags = {"question_id": name, "subset": "first" if name in "ab" else "second"}
            each = Trajectory(f"{name}?", ("x", "y"), "4", answer, tags=tags, id=f"{name}/{i}")
            candidates.append(each)
            rewards.append(StepRewards(each.id, (0.5, 0.9 if answer == "4" else 0.1 * i), "prm"))
    write_records(tmp_path / "c.jsonl", candidates)
    write_records(tmp_path / "good.jsonl", rewards)
    arguments = ("--rewards", "good.jsonl", "--trajectories", "c.jsonl", "--bootstrap", "50", "-o", "r.json")
    assert run_cpmi("evaluate", "best-of-n", *arguments)[0] == 0
    return tmp_path


def test_results_over_the_same_questions_stand_together(folder: Path) -> None:
    found = blocks(read_results(folder / "r.json"))
    assert [block[0].subset for block in found] == ["all", "first", "second"]
    assert {len(block) for block in found} == {3 + 5 * 3}


def test_panels_say_the_figures_in_words(folder: Path) -> None:
    """Of four questions three have a right answer, and the rewards know which it is."""
    everything, first, second = choice_panels(read_results(folder / "r.json"))
    assert (everything.title, first.title, second.title) == ("all", "first", "second")
    assert "With 4: one sample 43.8 %" in everything.label  # 3/4, 2/4, 0 and 2/4
    assert "oracle 75.0 %, good.jsonl, best-of-n 75.0 %, good.jsonl, weighted 75.0 %" in everything.label
    assert "oracle 100.0 %" in first.label
    assert "oracle 50.0 %" in second.label


def test_rewards_that_cannot_weigh_votes_are_drawn_by_softmax(folder: Path, run_cpmi: RunCpmi) -> None:
    records = [StepRewards(f"{name}/{i}", (-1.0, -0.5), "prm") for name in ANSWERS for i in range(4)]
    write_records(folder / "bad.jsonl", records)
    arguments = ("--rewards", "bad.jsonl", "--trajectories", "c.jsonl", "--bootstrap", "20", "--aggregation", "min")
    assert run_cpmi("evaluate", "best-of-n", *arguments, "-o", "bad.json")[0] == 0
    label = choice_panels(read_results(folder / "bad.json"))[0].label
    assert "bad.jsonl, softmax" in label
    assert "weighted" not in label


def test_many_subsets_have_a_note(folder: Path) -> None:
    results = read_results(folder / "r.json")
    assert left_out(results) == ()
    assert len(choice_panels(results * 3)) == MOST_PANELS
    assert [panel.title for panel in choice_panels(results * 3)][3:] == ["all (2)", "first (2)", "second (2)"]
    assert left_out(results * 3) == ("No room for: all, first, second; the table has them.",)


def test_the_page_has_curves_and_a_table_that_fits(folder: Path, run_cpmi: RunCpmi) -> None:
    status, _, err = run_cpmi("report", "r.json", "-o", "page.html")
    assert (status, err) == (0, "")
    page = (folder / "page.html").read_text()
    assert "Right answers by the number of candidates" in page
    assert page.count("<svg") == 3
    assert "<h1>Step rewards: good.jsonl</h1>" in page
    headings = re.findall(r"<th[^>]*scope=\"col\"[^>]*>\s*([^<]*?)\s*<", page)
    assert [text for text in headings if text] == [
        "rule", "aggregation", "rewards", "subset", "questions", "N = 1", "N = 2", "N = 3", "N = 4", "gain", "ties",
    ]  # fmt: skip
    assert "43.8" in page
    assert "all candidates are right at" in page


def test_the_figure_by_itself(folder: Path, run_cpmi: RunCpmi) -> None:
    status, out, _ = run_cpmi("plot", "best-of-n", "r.json", "-o", "figure.svg")
    assert (status, out.strip()) == (0, "best-of-n -> figure.svg")
    assert "candidates" in (folder / "figure.svg").read_text()
    assert run_cpmi("plot", "best-of-n", "r.json", "-o", "figure.png")[0] == 0
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_result_of_best_of_n_is_one_line(folder: Path, run_cpmi: RunCpmi) -> None:
    status, _, err = run_cpmi("plot", "best-of-n", "c.jsonl", "-o", "figure.svg")
    assert (status, "not a result of cpmi evaluate" in err, len(err.splitlines())) == (2, True, 1)
    with pytest.raises(InputError, match="none of these is a result"):
        choice_panels([EvalResult("steps", "all", "mine", {}, 3)])
