"""What figures and pages look like: colours by role in light and dark, axes, and SVG that follows both."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

WIDTH = 4.0  # inches; a page shows a figure 320 to 400 pixels wide, where its letters are 10 to 13 pixels high

# Light and dark. The series are those of Okabe and Ito, which colour-blind people tell apart, moved towards the ink for
# a contrast of at least 3 with the paper; series differ in their dashes or markers as well.
ROLES = {
    "ink": ("#1c1e22", "#e8eaed"),
    "soft": ("#59606b", "#a8b0bb"),
    "rule": ("#dde1e6", "#353b44"),
    "paper": ("#fefefe", "#16181c"),
    "s1": ("#0072b2", "#5ab4ea"),
    "s2": ("#c94f00", "#f2904a"),
    "s3": ("#00805f", "#35c79d"),
    "s4": ("#a8487f", "#e595c4"),
    "s5": ("#806400", "#dcc04a"),
    "s6": ("#5d4fb0", "#ada3f2"),
}
INK, SOFT, RULE, PAPER = (ROLES[name][0] for name in ("ink", "soft", "rule", "paper"))
SERIES = tuple(ROLES[f"s{number}"][0] for number in range(1, 7))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.dpi": 150,  # of the pictures for tensorboard; SVG has none
    "svg.fonttype": "none",
    "svg.hashsalt": "sv-sparse",  # equal figures are equal files
}
_MARGIN = 8  # points around a figure that is a file
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Drawn(NamedTuple):
    """A figure for people.

    Attributes:
        name: of its file, and in tensorboard.
        title: a line.
        text: what is to be seen, for who does not see it.
        figure: of matplotlib.
        svg: the same, as matplotlib writes it.
    """

    name: str
    title: str
    text: str
    figure: Figure
    svg: str


@contextmanager
def house_style() -> Iterator[None]:
    """Figures that are made inside look as they do everywhere in this project."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own fonts are used
        yield


def new_figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of WIDTH by ``height`` inches with ``rows`` axes, one above the other on one x axis."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def drawn(name: str, title: str, text: str, figure: Figure) -> Drawn:
    """A finished figure; inside ``house_style``."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return Drawn(name, title, text, figure, file.getvalue())


def log_ticks(axes: Axes, which: str = "y") -> None:
    """A logarithmic axis with plain numbers, at least two of them on less than a decade."""
    getattr(axes, f"set_{which}scale")("log")
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high < 200 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend_above(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int = 2) -> None:
    """A legend over the axes; labels may begin with anything."""
    shown = ["\N{WORD JOINER}" + label if label.startswith("_") else label for label in labels]  # _ would hide it
    figure.legend(list(handles), shown, loc="outside upper left", ncols=columns, borderaxespad=0.0, handlelength=1.8)


def shortened(name: str, length: int) -> str:
    """A name in at most ``length`` letters, its end kept.

    >>> shortened("blocks.1.res2net.convs.0.conv", 16)
    '…t.convs.0.conv'
    """
    return name if len(name) <= length else "…" + name[-length + 2 :]


def inline(figure: Drawn, prefix: str) -> str:
    """An svg element for an HTML page, in the page's colours; its ids begin with ``prefix``."""
    root = _themed(figure.svg, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": figure.text}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def standalone(figure: Drawn) -> str:
    """An SVG file that is light or dark as its reader is."""
    root = _themed(figure.svg, "f")
    root.attrib |= {"role": "img", "aria-label": figure.text}
    style = ElementTree.Element(f"{_NAMESPACE}style")
    style.text = f"{theme()} text {{ font-family: {_FONTS} }} path {{ stroke-linejoin: round }}"
    width, height = (float(side) + 2 * _MARGIN for side in root.attrib["viewBox"].split()[2:])
    sides = {"width": f"{width:g}", "height": f"{height:g}"}
    root.attrib |= {name: f"{side}pt" for name, side in sides.items()}
    root.set("viewBox", f"{-_MARGIN} {-_MARGIN} {width:g} {height:g}")
    corner = {"x": str(-_MARGIN), "y": str(-_MARGIN), "style": "fill: var(--paper)"}
    root.insert(0, ElementTree.Element(f"{_NAMESPACE}rect", corner | sides))
    root.insert(0, style)
    ElementTree.register_namespace("", _NAMESPACE.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def theme() -> str:
    """CSS variables of the roles, in light and dark."""
    light, dark = (" ".join(f"--{name}: {both[index]};" for name, both in ROLES.items()) for index in (0, 1))
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _themed(svg: str, prefix: str) -> ElementTree.Element:
    """Colours by role in place of numbers, no font but the page's, no ids but those in use, with the prefix."""
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{_NAMESPACE}metadata", f"{_NAMESPACE}style"}:
                parent.remove(child)
    for element in root.iter():
        style = element.attrib.get("style")
        if style is not None:
            element.set("style", _styled(style))
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF).replace("#", f"#{prefix}-"))
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{prefix}-"))
    return root


def _styled(style: str) -> str:
    for name, (light, _) in ROLES.items():
        style = style.replace(light, f"var(--{name})")
    return re.sub(r"\bfont: ([\d.]+px)[^;]*", r"font-size: \1", style)
