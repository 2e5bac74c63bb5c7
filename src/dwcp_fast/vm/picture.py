"""A page with a picture of how a move went, by matplotlib, which the extra ``demo`` installs."""

import html
import importlib.util
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dwcp_fast.errors import ConfigError
from dwcp_fast.vm.report import MigrationReport, Moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["require_pictures", "write_page"]

SENT: Final = "#5b7fa6"
WIRE: Final = "#0f6b62"
DIRTY: Final = "#c2985b"
STOPPED: Final = "#9d2f2f"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "dwcp-vm",
}
PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A guest moved</title>
<style>body{{font-family:sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#30363d}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #e3e6ea}}
th:first-child,td:first-child{{text-align:left}}svg{{max-width:100%;height:auto}}</style></head>
<body><h1>A guest moved</h1><p>{summary}</p>{picture}
<h2>Rounds</h2><table><tr><th>round</th><th>ended at (s)</th><th>left (MB)</th><th>written (MB/s)</th>
<th>sent (MB/s)</th></tr>{rounds}</table>
<h2>Figures</h2><table>{figures}</table></body></html>
"""


def require_pictures() -> None:
    """Check that pictures can be drawn, before anything is moved.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "the report draws its picture with matplotlib, which is not installed",
            hint="pip install 'dwcp-fast[demo]'",
        )


def write_page(report: MigrationReport, path: Path, summary: str) -> None:
    """Write a page of its own, without anything to fetch.

    Args:
        report: What was done.
        path: The file.
        summary: The same in a sentence.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    require_pictures()
    told = {name: value for name, value in report.to_dict().items() if name not in {"timeline", "rounds"}}
    figures = "".join(row(name, value if value is not None else "unknown") for name, value in told.items())
    rounds = "".join(
        row(
            one.number,
            f"{one.at_s:.2f}",
            *(
                f"{count / 1e6:.1f}"
                for count in (one.remaining_bytes, one.dirty_bytes_per_s, one.bytes_per_s)
            ),
        )
        for one in report.rounds
    )
    page = PAGE.format(
        summary=html.escape(summary), picture=to_svg(draw(report)), rounds=rounds, figures=figures
    )
    path.write_text(page, encoding="utf-8")


def row(*cells: object) -> str:
    """A row of a table."""
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def draw(report: MigrationReport) -> "Figure":
    """Rates above, what is left below; rounds as lines, the time in which the guest stood still as a band."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        moments = report.timeline
        times = [moment.at_s for moment in moments]
        above.step(times, rates(moments, "sent_bytes"), where="post", color=SENT, label="QEMU sends")
        above.step(times, rates(moments, "wire_bytes"), where="post", color=WIRE, label="on the link")
        dirty = [moment.dirty_bytes_per_s / 1e6 for moment in moments]
        above.step(times, dirty, where="post", color=DIRTY, label="the guest writes")
        above.set_ylabel("MB/s")
        left = [moment.remaining_bytes / 1e6 for moment in moments]
        below.plot(times, left, color=SENT, label="memory left")
        backlog = [moment.backlog_bytes / 1e6 for moment in moments]
        below.plot(times, backlog, color=WIRE, label="under way")
        below.set_ylabel("MB")
        below.set_xlabel("seconds")
        for axis in (above, below):
            mark(axis, report)
            axis.legend(frameon=False, loc="upper right")
    return figure


def mark(axis: "Axes", report: MigrationReport) -> None:
    """Show the rounds and when the guest stood still."""
    for ended in report.rounds:
        axis.axvline(ended.at_s, color="#b6bcc4", linewidth=0.7, linestyle=":")
    axis.axvspan(report.stopped_at_s, report.seconds, color=STOPPED, alpha=0.35, linewidth=0)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def rates(moments: tuple[Moment, ...], counter: str) -> list[float]:
    """Megabytes a second of a counter from each moment to the next."""
    found = []
    for one, other in itertools.pairwise(moments):
        grown = getattr(other, counter) - getattr(one, counter)
        # A counter that begins anew, as after the disks, tells nothing.
        found.append(max(grown, 0) / 1e6 / max(other.at_s - one.at_s, 1e-3))
    return [*found, 0.0] if moments else []


def to_svg(figure: "Figure") -> str:
    """The figure as an element to put into HTML."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    markup = text.getvalue()
    return markup[markup.index("<svg") :]
