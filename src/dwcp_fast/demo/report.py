"""The results for people: a table for the terminal, ``report.html``, ``run.json`` and pictures.

Everything shown is computed from the :class:`~dwcp_fast.demo.record.RunRecord`; the cases that v3 did
not win come first, the worst on top.
"""

import io
import json
import math
from collections import Counter
from html import escape
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dwcp_fast.demo.pictures import draw_seconds, draw_wire_bytes, to_svg, write_png
from dwcp_fast.demo.record import METHODS, Cell, Loss, RunRecord, find_losses

__all__ = ["render_html", "render_text", "write_report"]

_Case = tuple[str, str, str]
_HOW = """\
Sender and receiver are two processes on one machine, joined by a relay in a third one that sets rate and
delay, shared by all connections of a direction. It ends TCP on both sides: it models no packet loss and no
congestion control, which flatters the methods with one connection.

Seconds run from the sender's first connection, handshakes included, to the acknowledgement that the receiver
has checked the digest; v1 has no acknowledgement, so for it they run to the receiver's own check. The start
of the processes is not counted. Nothing here waits for the disk; outside the demonstration v3 does, unless
told not to. Every case was run once, so differences of a few percent mean nothing.

Bytes on the wire are counted by the relay, in both directions, with framing and TLS. All but v3 run in plain
text, without authentication. raw, zstd-1 and v1 keep no base and send a change whole. xor-zstd-1 is what is
written by hand where both sides keep the last version: zstd over the XOR with it; it can send nothing else,
so it takes no part in version 0.
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
    """The losses, the tables and the claims as text.

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
        console.print(_table(_LOSS_HEAD, _loss_rows(losses), 4, colour))
    console.print(f"\n[bold]{_wins(record, losses)}[/bold]")
    console.print(_table(_COMPARISON_HEAD, _comparison(record), 1, colour))
    console.print()
    console.print("[bold]Seconds[/bold] (best of each line marked *)")
    console.print(_cells_table(_cases(record), "seconds", colour))
    first = record.links[0].name
    console.print(f"\n[bold]MB on the wire[/bold], {first}; the other links are in report.html")
    of_first = {case: cells for case, cells in _cases(record).items() if case[0] == first}
    console.print(_cells_table(of_first, "wire bytes", colour))
    console.print("\n[bold]Claims[/bold]")
    for claim in record.claims:
        mark = "[green]held[/green]  " if claim.held else "[bold red]FAILED[/bold red]"
        claimed = Table.grid(padding=(0, 1))
        claimed.add_row(mark, Text(claim.text))
        claimed.add_row("", Text(claim.evidence, style="dim"))
        console.print(claimed)
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
        _html_table(_LOSS_HEAD, _loss_rows(losses), numeric_from=4) if losses else "",
        f"<h2>{escape(_wins(record, losses))}</h2>",
        _html_table(_COMPARISON_HEAD, _comparison(record), numeric_from=1),
        "<h2>What was claimed, and whether it held</h2>",
        _html_table(
            ("", "claim", "evidence"),
            [("held" if c.held else "FAILED", c.text, c.evidence) for c in record.claims],
        ),
        f"<h2>Seconds</h2><figure>{pictures[0]}</figure>",
        f"<h2>Bytes on the wire</h2><figure>{pictures[1]}</figure>",
        "<h2>Every transfer</h2>",
        _html_table(
            ("link", "sent", "state", *(f"{m} s" for m in METHODS), *(f"{m} MB" for m in METHODS)),
            [
                (*case, *_values(cells, "seconds"), *_values(cells, "wire bytes"))
                for case, cells in _cases(record).items()
            ],
            numeric_from=3,
        ),
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


# Lines of ASCII and no more space than needed.
_PLAIN_BOX = box.Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)
_LOSS_HEAD = ("link", "state", "sent", "winner", "winner's", "v3's", "ratio")
_COMPARISON_HEAD = ("v3 against", "s, version 0", "s, change", "bytes, version 0", "bytes, change")


def _losses_title(losses: list[Loss]) -> str:
    if not losses:
        return "v3 won every case, in seconds and in bytes"
    return f"What v3 did not win ({len(losses)} cases, the worst first)"


def _wins(record: RunRecord, losses: list[Loss]) -> str:
    cases = sum("v3" in by_method for by_method in _cases(record).values())
    slower = sum(loss.measure == "seconds" for loss in losses)
    return (
        f"Of {cases} cases v3 was the fastest in {cases - slower}, and had the fewest bytes on the wire in "
        f"{cases - (len(losses) - slower)}."
    )


def _loss_rows(losses: list[Loss]) -> list[tuple[str, ...]]:
    """A row per loss, but one for all links where bytes were lost: they hardly depend on the link."""
    counts = Counter(_kind(loss) for loss in losses)
    rows: list[tuple[str, ...]] = []
    for loss in losses:
        count = counts.pop(_kind(loss), 0)
        if not count:
            continue
        if loss.measure == "seconds":
            values = (f"{_seconds(loss.winner_value)} s", f"{_seconds(loss.v3_value)} s")
        else:
            values = (f"{loss.winner_value / 1e6:.2f} MB", f"{loss.v3_value / 1e6:.2f} MB")
        link = loss.link if count == 1 else f"{count} links"
        rows.append((link, loss.state, loss.version, loss.winner, *values, f"{loss.ratio:.2f}×"))
    return rows


def _kind(loss: Loss) -> tuple[str, ...]:
    link = loss.link if loss.measure == "seconds" else ""
    return (loss.measure, link, loss.state, loss.version, loss.winner)


def _comparison(record: RunRecord) -> list[tuple[str, ...]]:
    """For each other method the geometric means of v3's seconds and bytes over its own."""
    versions = list(dict.fromkeys(cell.version for cell in record.cells))
    rows = []
    for method in METHODS[:-1]:
        means = []
        for measure in ("seconds", "wire_bytes"):
            for version in versions:
                ratios = [
                    getattr(cells["v3"], measure) / max(getattr(cells[method], measure), 1e-9)
                    for (_, of_version, _), cells in _cases(record).items()
                    if of_version == version and method in cells and "v3" in cells
                ]
                means.append(_ratio(math.exp(fmean(map(math.log, ratios)))) if ratios else "-")
        rows.append((method, *means))
    return rows


def _cases(record: RunRecord) -> dict[_Case, dict[str, Cell]]:
    cases: dict[_Case, dict[str, Cell]] = {}
    for cell in record.cells:
        cases.setdefault((cell.link, cell.version, cell.state), {})[cell.method] = cell
    return cases


def _ratio(value: float) -> str:
    return f"{value:.2f}×" if value >= 0.1 else f"{value:.3f}×"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _values(by_method: dict[str, Cell], measure: str) -> list[str]:
    """The value of each method; ``-`` where it took no part or failed."""
    values = []
    for cell in (by_method.get(method) for method in METHODS):
        if cell is None or not cell.verified:
            values.append("-")
        else:
            values.append(_seconds(cell.seconds) if measure == "seconds" else f"{cell.wire_bytes / 1e6:.2f}")
    return values


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], numeric_from: int, colour: bool) -> Table:
    table = Table(box=_box(colour), pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index >= numeric_from else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _cells_table(cases: dict[_Case, dict[str, Cell]], measure: str, colour: bool) -> Table:
    """A section per link and version, a line per state, with the best method of the line marked."""
    table = Table(box=_box(colour), pad_edge=False, show_edge=False)
    table.add_column("link, sent, state", no_wrap=True)
    for method in METHODS:
        table.add_column(method, justify="right", no_wrap=True)
    section = ""
    for (link, version, state), by_method in cases.items():
        heading = f"{link}, {version}"
        if heading != section:
            if section:
                table.add_section()
            table.add_row(f"[bold]{heading}[/bold]")
            section = heading
        values = _values(by_method, measure)
        numbers = [float(value) for value in values if value != "-"]
        marked = [
            f"[bold green]*{value}[/bold green]" if value != "-" and float(value) == min(numbers) else value
            for value in values
        ]
        table.add_row(f"  {state}", *marked)
    return table


def _box(colour: bool) -> box.Box:
    return box.SIMPLE_HEAD if colour else _PLAIN_BOX


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
  max-width: 1280px; margin: 2.5rem auto; padding: 0 1.2rem; }}
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
<h1>dwcp demo</h1>
<p class="about">{about}</p>
{body}
</body></html>
"""
