"""Bar charts of a run, by matplotlib, which the extra ``demo`` installs."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcp_fast.demo.record import METHODS, Cell, RunRecord
from dwcp_fast.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "draw_seconds", "draw_wire_bytes", "require_pictures", "to_svg", "write_png"]

COLOURS = {"raw": "#9aa1ab", "zstd-1": "#5b7fa6", "v1": "#c2985b", "v3": "#0f6b62"}
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
    """Seconds of every transfer: a panel per version and link, a group per state, a bar per method."""
    return _draw_grid(
        record,
        [link.name for link in record.links],
        lambda cell: cell.seconds,
        "seconds",
    )


def draw_wire_bytes(record: RunRecord) -> "Figure":
    """Bytes on the wire; one panel per version, for the first link, as they hardly depend on it."""
    return _draw_grid(record, [record.links[0].name], lambda cell: cell.wire_bytes / 1e6, "MB on the wire")


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


def _draw_grid(record: RunRecord, links: list[str], value: Callable[[Cell], float], unit: str) -> "Figure":
    import matplotlib
    from matplotlib.figure import Figure

    versions = list(dict.fromkeys(cell.version for cell in record.cells))
    states = [facts.name for facts in record.states]
    with matplotlib.rc_context(_STYLE):
        # One link: the versions side by side. Several: versions below each other, links side by side.
        rows, columns = (1, max(1, len(versions))) if len(links) == 1 else (max(1, len(versions)), len(links))
        figure = Figure(figsize=(10.5, 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, version in enumerate(versions):
            for column, link in enumerate(links):
                axis = axes[0][row] if len(links) == 1 else axes[row][column]
                cells = [c for c in record.cells if c.version == version and c.link == link]
                _draw_bars(axis, cells, states, value)
                title = version if len(links) == 1 else f"{link} · {version}"
                axis.set_title(title, fontsize=9.5, loc="left")
                if column == 0:
                    axis.set_ylabel(unit)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), frameon=False)
    return figure


def _draw_bars(axis: "Axes", cells: list[Cell], states: list[str], value: Callable[[Cell], float]) -> None:
    width = 0.8 / len(METHODS)
    for place, method in enumerate(METHODS):
        of_method = {cell.state: value(cell) for cell in cells if cell.method == method}
        where = [index for index, state in enumerate(states) if state in of_method]
        positions = [index - 0.4 + width * (place + 0.5) for index in where]
        heights = [of_method[states[index]] for index in where]
        bars = axis.bar(positions, heights, width * 0.92, color=COLOURS[method], label=method)
        axis.bar_label(bars, [_short(height) for height in heights], padding=1.5, fontsize=6.5, color=_INK)
    axis.set_xticks(range(len(states)), states)
    axis.margins(y=0.14)
    axis.set_axisbelow(True)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#b6bcc4")


def _short(value: float) -> str:
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"
