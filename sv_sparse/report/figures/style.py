"""Look of figures and pages: colors for light and dark, axes, legends, SVG."""

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

# Inches. A page shows a figure 320 to 400 pixels wide, where its letters are 10 to 13 pixels high.
WIDTH = 4.0

# Colors in light and in dark. matplotlib draws in the light ones; SVG gets CSS variables of these
# names in their place, so that a figure follows the reader's system (DECISIONS 51). The series have
# the colors of Okabe and Ito (2008), which color-blind people can distinguish, moved towards the
# text's for a contrast of at least 3 to the background. Series also differ in dashes or markers.
PALETTE = {
    "text": ("#1c1e22", "#e8eaed"),
    "muted": ("#59606b", "#a8b0bb"),
    "grid": ("#dde1e6", "#353b44"),
    "background": ("#fefefe", "#16181c"),
    "s1": ("#0072b2", "#5ab4ea"),
    "s2": ("#c94f00", "#f2904a"),
    "s3": ("#00805f", "#35c79d"),
    "s4": ("#a8487f", "#e595c4"),
    "s5": ("#806400", "#dcc04a"),
    "s6": ("#5d4fb0", "#ada3f2"),
}
TEXT, MUTED, GRID, BACKGROUND = (PALETTE[role][0] for role in ("text", "muted", "grid", "background"))
SERIES = tuple(PALETTE[f"s{number}"][0] for number in range(1, 7))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
HOLLOW: dict[str, Any] = {"markerfacecolor": BACKGROUND, "markeredgewidth": 1.5, "linestyle": "none"}

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": TEXT,
    # A $ in the name of a list is a $.
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": TEXT,
    "figure.facecolor": BACKGROUND,
    "axes.facecolor": BACKGROUND,
    # Of tensorboard's pictures; SVG has none.
    "figure.dpi": 150,
    # Text stays text: it can be searched and copied, and has the reader's fonts.
    "svg.fonttype": "none",
    # Ids are hashes; a fixed salt makes equal figures equal files.
    "svg.hashsalt": "sv-sparse",
}
for _axis in ("xtick", "ytick"):
    _RC |= {f"{_axis}.color": GRID, f"{_axis}.labelcolor": MUTED, f"{_axis}.labelsize": 9}
# Points around a figure in a file of its own.
_MARGIN = 8
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class FigureFile(NamedTuple):
    """Finished figure, by matplotlib and as the SVG that it writes; ``alt_text`` is its caption, too."""

    name: str
    title: str
    alt_text: str
    figure: Figure
    svg: str


@contextmanager
def report_style() -> Iterator[None]:
    """Apply the look of this project to figures that are drawn inside."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # matplotlib's font may lack letters of a name; SVG is shown in the reader's own fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def new_figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of some inches, and ``rows`` axes, one above the other, with a common x axis."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def render_figure(name: str, title: str, alt_text: str, figure: Figure) -> FigureFile:
    """Return a finished figure with its SVG; to be called inside ``report_style``."""
    buffer = io.StringIO()
    # A date would make equal figures different files.
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return FigureFile(name, title, alt_text, figure, buffer.getvalue())


def log_ticks(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers, and two ticks or more within a decade."""
    axes.set_yscale("log")
    low, high = axes.yaxis.get_view_interval()
    subs = (1, 2, 5) if high < 200 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def label_rows(axes: Axes, positions: Sequence[float], labels: Sequence[str], num_rows: int, size: int) -> None:
    """Label rows at positions of a horizontal chart of ``num_rows``, the first at the top, in points of ``size``."""
    axes.set_yticks(positions, labels, fontsize=size)
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def legend_above(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int = 2) -> None:
    """Add a legend above the axes; long labels lose their beginnings."""
    # matplotlib hides labels that begin with "_".
    texts = [re.sub("^_", "\N{WORD JOINER}_", shorten(label, 44)) for label in labels]
    figure.legend(list(handles), texts, loc="outside upper left", ncols=columns, borderaxespad=0.0, handlelength=1.8)


def shorten(name: str, max_length: int) -> str:
    """Return a name in at most ``max_length`` letters, without its beginning.

    >>> shorten("blocks.1.res2net.convs.0.conv", 16)
    '…t.convs.0.conv'
    """
    return name if len(name) <= max_length else "…" + name[-max_length + 2 :]


def inline_svg(figure: FigureFile, prefix: str) -> str:
    """Return an svg element for an HTML page, in its colors; ``prefix`` tells its ids from other figures'."""
    root = _themed_svg(figure, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for element in root.iter():
        # HTML has no namespaces.
        element.tag = element.tag.removeprefix(_SVG)
    return ElementTree.tostring(root, encoding="unicode")


def standalone_svg(figure: FigureFile) -> str:
    """Return the figure as an SVG file that is light or dark as its reader's system is."""
    root = _themed_svg(figure, "f")
    _, _, inner_width, inner_height = map(float, root.attrib["viewBox"].split())
    width = inner_width + 2 * _MARGIN
    height = inner_height + 2 * _MARGIN
    size = {"width": f"{width:g}", "height": f"{height:g}"}
    # A rectangle and a margin, since a viewer's background may have any color.
    root.attrib |= {"width": f"{width:g}pt", "height": f"{height:g}pt"}
    root.set("viewBox", f"{-_MARGIN} {-_MARGIN} {width:g} {height:g}")
    background = {"x": str(-_MARGIN), "y": str(-_MARGIN), "style": "fill: var(--background)"}
    root.insert(0, ElementTree.Element(f"{_SVG}rect", background | size))
    return _file_text(root, css_variables())


def fixed_svg(figure: FigureFile, scheme: str, width: int = 600) -> str:
    """Return the figure as an SVG file without a background, for pages that choose between two files.

    Args:
        figure: the figure.
        scheme: "light" or "dark".
        width: pixels that a page shows it in, where there is room.
    """
    root = _themed_svg(figure, "f")
    _, _, inner_width, inner_height = map(float, root.attrib["viewBox"].split())
    root.attrib |= {"width": str(width), "height": f"{width * inner_height / inner_width:.0f}"}
    text = _file_text(root, "")
    for name, (light_color, dark_color) in PALETTE.items():
        text = text.replace(f"var(--{name})", light_color if scheme == "light" else dark_color)
    return text


def _file_text(root: ElementTree.Element, css: str) -> str:
    """Return the text of an SVG file with a style sheet."""
    style = ElementTree.Element(f"{_SVG}style")
    style.text = f"{css} text {{ font-family: {_FONTS} }} path {{ stroke-linejoin: round }}".strip()
    root.insert(0, style)
    ElementTree.register_namespace("", _SVG.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def css_variables() -> str:
    """Return CSS that defines the colors of PALETTE as variables, in light and in dark."""
    light, dark = "", ""
    for name, (light_color, dark_color) in PALETTE.items():
        light += f"--{name}: {light_color}; "
        dark += f"--{name}: {dark_color}; "
    return f":root {{ {light}}} @media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}"


def _themed_svg(figure: FigureFile, prefix: str) -> ElementTree.Element:
    """Return SVG with CSS variables as colors, the page's fonts, prefixed ids and a description."""
    # Ids get a prefix, as those of two figures in one page would clash.
    reference = re.compile(r'(url\(|href=")#([\w-]+)')
    referenced_ids = {element_id for _, element_id in reference.findall(figure.svg)}
    root = ElementTree.fromstring(reference.sub(rf"\1#{prefix}-\2", figure.svg))
    root.attrib |= {"role": "img", "aria-label": figure.alt_text}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{_SVG}metadata", f"{_SVG}style"}:
                parent.remove(child)
    for element in root.iter():
        style = element.attrib.get("style")
        if style is not None:
            for name, (light, _) in PALETTE.items():
                style = style.replace(light, f"var(--{name})")
            element.set("style", re.sub(r"\bfont: ([\d.]+px)[^;]*", r"font-size: \1", style))
        # matplotlib also writes ids that nothing refers to.
        element_id = element.attrib.pop("id", None)
        if element_id in referenced_ids:
            element.set("id", f"{prefix}-{element_id}")
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))
    return root
