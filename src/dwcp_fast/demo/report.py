"""The results for people: a table for the terminal, ``report.html``, ``run.json`` and pictures.

Everything shown is computed from the :class:`~dwcp_fast.demo.record.RunRecord`; the cases that v3 did
not win come first, the worst on top.
"""

import io
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dwcp_fast.demo.pictures import draw_seconds, draw_wire_bytes, to_svg, write_png
from dwcp_fast.demo.record import METHODS, Cell, Loss, RunRecord, find_losses

__all__ = ["render_html", "render_text", "write_report"]

_Case = tuple[str, str, str]
_NUMBERS = range(3, 3 + 2 * len(METHODS))
_WIDE_COLUMNS = 116

_HOW = """\
Sender and receiver are two processes on one machine, joined by a relay in a third one that sets rate and
delay, shared by all connections of a direction. It ends TCP on both sides: it models no packet loss and no
congestion control, which flatters the methods with one connection.

Seconds run from the sender's first step on the network to the acknowledgement that the receiver has checked
the digest; v1 has no acknowledgement, so for it they run to the receiver's own check. The start of the
processes is not counted. Every case was run once, so differences of a few percent mean nothing.

Bytes on the wire are counted by the relay, in both directions, with framing and TLS. raw, zstd-1 and v1 run
in plain text and send every version whole, because they keep no base; v3 encrypts, authenticates and sends a
change as a difference.
"""


def write_report(out: Path, record: RunRecord, descriptions: dict[str, str]) -> list[Path]:
    """Write all results into ``out``.

    Args:
        out: an existing directory.
        record: the run.
        descriptions: a sentence for each state, by name.

    Returns:
        The files written: ``report.html``, ``run.json``, ``seconds.png``, ``wire.png``.

    Raises:
        OSError: a file cannot be written.
    """
    seconds, wire = draw_seconds(record), draw_wire_bytes(record)
    page, data = out / "report.html", out / "run.json"
    pictures = [out / "seconds.png", out / "wire.png"]
    page.write_text(render_html(record, descriptions, [to_svg(seconds), to_svg(wire)]), encoding="utf-8")
    data.write_text(json.dumps(record.to_dict(), indent=1) + "\n", encoding="utf-8")
    write_png(seconds, pictures[0])
    write_png(wire, pictures[1])
    return [page, data, *pictures]


def render_text(record: RunRecord, width: int, colour: bool) -> str:
    """The losses, the table and the claims as text.

    Args:
        record: the run.
        width: columns of the terminal.
        colour: whether the text may hold colour codes (the terminal is one, and NO_COLOR is not set).
    """
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=colour, no_color=not colour, highlight=False)
    losses = find_losses(record.cells)
    console.print(f"[bold]{_losses_title(losses)}[/bold]")
    if losses:
        console.print(_losses_table(losses, colour))
    if width >= _WIDE_COLUMNS:
        console.print(_cells_table(record, range(_NUMBERS.stop), colour))
    else:
        for first in _NUMBERS[:: len(METHODS)]:
            console.print(_cells_table(record, [0, 1, 2, *range(first, first + len(METHODS))], colour))
    for claim in record.claims:
        mark = "[green]held[/green]  " if claim.held else "[bold red]FAILED[/bold red]"
        console.print(f"{mark} {claim.text}: ", end="")
        console.print(claim.evidence, markup=False)
    return text.getvalue()


def render_html(record: RunRecord, descriptions: dict[str, str], pictures: list[str]) -> str:
    """The report as one HTML page that refers to nothing outside itself.

    Args:
        record: the run.
        descriptions: a sentence for each state, by name.
        pictures: SVG elements: seconds, bytes on the wire.
    """
    losses = find_losses(record.cells)
    held = sum(claim.held for claim in record.claims)
    verdict = (
        f"All {held} claims held."
        if record.ok
        else f"{len(record.claims) - held} of {len(record.claims)} claims did NOT hold."
    )
    machine = {**record.machine, **{f"{name} version": value for name, value in record.versions.items()}}
    sections = [
        f"<p class='verdict {'good' if record.ok else 'bad'}'>{escape(verdict)}</p>",
        f"<h2>{escape(_losses_title(losses))}</h2>",
        _html_table(_LOSS_HEAD, [_loss_row(loss) for loss in losses]) if losses else "",
        "<h2>What was claimed, and whether it held</h2>",
        _html_table(
            ("", "claim", "evidence"),
            [("held" if c.held else "FAILED", c.text, c.evidence) for c in record.claims],
        ),
        f"<h2>Seconds</h2><figure>{pictures[0]}</figure>",
        f"<h2>Bytes on the wire</h2><figure>{pictures[1]}</figure>",
        "<h2>Every transfer</h2>",
        _html_table(_cells_head(), _cells_rows(record), numeric_from=3),
        "<h2>The state that was moved</h2>",
        _html_table(
            ("state", "what it is", "MB", "zeros", "changed bytes", "changed 4 KiB pages", "zstd-1 ratio"),
            [
                (
                    facts.name,
                    descriptions.get(facts.name, ""),
                    f"{facts.bytes_1 / 1e6:.1f}",
                    f"{facts.zero_share:.1%}",
                    f"{facts.changed_byte_share:.2%}",
                    f"{facts.changed_page_share:.1%}",
                    f"{facts.zstd1_ratio_0:.2f}",
                )
                for facts in record.states
            ],
            numeric_from=2,
        ),
        "<h2>How it was measured</h2>",
        *[f"<p>{escape(paragraph)}</p>" for paragraph in _HOW.split("\n\n")],
        _html_table(("machine and software", ""), [(k.replace("_", " "), v) for k, v in machine.items()]),
    ]
    kind = "quick run" if record.quick else "full run"
    about = f"{record.started} · seed {record.seed} · {kind} of {record.duration_s:.0f} s"
    return _PAGE.format(about=escape(about), body="\n".join(sections))


_LOSS_HEAD = ("link", "state", "sent", "measure", "winner", "winner's", "v3's", "v3 / winner")


def _losses_title(losses: list[Loss]) -> str:
    if not losses:
        return "v3 won every case, in seconds and in bytes"
    return f"What v3 did not win ({len(losses)} cases, the worst first)"


def _loss_row(loss: Loss) -> tuple[str, ...]:
    if loss.measure == "seconds":
        values = (f"{loss.winner_value:.3f} s", f"{loss.v3_value:.3f} s")
    else:
        values = (f"{loss.winner_value / 1e6:.2f} MB", f"{loss.v3_value / 1e6:.2f} MB")
    return (loss.link, loss.state, loss.version, loss.measure, loss.winner, *values, f"{loss.ratio:.2f}×")


def _cases(record: RunRecord) -> dict[_Case, dict[str, Cell]]:
    cases: dict[_Case, dict[str, Cell]] = {}
    for cell in record.cells:
        cases.setdefault((cell.link, cell.version, cell.state), {})[cell.method] = cell
    return cases


def _cells_head() -> tuple[str, ...]:
    return ("link", "sent", "state", *(f"{m} s" for m in METHODS), *(f"{m} MB" for m in METHODS))


def _cells_rows(record: RunRecord) -> list[tuple[str, ...]]:
    """A row per case: seconds of each method, then megabytes on the wire; ``-`` where it failed."""
    rows = []
    for (link, version, state), by_method in _cases(record).items():
        found = [by_method.get(method) for method in METHODS]
        seconds = [f"{c.seconds:.2f}" if c and c.verified else "-" for c in found]
        megabytes = [f"{c.wire_bytes / 1e6:.2f}" if c and c.verified else "-" for c in found]
        rows.append((link, version, state, *seconds, *megabytes))
    return rows


def _losses_table(losses: list[Loss], colour: bool) -> Table:
    table = Table(*_LOSS_HEAD, box=_box(colour), pad_edge=False)
    for column in table.columns[5:]:
        column.justify = "right"
    for loss in losses:
        table.add_row(*_loss_row(loss))
    return table


def _cells_table(record: RunRecord, columns: Iterable[int], colour: bool) -> Table:
    """The given columns of :func:`_cells_rows`, with the best method of each row in bold."""
    columns = list(columns)
    head = _cells_head()
    table = Table(box=_box(colour), pad_edge=False)
    for index in columns:
        table.add_column(head[index], justify="right" if index in _NUMBERS else "left", no_wrap=True)
    previous = ""
    for row in _cells_rows(record):
        if previous and row[0] != previous:
            table.add_section()
        previous = row[0]
        best = {_lowest(row, _NUMBERS[: len(METHODS)]), _lowest(row, _NUMBERS[len(METHODS) :])}
        table.add_row(*[f"[bold green]{row[i]}[/bold green]" if i in best else row[i] for i in columns])
    return table


def _lowest(row: tuple[str, ...], columns: Iterable[int]) -> int:
    """The column with the lowest number; -1 when there is none."""
    numbers = [(float(row[column]), column) for column in columns if row[column] != "-"]
    return min(numbers)[1] if numbers else -1


def _box(colour: bool) -> box.Box:
    return box.SIMPLE_HEAD if colour else box.ASCII2


def _html_table(head: tuple[str, ...], rows: list[tuple[str, ...]], numeric_from: int | None = None) -> str:
    def cell(tag: str, index: int, value: str) -> str:
        names = []
        if numeric_from is not None and index >= numeric_from:
            names.append("n")
        if value == "FAILED":
            names.append("bad")
        kind = f" class='{' '.join(names)}'" if names else ""
        return f"<{tag}{kind}>{escape(value)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, v) for i, v in enumerate(head)) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows]
    return "<div class='wide'><table>" + "\n".join(lines) + "</table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dwcp demo</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff;
  max-width: 1080px; margin: 2.5rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.6rem; margin: 0; }}
h2 {{ font-size: 1.1rem; margin: 2.4rem 0 .6rem; }}
.about {{ color: #667; margin: .2rem 0 1.2rem; }}
.verdict {{ padding: .6rem .9rem; border-left: 4px solid; background: #f5f7f8; font-weight: 600; }}
.good {{ border-color: #0f6b62; }} .bad {{ border-color: #b3261e; color: #b3261e; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .28rem .7rem; border-bottom: 1px solid #e3e6ea; vertical-align: top; }}
th {{ color: #556; font-weight: 600; border-bottom-color: #b6bcc4; }}
.n {{ text-align: right; white-space: nowrap; }}
figure {{ margin: 0; }} figure svg {{ width: 100%; height: auto; }}
</style></head><body>
<h1>dwcp demo: raw, zstd-1, v1 and v3 over three links</h1>
<p class="about">{about}</p>
{body}
</body></html>
"""
