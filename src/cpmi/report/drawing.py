"""How figures look, and what turns one into a file or into an SVG inside the page."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

INK, MUTED, FAINT, GROUND = "#1d1c1a", "#6a6760", "#dcd8d0", "#fefefe"
RIGHT, WRONG = "#0072b2", "#c44e00"  # blue and vermilion: told apart by any eyes
RUN_COLORS = ("#0073b3", "#00805d", "#a8457f", "#986300")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = "osD^vP"

# A color of a figure is a variable of the page, which has another value in the dark.
VARIABLES = {
    INK: "--ink", MUTED: "--muted", FAINT: "--line", GROUND: "--surface",
    RIGHT: "--fig-right", WRONG: "--fig-wrong",
    **{color: f"--fig-{i}" for i, color in enumerate(RUN_COLORS, start=1)},
}  # fmt: skip

_STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": MUTED, "grid.color": FAINT, "grid.linewidth": 0.7,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7, "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round", "legend.frameon": False, "legend.fontsize": 8.5,
    "figure.facecolor": "white", "axes.facecolor": "none",
    "text.parse_math": False,  # a run may be called "a$b$"
    "svg.hashsalt": "cpmi", "savefig.dpi": 200,
}  # fmt: skip

WIDTH, HEIGHT = 3.6, 2.7  # inches, of one panel
LINE = 0.2  # inches, of one line of a legend


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is special about this one; empty where there is only one.
        label: what the panel shows, in words, for those who cannot see it.
        draw: draws it.
        lines: of the legend below it.
    """

    title: str
    label: str
    draw: Callable[[Axes], None]
    lines: int = 0


def run_look(index: int) -> dict[str, Any]:
    """Color and dash of the n-th run, the same in every figure; dashes and colors repeat at different times."""
    dash = DASHES[(index + index // len(RUN_COLORS)) % len(DASHES)]
    return {"color": RUN_COLORS[index % len(RUN_COLORS)], "linestyle": dash}


def legend_below(ax: Axes, columns: int = 1) -> None:
    """A legend under the label of the x axis, whatever the height of the axes."""
    down = ScaledTranslation(0, -0.44, ax.figure.dpi_scale_trans)
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, 0),
        bbox_transform=ax.transAxes + down,
        borderaxespad=0,
        ncols=columns,
        handlelength=2.6,
        columnspacing=1.5,
    )


def few_marks(axis: Axis) -> None:
    """At most so many marks that their labels do not meet."""
    axis.set_major_locator(MaxNLocator(5))


def short(name: str, most: int = 30) -> str:
    """A name that fits into a figure; what XML cannot hold is replaced."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


# --- to a file ------------------------------------------------------------------------------------------------------

Format = Literal["png", "svg", "pdf"]
FORMATS: dict[str, Format] = {".png": "png", ".svg": "svg", ".pdf": "pdf"}


def image(panels: Sequence[Panel], kind: Format) -> bytes:
    """The panels side by side, for a file."""
    return _drawn(panels, kind, {})


_NO_DATE: dict[Format, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def _drawn(panels: Sequence[Panel], kind: Format, more_style: dict[str, Any]) -> bytes:
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _style(more_style):
        height = HEIGHT + LINE * max(panel.lines for panel in panels)
        figure = Figure(figsize=(WIDTH * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, panel in zip(axes, panels, strict=False):
            panel.draw(ax)
            if len(panels) > 1:
                ax.set_title(short(panel.title))
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=_NO_DATE[kind])
    return buffer.getvalue()


@contextmanager
def _style(more: dict[str, Any]) -> Iterator[None]:
    with style.context({**_STYLE, **more}, after_reset=True), warnings.catch_warnings():
        # Names of runs may have letters that the built-in font lacks; the page's font will have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


# --- into the page --------------------------------------------------------------------------------------------------

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


def inline_svg(panel: Panel, prefix: str) -> str:
    """The panel as an SVG element whose colors are the page's, and whose text is text.

    Styles become attributes, so that the page can forbid inline styles.

    Args:
        prefix: of the ids inside, different for every figure of a page.
    """
    drawn = _drawn([panel], "svg", {"svg.fonttype": "none", "figure.facecolor": "none"})
    root = ElementTree.fromstring(drawn)  # noqa: S314 - we made it
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "figure", "role": "img", "aria-label": panel.label}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = {value for node in root.iter() for value in _references(node)}
    for node in root.iter():
        _plain(node, used, prefix)
    return ElementTree.tostring(root, encoding="unicode")


def _references(node: ElementTree.Element) -> Iterator[str]:
    if target := node.get(_HREF):
        yield target.removeprefix("#")
    if clip := node.get("clip-path"):
        yield clip.removeprefix("url(#").removesuffix(")")


def _plain(node: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Without a namespace, a style, an id that nothing refers to, or a blank that nothing needs."""
    node.tag = node.tag.removeprefix(f"{{{_SVG}}}")
    name = node.attrib.pop("id", None)
    if name in used:
        node.set("id", f"{prefix}-{name}")
    if target := node.attrib.pop(_HREF, None):
        node.set("href", f"#{prefix}-{target.removeprefix('#')}")
    if clip := node.get("clip-path"):
        node.set("clip-path", clip.replace("#", f"#{prefix}-"))
    for rule in filter(None, (node.attrib.pop("style", "") or "").split(";")):
        key, _, value = rule.partition(":")
        if key.strip() != "font-family":
            node.set(key.strip(), _themed(value.strip()))
    if path := node.get("d"):
        node.set("d", " ".join(path.split()))
    if node.tag != "text":
        node.text = None
    node.tail = None


def _themed(value: str) -> str:
    return f"var({VARIABLES[value]})" if value in VARIABLES else value
