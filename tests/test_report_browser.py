"""The page of ``cpmi report`` in a real browser, opened as a file."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cpmi import Cost, StepRewards, Trajectory, write_records
from cpmi.grader import Grader
from cpmi.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CPMI_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
HOSTILE = (
    "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\n  two \u2028 lines & $\\frac{1}{2}$"
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium found (name one in CPMI_TEST_CHROMIUM)"),
]

TRAJECTORIES = [
    Trajectory("How many apples?", ("two", "three", "five"), "5", "5", (True, True, True), {"subset": "easy"}, "right"),
    Trajectory("How many pears?", ("one", "four"), "2", "4", (True, False), {"subset": "hard"}, "hit"),
    Trajectory("How many plums?", ("six", "nine", "ten"), "3", "10", (False, None, None), {"subset": "hard"}, "missed"),
    Trajectory("How many nuts?", ("seven",), "7", "7", None, {"subset": "easy"}, "unjudged"),
    Trajectory(HOSTILE, (HOSTILE, "long" * 200), None, HOSTILE, (True, None), {"subset": HOSTILE}, f"odd {HOSTILE}"),
]


def line(name: str, *rewards: float, **more: Any) -> StepRewards:
    return StepRewards(name, rewards, "cpmi", cost=Cost(0, 1, 1.0), **more)


ODD = TRAJECTORIES[-1].id
FIRST = [
    line("right", 1, 0.5, 1, details={"answers": ["5", "6", HOSTILE], "kinds": ["gold", "rule", "own"]}),
    line("hit", 0.5, -2),
    line("missed", 2, 1, -1),
    StepRewards("unjudged", (), "cpmi", error=f"out of memory {HOSTILE}"),
    line(ODD, 0.1, -0.1),
]
SECOND = [line("right", 3, 2, 1), line("hit", 2, 1), line("missed", 1, 2, 3), line("unjudged", 4)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return report(folder, TRAJECTORIES, {"first": FIRST, "second": SECOND})


def report(folder: Path, trajectories: list[Trajectory], runs: dict[str, list[StepRewards]]) -> str:
    write_records(folder / "t.jsonl", trajectories)
    for name, records in runs.items():
        write_records(folder / f"{name}.jsonl", records)
    with Grader() as grader:
        paths = [folder / f"{name}.jsonl" for name in runs]
        done = write_report(paths, folder / "report.html", folder / "t.jsonl", grader=grader, count=20)
    return done.output.as_uri()


@dataclass
class View:
    """A page, what it asked for, and what it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ids(self) -> list[str]:
        return self.page.locator(".row b").all_text_contents()

    def select(self, control: str, value: str) -> None:
        self.page.locator(f"#{control}").select_option(value)

    def chosen(self) -> str:
        return self.page.locator("#detail h3").text_content() or ""

    def count(self) -> str:
        return self.page.locator("#count").text_content() or ""

    def type(self, text: str) -> None:
        self.page.locator("#q").fill(text)
        self.page.wait_for_timeout(200)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    views: list[View] = []

    def open_(address: str, **options: Any) -> View:
        page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        view = View(page)
        page.on("request", lambda request: view.requests.append(request.url))
        page.on("console", lambda message: view.complaints.append(message.text))
        page.on("pageerror", lambda error: view.complaints.append(str(error)))
        page.goto(address)
        views.append(view)
        return view

    yield open_
    complaints = [complaint for view in views for complaint in view.complaints]
    for view in views:
        view.page.close()
    assert complaints == []


@pytest.fixture
def view(open_page: Any, address: str) -> View:
    opened: View = open_page(address)
    return opened


def test_it_loads_from_a_file_and_asks_for_nothing_else(view: View, address: str) -> None:
    view.page.wait_for_timeout(300)
    assert view.requests == [address]
    assert view.count() == "5 trajectories"
    assert view.ids()[:4] == ["right", "hit", "missed", "unjudged"]
    assert view.chosen() == "right"


def test_the_policy_lets_nothing_out_and_nothing_in(open_page: Any, address: str) -> None:
    """An injected script, handler, style or request is stopped by the page itself."""
    view = open_page(address)
    blocked: list[tuple[str, str | None]] = []
    view.page.on("requestfailed", lambda request: blocked.append((request.url, request.failure)))
    view.page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "window.ran = 1"; document.body.append(script); } catch (error) {}
          const image = document.createElement("img");
          image.src = "https://example.invalid/x.png";
          document.body.append(image);
        }"""
    )
    view.page.wait_for_timeout(200)
    assert view.page.evaluate("window.ran") is None
    assert blocked == [("https://example.invalid/x.png", "csp")]
    assert any("Content Security Policy" in complaint for complaint in view.complaints)
    view.complaints.clear()


@pytest.mark.parametrize(
    ("control", "value", "ids"),
    [
        ("subset", "hard", ["hit", "missed"]),
        ("outcome", "right", ["right", "unjudged"]),
        ("outcome", "wrong", ["hit", "missed"]),
        ("human", "error", ["hit", "missed"]),
        ("human", "none", ["unjudged"]),
        ("lowest", "hit", ["hit"]),
        ("lowest", "missed", ["missed"]),
        ("lowest", "differ", ["right", "missed"]),
        ("attempt", "failed", ["unjudged"]),
        ("attempt", "missing", []),
    ],
)
def test_filters_filter(control: str, value: str, ids: list[str], view: View) -> None:
    view.select(control, value)
    assert view.ids() == ids
    assert view.count() == f"{len(ids)} of 5 trajectories"
    view.page.locator("#reset").click()
    assert len(view.ids()) == 5


def test_filters_are_about_the_chosen_run(view: View) -> None:
    view.select("attempt", "missing")
    view.select("run", "1")
    assert view.ids() == [ODD]
    view.select("attempt", "")
    view.select("lowest", "hit")
    assert view.ids() == ["hit", "missed"]


def test_search_looks_at_ids_questions_and_steps(view: View) -> None:
    for text, ids in (("PLUMS", ["missed"]), ("four", ["hit"]), ("unjud", ["unjudged"]), ("zebra", [])):
        view.type(text)
        assert view.ids() == ids
    assert view.page.locator("#list").text_content() == "No trajectory is like that."
    view.type("$\\frac{1}{2}$")
    assert view.count() == "1 of 5 trajectories"


def test_orders(view: View) -> None:
    """Surprise, in units of 2: missed (2 - 0) / 2, odd 0.1 / 2, right (0 - 0.5) / 2, hit (-2 - 0.5) / 2; none: last."""
    view.select("sort", "surprise")
    assert [i[:3] for i in view.ids()] == ["mis", "odd", "rig", "hit", "unj"]
    view.select("sort", "id")
    assert [i[:3] for i in view.ids()] == ["hit", "mis", "odd", "rig", "unj"]
    view.select("sort", "steps")
    assert view.ids()[:3] == ["right", "missed", "hit"]
    view.select("sort", "file")
    assert view.ids()[0] == "right"


def test_keys(view: View) -> None:
    press = view.page.keyboard.press
    press("j")
    press("j")
    assert view.chosen() == "missed"
    press("k")
    assert view.chosen() == "hit"
    assert view.page.locator("[aria-selected=true] b").text_content() == "hit"
    press("r")
    assert view.page.locator("#run").input_value() == "1"
    assert "second" in (view.page.locator(".steps thead").text_content() or "")
    press("/")
    assert view.page.evaluate("document.activeElement.id") == "q"
    view.page.keyboard.type("jr")
    assert view.page.locator("#q").input_value() == "jr"
    assert view.page.locator("#run").input_value() == "1"
    press("Escape")
    assert view.page.evaluate("document.activeElement.id") == "list"
    view.page.locator("#reset").click()
    view.page.locator("#list").focus()
    press("End")
    assert view.chosen() == ODD
    press("ArrowUp")
    assert view.chosen() == "unjudged"
    press("?")
    assert view.page.locator("#keys").is_visible()
    press("j")
    assert view.chosen() == "unjudged"  # behind the dialog nothing moves
    press("Escape")
    assert not view.page.locator("#keys").is_visible()


def test_what_one_trajectory_shows(view: View) -> None:
    view.page.locator(".row", has_text="pears").click()
    rows = view.page.locator(".steps tbody tr")
    cells = rows.nth(1).locator("th, td").all_text_contents()
    assert cells == ["2", "✗ wrongfirst wrong", "−2.00▾ lowest", "four"]
    assert rows.nth(1).locator("td.reward").get_attribute("class") == "reward m4"
    assert rows.nth(0).locator("td.reward").get_attribute("class") == "reward p1"
    assert "4 ✗ wrong" in (view.page.locator(".answers").text_content() or "")
    view.page.locator("#side").check()
    assert view.page.locator(".steps thead th").all_text_contents() == [
        "#", "People", "first.jsonl", "second.jsonl", "Step",
    ]  # fmt: skip
    view.page.locator(".row", has_text="plums").click()
    labels = view.page.locator(".steps tbody .mark").all_text_contents()
    assert labels == ["✗ wrong", "– not annotated", "– not annotated"]


def test_failures_and_gaps_are_shown(view: View) -> None:
    view.page.locator(".row", has_text="nuts").click()
    assert "first.jsonl failed here: out of memory" in (view.page.locator(".failure").text_content() or "")
    view.page.locator(".row", has_text="odd").click()
    view.select("run", "1")
    assert view.page.locator(".failure").text_content() == "second.jsonl has no line for this trajectory."


def test_hostile_texts_are_texts(view: View) -> None:
    view.page.locator(".row", has_text="odd").click()
    step = view.page.locator(".steps .text").first
    assert step.text_content() == HOSTILE
    assert step.evaluate("node => getComputedStyle(node).whiteSpaceCollapse") == "preserve"
    assert view.page.locator(".question").text_content() == HOSTILE
    view.page.locator(".row", has_text="apples").click()
    assert HOSTILE in (view.page.locator(".answers").text_content() or "")
    assert view.page.locator("img").count() == 0
    assert view.page.locator("script").count() == 2
    assert view.page.evaluate("window.ran") is None
    assert HOSTILE in (view.page.locator("#subset").text_content() or "")


def test_a_view_can_be_linked(view: View, open_page: Any, address: str) -> None:
    view.select("human", "error")
    view.select("run", "1")
    view.page.wait_for_timeout(300)
    view.page.locator(".row", has_text="plums").click()
    view.page.wait_for_timeout(300)
    link = view.page.url
    assert link.startswith(f"{address}#id=missed&")
    again = open_page(link)
    assert again.chosen() == "missed"
    assert again.ids() == ["hit", "missed"]
    assert again.page.locator("#run").input_value() == "1"
    again.page.evaluate("location.hash = 'id=hit'")
    again.page.wait_for_function("document.querySelector('#detail h3').textContent === 'hit'")
    assert len(again.ids()) == 5
    assert open_page(f"{address}#id=nobody&sort=none&human=9").chosen() == "right"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, open_page: Any, address: str) -> None:
    page = open_page(address, color_scheme=scheme).page
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.locator(".figure text").first.evaluate("node => getComputedStyle(node).fill")
    dark_ground, dark_ink = (sum(json.loads(f"[{color[4:-1]}]")) < 384 for color in (ground, ink))
    assert (dark_ground, dark_ink) == ((True, False) if scheme == "dark" else (False, True))


@pytest.mark.parametrize(("width", "height"), [(360, 700), (640, 450)])  # a phone; a laptop's window at 200 %
def test_narrow_windows_do_not_scroll_sideways(width: int, height: int, open_page: Any, address: str) -> None:
    view = open_page(address, viewport={"width": width, "height": height})
    for name in ("apples", "odd"):
        view.page.locator(".row", has_text=name).click()
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width
        detail = view.page.locator("#detail")
        assert detail.evaluate("node => node.scrollWidth <= node.clientWidth")
    roles = view.page.locator(".steps :is(tr, th, td)").evaluate_all("all => all.map(one => one.role)")
    assert set(roles) == {"row", "columnheader", "rowheader", "cell"}


def test_focus_can_be_seen(view: View) -> None:
    view.page.keyboard.press("Tab")
    assert view.page.evaluate("document.activeElement.className") == "skip"
    assert view.page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    outline = view.page.locator(".skip").evaluate("node => getComputedStyle(node).outlineStyle")
    assert outline == "solid"
    names = view.page.locator("#filters :is(input, select)").evaluate_all("all => all.map(one => one.labels.length)")
    assert len(names) >= 7
    assert set(names) == {1}


def test_five_thousand_trajectories_stay_quick(open_page: Any, tmp_path: Path) -> None:
    """Generous bounds: other things may be running."""
    steps = tuple(f"Step {i}: " + "the amount grows by three and is then halved again. " * 3 for i in range(7))
    labels = (True, True, False, None, None, None, None)
    many = [
        Trajectory(f"Question {i}? " + "A farmer has many sheep. " * 8, steps, "1", str(i % 2), labels, id=f"t{i}")
        for i in range(5000)
    ]
    runs = [line(t.id, *((i * 7 + j * 13) % 11 - 5.0 for j in range(7))) for i, t in enumerate(many)]
    address = report(tmp_path, many, {"one": runs, "two": runs})
    view = open_page(address)
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    view.page.wait_for_function(paint)
    assert view.page.evaluate(paint) < 6000
    assert view.page.locator(".row").count() < 60
    start = time.monotonic()
    view.page.keyboard.press("j")
    assert view.chosen() == "t1"
    view.select("sort", "surprise")
    view.select("outcome", "right")
    assert view.count() == "2,500 of 5,000 trajectories"
    view.type("question 4321")
    assert view.ids() == ["t4321"]
    assert time.monotonic() - start < 8
    linked = open_page(f"{address}#id=t4000")
    row = linked.page.locator(".row[aria-selected=true]")
    assert row.locator("b").text_content() == "t4000"
    box, place = linked.page.locator("#list").bounding_box(), row.bounding_box()
    assert box is not None
    assert place is not None
    assert box["y"] <= place["y"] <= box["y"] + box["height"] - place["height"]
