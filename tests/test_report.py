"""``cpmi report`` and ``cpmi plot`` without a browser: the numbers, the page as a file, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpmi.report
from cpmi import Cost, StepRewards, Trajectory, write_records
from cpmi.benchmarks.baselines import OUTCOME, OUTCOME_AND_POSITION
from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.metrics import Estimate
from cpmi.report import plot, write_report
from cpmi.report.curves import Steps, by_position, by_threshold, histogram, reliability, steps_of
from cpmi.report.data import embedded, lowest_steps, page_data, runs_differ, surprise_of
from cpmi.report.drawing import DASHES, RUN_COLORS, VARIABLES, run_look, short
from cpmi.report.figures import Kind, chart
from cpmi.report.material import Material, load
from cpmi.report.page import render
from cpmi.report.tables import benchmark_tables, summary_table
from cpmi.report.verdicts import duration, verdicts
from cpmi.results import EvalResult, write_results

TEMPLATES = Path(cpmi.report.__file__).parent / "templates"
TRAJECTORIES = [
    Trajectory("Q1?", ("a", "b", "c"), "1", "1", (True, True, True), {"subset": "easy"}, "right"),
    Trajectory("Q2?", ("a", "b", "c"), "2", "5", (True, False, None), {"subset": "hard"}, "wrong"),
    Trajectory("Q3?", ("a", "b"), "3", "3", (False, None), id="lucky"),
    Trajectory("Q4?", ("a",), None, "4", None, id="unjudged"),
    Trajectory("Q5?", ("a",), "5", "5", None, id="in no run"),
]


def line(name: str, *rewards: float, source: str = "cpmi", seconds: float = 1.0, **more: Any) -> StepRewards:
    return StepRewards(name, rewards, source, cost=Cost(0, 10, seconds), **more)


AGAINST: dict[str, Any] = {"answers": ["2", "5", "7"], "kinds": ["gold", "own", "rule"]}
GOOD = [
    line("right", 2, 2, 2),
    line("wrong", 2, -1, 0, details=AGAINST),
    line("lucky", -1, 5),
    line("unjudged", 3),
]
MC = [
    line("right", 1, 0.5, 1, source="mc", seconds=10),
    line("wrong", 0.5, 0.5, 0, source="mc", seconds=30),
    line("lucky", 0.5, 1, source="mc", seconds=0),
    line("unjudged", 1, source="mc", seconds=60),
]
KINDS: tuple[Kind, ...] = ("distribution", "roc", "pr", "reliability", "position", "cost")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "t.jsonl", TRAJECTORIES)
    write_records(tmp_path / "good.jsonl", GOOD)
    write_records(tmp_path / "mc.jsonl", MC)
    return tmp_path


def material(folder: Path, *names: str) -> Material:
    with Grader() as grader:
        return load([folder / name for name in names], folder / "t.jsonl", grader=grader, count=50)


def page(folder: Path, *names: str, title: str | None = None) -> str:
    return render(material(folder, *names), title)


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.visible = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in self.texts else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside].append(data)
        else:
            self.visible += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


# --- what is read ---------------------------------------------------------------------------------------------------


def test_material_by_hand(folder: Path) -> None:
    """Sizes of the good rewards: 0 1 1 2 2 2 2 3 5; their 90 % quantile is a fifth of the way from 3 to 5."""
    got = material(folder, "good.jsonl", "mc.jsonl")
    good, mc = got.runs
    assert (good.name, good.source, good.center, good.low, good.high) == ("good.jsonl", "cpmi", 0.0, -1.0, 5.0)
    assert good.scale == pytest.approx(3.4)
    assert (mc.center, mc.scale) == (0.5, 0.5)
    assert [t.id for t in got.trajectories] == ["right", "wrong", "lucky", "unjudged"]
    assert got.outcomes == {"right": "right", "wrong": "wrong", "lucky": "right", "unjudged": "unknown"}
    assert got.judged == ("right", "wrong", "lucky")
    assert got.comparison is not None
    assert got.comparison.judged == len(got.judged)


def test_rewards_of_one_sign_have_their_median_as_the_center(folder: Path) -> None:
    write_records(folder / "high.jsonl", [line("right", 4, 5, 9)])
    assert material(folder, "high.jsonl").runs[0].center == 5.0


def test_no_answer_is_wrong_and_no_gold_answer_is_unknown(folder: Path) -> None:
    silent = Trajectory("Q?", ("nothing said",), "green", None, id="silent")
    write_records(folder / "t.jsonl", [silent])
    write_records(folder / "run.jsonl", [line("silent", 1)])
    assert material(folder, "run.jsonl").outcomes == {"silent": "wrong"}


# --- points of the curves -------------------------------------------------------------------------------------------


def test_threshold_curves_by_hand(folder: Path) -> None:
    """Right steps of mc: 1 0.5 1 | 0.5; wrong ones: 0.5 | 0.5. At 0.5 both wrong ones are found, for two right ones."""
    got = material(folder, "good.jsonl", "mc.jsonl")
    curve = by_threshold(got.cases(got.runs[1]))
    assert curve.found.tolist() == [0, 1, 1]
    assert curve.alarms.tolist() == [0, 0.5, 1]
    assert np.isnan(curve.precision[0])
    assert curve.precision[1:].tolist() == [pytest.approx(2 / 4), pytest.approx(2 / 6)]
    outcome = by_threshold(got.cases(None))  # right steps 1 1 1 | 0, wrong 0 | 1
    assert outcome.found.tolist() == [0, 0.5, 1]
    assert outcome.alarms.tolist() == [0, 0.25, 1]


def test_reliability_and_position_by_hand(folder: Path) -> None:
    got = material(folder, "mc.jsonl")
    steps = steps_of(got.cases(got.runs[0]))
    bins = reliability(got.cases(got.runs[0]))
    assert bins.predicted.tolist() == [0.5, 1.0]
    assert bins.observed.tolist() == [0.5, 1.0]
    assert bins.counts.tolist() == [4, 2]
    right = by_position(steps, 1)  # 1 and 0.5, 0.5, 1
    assert right.positions.tolist() == [1, 2, 3]
    assert right.means.tolist() == [0.75, 0.5, 1.0]
    assert right.errors.tolist() == [pytest.approx(0.25), 0.0, 0.0]
    assert by_position(steps, 0).means.tolist() == [0.5, 0.5]


def test_a_histogram_holds_every_step_and_no_outlier_stretches_it() -> None:
    rewards = np.append(np.linspace(-1, 1, 199), 1000.0)
    steps = Steps(rewards, np.ones(200, np.int64), np.ones(200, np.int64))
    edges, shares = histogram(steps)
    assert shares[1].sum() == pytest.approx(1.0)
    assert edges[-1] < 2
    same = Steps(np.full(3, 7.0), np.array([1, 0, -1]), np.ones(3, np.int64))
    edges, shares = histogram(same)
    assert (edges[0], edges[-1]) == (6.5, 7.5)
    assert {label: share.max() for label, share in shares.items()} == {1: 1.0, 0: 1.0, -1: 1.0}


# --- what to look at first ------------------------------------------------------------------------------------------


def test_surprise_by_hand(folder: Path) -> None:
    """In units of 3.4: the wrong step at -1 against the right one at 2, and against the center; the lowest of 2 2 2."""
    run = material(folder, "good.jsonl").runs[0]
    got = [surprise_of(run, run.records[t.id].rewards, t) for t in TRAJECTORIES[:4]]
    assert got == [pytest.approx(-2 / 3.4), pytest.approx(-3 / 3.4), pytest.approx(-1 / 3.4), None]


def test_lowest_steps_and_whether_runs_differ() -> None:
    assert lowest_steps((2, -1, 0)) == (1,)
    assert lowest_steps((1, 0, 0)) == (1, 2)
    assert lowest_steps((1, 1)) == ()  # no opinion
    assert lowest_steps((1,)) == (0,)
    a, b, flat, both = line("x", 2, -1, 0), line("x", 0, 1, 2), line("x", 1, 1, 1), line("x", 0, 0, 2)
    assert runs_differ([a, b])
    assert not runs_differ([a, flat, None])
    assert not runs_differ([a, both])  # the second step is among the lowest of both
    assert runs_differ([a, both, b])


def test_the_data_of_a_trajectory(folder: Path) -> None:
    data: Any = page_data(material(folder, "good.jsonl", "mc.jsonl"))
    assert [run["name"] for run in data["runs"]] == ["good.jsonl", "mc.jsonl"]
    assert [run["signed"] for run in data["runs"]] == [True, False]
    wrong = data["trajectories"][1]
    assert (wrong["id"], wrong["labels"], wrong["firstError"], wrong["outcome"]) == (
        "wrong", [True, False, None], 1, "wrong",
    )  # fmt: skip
    assert wrong["differ"]
    assert wrong["runs"][0]["against"] == [["5", "own"], ["7", "rule"]]
    assert wrong["runs"][0]["lowest"] == [1]
    assert wrong["runs"][1]["lowest"] == [2]
    assert data["trajectories"][3]["labels"] is None


def test_details_of_others_do_not_break_the_page(folder: Path) -> None:
    write_records(
        folder / "odd.jsonl",
        [
            line("right", 1, 2, 3, details={"answers": "none", "kinds": 3}),
            line("wrong", 1, 2, 3, details={"answers": [1, 2], "kinds": ["gold"]}),
        ],
    )
    data: Any = page_data(material(folder, "odd.jsonl"))
    assert [t["runs"][0]["against"] for t in data["trajectories"]] == [[], [["2", ""]]]


# --- verdicts and tables --------------------------------------------------------------------------------------------


def test_a_verdict_is_made_from_the_numbers(folder: Path) -> None:
    """Good finds every first error. The outcome, at any threshold, finds none or leaves no right solution alone."""
    good, mc = verdicts(material(folder, "good.jsonl", "mc.jsonl"))
    assert good.standing == "better"
    assert good.text.startswith("Finds the first wrong step: F1 1.00 (")
    assert (
        "at its best threshold, on 3 annotated trajectories; knowing only whether the answer is right gives 0.00"
        in good.text
    )
    assert "Costs 1 s and no generated token a trajectory." in good.text
    assert mc.standing == "worse"
    assert mc.words == "No more than the baselines"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (0.0004, "< 0.001 s"), (0.84, "0.84 s"), (1234.5, "1,234 s")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_summary_has_every_run_and_the_baseline(folder: Path) -> None:
    comparison = material(folder, "good.jsonl", "mc.jsonl").comparison
    assert comparison is not None
    table = summary_table(comparison)
    assert [row[0].text for row in table.rows] == ["good.jsonl", "mc.jsonl", OUTCOME, OUTCOME_AND_POSITION]
    assert {len(row) for row in table.rows} == {len(table.columns)} == {sum(span for _, span in table.groups)}
    f1 = table.columns.index("first-error F1")
    assert [row[f1].text for row in table.rows] == ["1.00", "0.00", "0.00", "0.00"]
    assert table.rows[0][table.columns.index("time saved")].text == "96.0 %"


RESULTS = [
    EvalResult(
        "processbench", "gsm8k", "prm", {"f1": Estimate(0.41, 0.3, 0.52), "error_accuracy": Estimate(None)}, 100, 3,
        {"threshold": "fixed-0.5", "threshold_value": 0.5}, notes=("Three had no rewards.",),
    ),
    EvalResult("processbench", "math", "prm", {"f1": Estimate(0.2)}, 50, settings={"threshold": "gsm8k-tuned",
               "threshold_value": 0.3125}),
    EvalResult("prmbench", "overall", "prm", {"prm_score": Estimate(0.6, 0.5, 0.7)}, 9,
               settings={"threshold": "oracle", "upper_bound": True}, notes=("About all.",)),
]  # fmt: skip


def test_benchmarks_by_hand() -> None:
    process, prm = benchmark_tables(RESULTS)
    assert process.columns == ("source", "subset", "threshold", "n", "F1", "error accuracy")
    assert [[cell.text for cell in row] for row in process.rows] == [
        ["prm", "gsm8k", "fixed-0.5", "100", "0.41", "–"],
        ["prm", "math", "gsm8k-tuned", "50", "0.20", "–"],
    ]
    assert process.rows[0][4].beside == "0.30–0.52"
    assert process.rows[0][3].beside == "3 unscored"
    assert process.notes == ("prm, gsm8k: Three had no rewards.",)
    assert [row[2].beside for row in (*process.rows, *prm.rows)] == ["", "0.3125", "upper bound"]
    assert prm.columns[-1] == "PRM score"
    assert [cell.text for cell in prm.rows[0]] == ["prm", "overall", "oracle", "9", "0.60"]
    assert prm.notes == ("About all.",)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_allows_only_its_own_script_and_style(folder: Path) -> None:
    parsed = Parsed(page(folder, "good.jsonl", "mc.jsonl"))
    policy = next(a["content"] or "" for t, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    data, script = parsed.texts["script"]
    for name, text in (("script-src", script), ("style-src", parsed.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert parsed.values("src") == []
    assert all(href.startswith("#") for href in parsed.values("href"))
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert parsed.values("style") == []
    assert "url(" not in parsed.texts["style"][0]
    assert "@import" not in parsed.texts["style"][0]
    assert json.loads(data)["trajectories"][0]["id"] == "right"


def test_the_script_never_makes_markup_of_text() -> None:
    script = (TEMPLATES / "report.js").read_text()
    assert script.startswith('(() => {\n  "use strict";')
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert word not in script


def test_the_page_is_one_that_can_be_heard(folder: Path) -> None:
    parsed = Parsed(page(folder, "good.jsonl", "mc.jsonl"))
    tags = [tag for tag, _ in parsed.elements]
    assert parsed.elements[0] == ("html", {"lang": "en"})
    assert {"header", "main", "nav", "footer", "h1"} <= set(tags)
    assert tags.count("h1") == tags.count("main") == 1
    assert all("scope" in attributes for tag, attributes in parsed.elements if tag == "th")
    figures = [attributes for tag, attributes in parsed.elements if tag == "svg"]
    assert len(figures) == 2 + 1 + 1 + 1 + 2 + 1
    assert all(each["role"] == "img" and each["aria-label"] for each in figures)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    references = [a.removeprefix("url(#").rstrip(")") for a in parsed.values("clip-path")]
    references += [href[1:] for href in parsed.values("href")]
    references += [name for value in parsed.values("aria-labelledby") for name in value.split()]
    assert set(references) <= set(ids)
    count = next(attributes for _, attributes in parsed.elements if attributes.get("id") == "count")
    assert count["aria-live"] == "polite"


def test_every_color_of_a_figure_is_one_of_the_page(folder: Path) -> None:
    """So that figures are as readable in the dark."""
    text = page(folder, "good.jsonl", "mc.jsonl")
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    colors = {v for f in figures for v in re.findall(r'(?:fill|stroke)="([^"]+)"', f)}
    assert colors <= {"none", *(f"var({name})" for name in VARIABLES.values())}
    css = (TEMPLATES / "report.css").read_text()
    assert all(css.count(f"\n  {name}: ") == 1 for name in VARIABLES.values())
    assert all(css.count(f"\n    {name}: ") == 1 for name in VARIABLES.values())


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \u2028 & $\\frac{1}{2}$ {{ 7 * 7 }}"


def test_texts_cannot_leave_their_place(folder: Path) -> None:
    text = embedded({HOSTILE: [HOSTILE]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE]}
    write_records(
        folder / "t.jsonl", [Trajectory(HOSTILE, (HOSTILE,), "1", HOSTILE, (True,), {"subset": HOSTILE}, "x")]
    )
    name = "a$b$<b>&\\frac.jsonl"
    write_records(folder / name, [line("x", 1.0, source=HOSTILE)])
    parsed = Parsed(page(folder, name, title=HOSTILE))
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert "b" not in tags
    assert json.loads(parsed.texts["script"][0])["trajectories"][0]["steps"] == [HOSTILE]
    assert "{{ 7 * 7 }}" in parsed.visible


def test_names_that_xml_or_the_font_cannot_hold(folder: Path) -> None:
    for name in ("\x01\x02.jsonl", "奖励.jsonl", "a$b$\\frac.jsonl"):
        write_records(folder / name, GOOD)
        assert f">{short(name)}, AUC 1.00</text>" in page(folder, name)
    assert short("a\x01b") == "a\N{REPLACEMENT CHARACTER}b"
    assert len(short("x" * 100)) <= 30


def test_looks_do_not_repeat_soon() -> None:
    looks = [str(sorted(run_look(index).items())) for index in range(len(RUN_COLORS) * len(DASHES))]
    assert len(set(looks)) == len(looks)


def test_the_same_input_gives_the_same_page(folder: Path) -> None:
    """Also in another process, where sets have another order."""
    first = page(folder, "good.jsonl", "mc.jsonl")
    assert first == page(folder, "good.jsonl", "mc.jsonl")
    arguments = ["report", "good.jsonl", "mc.jsonl", "--trajectories", "t.jsonl", "--bootstrap", "50"]
    command = [sys.executable, "-m", "cpmi", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert (folder / "report.html").read_text() == first


# --- less than everything -------------------------------------------------------------------------------------------


def without_labels(folder: Path) -> None:
    write_records(folder / "t.jsonl", [Trajectory(t.question, t.steps, t.gold_answer, id=t.id) for t in TRAJECTORIES])


def test_without_human_labels_the_page_says_so(folder: Path) -> None:
    without_labels(folder)
    text = page(folder, "good.jsonl")
    assert "people annotated no trajectory that every run rewarded" in text
    assert text.count("There is no trajectory that every run rewarded and people annotated.") == 4
    assert "first-error F1</th>" not in text
    assert "All rewards: there is no trajectory that every run rewarded and people annotated." in text
    assert text.count("<svg") == 2  # distribution and position, of all steps
    assert 'aria-label="Histogram of the rewards of good.jsonl: 9 steps with median 2."' in text


def test_one_class_only(folder: Path) -> None:
    write_records(folder / "only.jsonl", GOOD[:1])
    got = material(folder, "only.jsonl")
    assert "cannot be said: the only annotated trajectory is without an error" in verdicts(got)[0].text
    for kind in ("roc", "pr"):
        assert chart(kind, got).notes == (
            "People found no wrong step in these trajectories, so there is nothing to find.",
        )
    assert "needs trajectories with an error" in chart("cost", got).notes[0]
    write_records(folder / "only.jsonl", GOOD[2:3])
    assert "nothing to tell wrong ones from" in chart("roc", material(folder, "only.jsonl")).notes[0]


def test_constant_rewards_are_called_that(folder: Path) -> None:
    write_records(folder / "same.jsonl", [line(r.trajectory_id, *(0.5 for _ in r.rewards)) for r in GOOD])
    write_records(folder / "flat.jsonl", [line(r.trajectory_id, *(len(r.rewards) for _ in r.rewards)) for r in GOOD])
    got = material(folder, "same.jsonl", "flat.jsonl")
    same, flat = verdicts(got)
    assert "Every step has the same reward, 0.5: it tells no step from another." in same.text
    assert "All steps of a solution have the same reward" in flat.text
    assert chart("roc", got).notes == (
        "same.jsonl gives every step the same reward, so it finds as much as chance does.",
    )
    data: Any = page_data(got)
    assert data["runs"][0]["scale"] == 0
    assert "<svg" in render(got)


def test_failures_are_counted_and_shown(folder: Path) -> None:
    write_records(folder / "part.jsonl", [GOOD[0], StepRewards("wrong", (), "cpmi", error="out of memory")])
    got = material(folder, "part.jsonl")
    assert "1 of 2 attempts failed." in verdicts(got)[0].text
    data: Any = page_data(got)
    assert data["trajectories"][1]["runs"] == [{"seconds": 0, "error": "out of memory"}]
    write_records(folder / "none.jsonl", [StepRewards("wrong", (), "cpmi", error="out of memory")])
    got = material(folder, "none.jsonl")
    assert "It has no rewards at all." in verdicts(got)[0].text
    assert chart("distribution", got).notes == ("No run has rewards.",)
    assert "out of memory" in render(got)


def test_rewards_beyond_zero_and_one_are_no_probabilities(folder: Path) -> None:
    got = chart("reliability", material(folder, "good.jsonl", "mc.jsonl"))
    assert [panel.title for panel in got.panels] == ["mc.jsonl"]
    assert got.notes == ("good.jsonl: its rewards reach from −1 to 5, so they are no probabilities.",)


def test_results_alone_make_a_page(folder: Path) -> None:
    write_results(folder / "results.json", RESULTS)
    parsed = Parsed(page(folder, "results.json"))
    assert parsed.texts["script"] == []
    assert "prm_score" not in parsed.visible
    assert "PRM score" in parsed.visible
    assert "Three had no rewards." in parsed.visible
    assert "Step rewards: prm" in parsed.visible


# --- contrast -------------------------------------------------------------------------------------------------------


def colors(dark: bool) -> dict[str, str]:
    css = (TEMPLATES / "report.css").read_text()
    light, _, rest = css.partition("@media (prefers-color-scheme: dark)")
    block = rest.partition("}\n}")[0] if dark else light
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block))


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


LEVELS = [f"--step-{level}" for level in ("m4", "m3", "m2", "m1", "0", "p1", "p2", "p3", "p4")]
GROUNDS = ["--paper", "--surface", "--sunken"]
TEXT = [
    *(("--ink", ground) for ground in (*GROUNDS, *LEVELS)),
    *((text, ground) for text in ("--muted", "--accent") for ground in GROUNDS),
    *((text, "--surface") for text in ("--good", "--bad")),
    *((text, "--sunken") for text in ("--good", "--bad")),
    *((f"--{kind}", f"--{kind}-back") for kind in ("good", "fair", "bad")),
    *((text, "--surface") for text in ("--fig-right", "--fig-wrong")),
]  # fmt: skip
GRAPHICS = [*((f"--fig-{i}", "--surface") for i in range(1, 5)), ("--edge", "--surface"), ("--edge", "--sunken")]


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_and_graphics_stand_out(dark: bool) -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for what else carries meaning (1.4.11)."""
    named = colors(dark)
    for (text, ground), least in [*((pair, 4.5) for pair in TEXT), *((pair, 3.0) for pair in GRAPHICS)]:
        assert contrast(named[text], named[ground]) >= least, (text, ground)


# --- single figures -------------------------------------------------------------------------------------------------


def drawn(folder: Path, kind: Kind, output: Path, *names: str) -> tuple[str, ...]:
    with Grader() as grader:
        return plot(kind, [folder / n for n in names], output, folder / "t.jsonl", grader=grader, count=20)


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_an_image(kind: Kind, folder: Path) -> None:
    for suffix, begins in (("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        output = folder / "new" / f"{kind}.{suffix}"
        drawn(folder, kind, output, "good.jsonl", "mc.jsonl")
        image = output.read_bytes()
        assert image.startswith(begins)
        assert len(image) > 3000
        drawn(folder, kind, output, "good.jsonl", "mc.jsonl")
        assert output.read_bytes() == image
    assert [path.suffix for path in sorted((folder / "new").iterdir())] == [".pdf", ".png", ".svg"]


def test_a_cost_of_nothing_has_its_place(folder: Path) -> None:
    free = [line(r.trajectory_id, *r.rewards, seconds=0) for r in GOOD]
    write_records(folder / "free.jsonl", free)
    for names in (["free.jsonl"], ["free.jsonl", "mc.jsonl"]):
        panel = chart("cost", material(folder, *names)).panels[0]
        assert "free.jsonl 1.00" in panel.label
        drawn(folder, "cost", folder / "cost.svg", *names)


@pytest.mark.parametrize(
    ("kind", "output", "names", "said"),
    [
        ("roc", "fig.gif", ["good.jsonl"], r"must end in \.png, \.svg or \.pdf"),
        ("reliability", "fig.png", ["good.jsonl"], r"nothing to draw: good\.jsonl: its rewards reach"),
        ("roc", "fig.png", ["results.json"], "a figure is not made from results"),
        ("roc", "rewards.png", ["rewards.png"], "one of the files that would be read"),
    ],
)
def test_figures_that_cannot_be(kind: Kind, output: str, names: list[str], said: str, folder: Path) -> None:
    write_results(folder / "results.json", RESULTS)
    (folder / "rewards.png").write_bytes((folder / "good.jsonl").read_bytes())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=said):
        drawn(folder, kind, folder / output, *names)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cpmi_command(monkeypatch: pytest.MonkeyPatch, run_cpmi: Any, folder: Path) -> Any:
    """Run the command in the folder; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(folder)

    return run_cpmi


def test_from_a_run_to_a_page_with_defaults(cpmi_command: Any, folder: Path) -> None:
    assert cpmi_command("label", "t.jsonl", "--method", "outcome", "--output", "run")[0] == 0
    assert cpmi_command("report", "run") == (0, "5 trajectories, 1 run -> report.html\n", "")
    code, out, _ = cpmi_command("report", "run", "-o", "new/folder/page.html", "--title", "Mine", "--json")
    assert (code, json.loads(out)) == (
        0, {"output": "new/folder/page.html", "trajectories": 5, "runs": ["run"]},
    )  # fmt: skip
    assert "<h1>Mine</h1>" in (folder / "new/folder/page.html").read_text()
    assert cpmi_command("plot", "position", "run", "-o", "f.png")[:2] == (0, "position -> f.png\n")


def test_an_unfinished_run_is_noted(cpmi_command: Any, folder: Path) -> None:
    cpmi_command("label", "t.jsonl", "--method", "outcome", "--output", "run")
    (folder / "run/part-00000-of-00001.done").unlink()
    code, _, error = cpmi_command("report", "run")
    assert (code, error) == (0, "cpmi: run is not finished: 0 of 1 parts are complete\n")
    assert "run is not finished" in (folder / "report.html").read_text()


T = ("--trajectories", "t.jsonl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "nowhere"], "nowhere: no such file or run"),
        (["report", "good.jsonl"], "is a file, so its trajectories must be named: --trajectories FILE"),
        (["report", "good.jsonl", "--trajectories", "gone.jsonl"], "gone.jsonl: no such file"),
        (["report", "good.jsonl", *T, "-o", "page.pdf"], "page.pdf: the name of a report must end in .html"),
        (["report", "good.jsonl", *T, "-o", "empty.html"], "empty.html is a folder; --output names a file"),
        (["report", "empty.html", *T], "empty.html: not a run directory"),
        (["report", "good.jsonl", "--trajectories", "t.html", "-o", "t.html"], "one of the files that would be read"),
        (["report", "other.jsonl", *T], "no trajectory has the id 'stranger'"),
        (["report", "long.jsonl", *T], "'right': 4 rewards in long.jsonl, 3 steps in its trajectory"),
        (["report", "good.jsonl", "good.jsonl", *T], "a run is named twice"),
        (["report", "bad.json"], "bad.json: not a result of cpmi evaluate"),
        (["report", "none.json"], "none.json: holds no results"),
        (
            ["plot", "roc", "good.jsonl", *T, "-o", "fig.gif"],
            "fig.gif: the name of a figure must end in .png, .svg or .pdf",
        ),
    ],
)
def test_one_line_for_what_cannot_be(arguments: list[str], said: str, cpmi_command: Any, folder: Path) -> None:
    (folder / "empty.html").mkdir()
    (folder / "t.html").write_bytes((folder / "t.jsonl").read_bytes())
    (folder / "bad.json").write_text("[3]")
    (folder / "none.json").write_text("[]")
    write_records(folder / "other.jsonl", [line("stranger", 1)])
    write_records(folder / "long.jsonl", [line("right", 1, 2, 3, 4)])
    code, out, error = cpmi_command(*arguments)
    assert (code, out) == (2, "")
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_to_install_is_said(module: str, cpmi_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, _, error = cpmi_command("report", "good.jsonl", *T)
    assert code == 2
    assert error.endswith(f"package {module!r}, which is not installed; run: pip install 'cpmi[report]'\n")


def test_a_page_that_cannot_be_written_is_one_line(cpmi_command: Any, folder: Path) -> None:
    (folder / "file").write_text("")
    code, _, error = cpmi_command("report", "good.jsonl", *T, "-o", "file/page.html")
    assert code == 1
    assert "file/page.html: cannot be written" in error


def test_write_report_says_what_it_wrote(folder: Path) -> None:
    with Grader() as grader:
        done = write_report(
            [folder / "good.jsonl"], folder / "p.html", folder / "t.jsonl", grader=grader, count=10
        )  # fmt: skip
    assert (done.output, done.trajectories, done.runs, done.notes) == (folder / "p.html", 4, ("good.jsonl",), ())
