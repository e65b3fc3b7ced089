"""The page: one file that asks nothing of anyone else."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from cpmi import __version__
from cpmi.benchmarks.best_of_n import WITHOUT_REWARDS
from cpmi.compare import notes
from cpmi.report.data import embedded, page_data
from cpmi.report.drawing import inline_svg
from cpmi.report.figures import charts, choice_chart
from cpmi.report.material import Material
from cpmi.report.tables import benchmark_tables, correlations, summary_table
from cpmi.report.verdicts import verdicts

_TEMPLATES = Path(__file__).parent / "templates"


def render(material: Material, title: str | None = None) -> str:
    """The page as HTML; the same material gives the same page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    page = environment.get_template("report.html.jinja").render(
        title=title or _title(material),
        material=material,
        subsets=sorted({t.tags["subset"] for t in material.trajectories if "subset" in t.tags}),
        css=css,
        script=script,
        style_hash=_hash(css),
        script_hash=_hash(script),
        data=embedded(page_data(material)),
        version=__version__,
        **_contents(material),
    )
    return f"{page.rstrip()}\n"


def _contents(material: Material) -> dict[str, Any]:
    """What stands above the list of trajectories."""
    comparison = material.comparison
    figures = charts(material) if material.runs else []
    choice = choice_chart(material)
    svgs = {
        (chart.kind, index): inline_svg(panel, f"{chart.kind}{index}")
        for chart in (*figures, *([choice] if choice else []))
        for index, panel in enumerate(chart.panels)
    }
    return {
        "verdicts": verdicts(material),
        "summary": summary_table(comparison) if comparison else None,
        "correlations": correlations(comparison) if comparison else None,
        "notes": [*(notes(comparison) if comparison else ()), *material.notes],
        "charts": figures,
        "choice": choice,
        "svgs": svgs,
        "benchmarks": benchmark_tables(material.results),
    }


def _title(material: Material) -> str:
    rewards = (result.source for result in material.results if result.settings.get("rule") not in WITHOUT_REWARDS)
    names = [run.name for run in material.runs] or list(dict.fromkeys(rewards))
    return f"Step rewards: {', '.join(names)}" if names else "Answers chosen without rewards"


def _hash(text: str) -> str:
    """As a Content-Security-Policy wants it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
