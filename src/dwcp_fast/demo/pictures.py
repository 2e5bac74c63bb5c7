"""Bar charts of a run, by matplotlib, which the extra ``demo`` installs."""

import importlib.util
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcp_fast.demo.record import METHODS, Cell, RunRecord
from dwcp_fast.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "draw_seconds", "draw_wire_bytes", "require_pictures", "to_svg", "write_png"]

COLOURS = {"raw": "#b4bac2", "zstd-1": "#5b7fa6", "v1": "#c2985b", "xor-zstd-1": "#9d6b8f", "v3": "#0f6b62"}
_INK = "#30363d"
_GRID = "#e3e6ea"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "dwcp-demo",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def require_pictures() -> None:
    """Check that pictures can be drawn, before anything is run.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "the demo draws its pictures with matplotlib, which is not installed",
            hint="pip install 'dwcp-fast[demo]'",
        )


def draw_seconds(record: RunRecord) -> "Figure":
    """Time of every transfer: a row per version, a panel per link, a group per state, a bar per method."""
    rows = []
    for version in _versions(record):
        row = []
        for link in record.links:
            cells = _cells_of(record, link.name, version)
            if max((cell.seconds for cell in cells), default=0.0) < 1.0:
                panel = _Panel(f"{link.name}: {version}", cells, lambda cell: cell.seconds * 1e3, "ms")
            else:
                panel = _Panel(f"{link.name}: {version}", cells, lambda cell: cell.seconds, "seconds")
            row.append(panel)
        rows.append(row)
    return _draw_panels(record, rows)


def draw_wire_bytes(record: RunRecord) -> "Figure":
    """Bytes on the wire over the first link, for they hardly depend on it; one panel per version."""
    name = record.links[0].name
    values = [cell.wire_bytes / 1e6 for cell in record.cells if cell.link == name and cell.wire_bytes]
    # Whole decades, with room for the numbers on top.
    lowest = 10.0 ** math.floor(math.log10(min(values, default=1.0)))
    limits = (lowest, max(values, default=1.0) * 3)
    row = [
        _Panel(
            f"{name}: {version}",
            _cells_of(record, name, version),
            lambda cell: cell.wire_bytes / 1e6,
            "MB on the wire (log scale)",
            limits,
        )
        for version in _versions(record)
    ]
    return _draw_panels(record, [row])


def to_svg(figure: "Figure") -> str:
    """The figure as an SVG element to put into HTML."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    markup = text.getvalue()
    return markup[markup.index("<svg") :]


def write_png(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG file."""
    figure.savefig(path, format="png", dpi=150, facecolor="white")


def _versions(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(cell.version for cell in record.cells))


def _cells_of(record: RunRecord, link: str, version: str) -> list[Cell]:
    return [cell for cell in record.cells if (cell.link, cell.version) == (link, version)]


@dataclass(frozen=True)
class _Panel:
    """One bar chart; with ``limits`` its scale is logarithmic and runs from one to the other."""

    title: str
    cells: list[Cell]
    value: Callable[[Cell], float]
    unit: str
    limits: tuple[float, float] | None = None


def _draw_panels(record: RunRecord, panels: list[list[_Panel]]) -> "Figure":
    """A grid of bar charts with one legend."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullLocator

    rows, columns = max(1, len(panels)), max(map(len, panels), default=1)
    states = [facts.name for facts in record.states]
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        figure = Figure(figsize=(max(6.5, 4.6 * columns), 3.0 * rows + 0.4), layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, of_row in enumerate(panels):
            for column, panel in enumerate(of_row):
                axis = axes[row][column]
                if panel.limits is not None:
                    axis.set_yscale("log")
                    axis.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
                    axis.yaxis.set_minor_locator(NullLocator())
                _draw_bars(axis, panel.cells, states, panel.value)
                if panel.limits is not None:
                    axis.set_ylim(panel.limits)
                axis.set_title(panel.title, fontsize=10, fontweight="bold", loc="left", pad=8)
                axis.set_ylabel(panel.unit)
        handles = [Patch(color=COLOURS[method], label=method) for method in METHODS]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(METHODS), frameon=False)
    return figure


def _draw_bars(axis: "Axes", cells: list[Cell], states: list[str], value: Callable[[Cell], float]) -> None:
    methods = [method for method in METHODS if any(cell.method == method for cell in cells)]
    width = 0.86 / max(1, len(methods))
    for place, method in enumerate(methods):
        of_method = {cell.state: value(cell) for cell in cells if cell.method == method}
        where = [index for index, state in enumerate(states) if state in of_method]
        positions = [index - 0.43 + width * (place + 0.5) for index in where]
        heights = [of_method[states[index]] for index in where]
        bars = axis.bar(positions, heights, width * 0.9, color=COLOURS[method])
        weight = "bold" if method == "v3" else "normal"
        labels = [_short(height) for height in heights]
        axis.bar_label(bars, labels, padding=2, fontsize=7, color=_INK, fontweight=weight)
    axis.set_xticks(range(len(states)), states)
    axis.margins(x=0.03, y=0.14)
    axis.set_axisbelow(True)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#b6bcc4")


def _short(value: float) -> str:
    if value >= 9.95:
        return f"{value:.0f}"
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}".removeprefix("0")
