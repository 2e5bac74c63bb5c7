"""What the commands print: results on stdout, progress and logs on stderr."""

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import click

from dwcp_fast.cli.grouping import gather
from dwcp_fast.errors import DwcpError, exit_code_for
from dwcp_fast.reports import Progress

__all__ = ["Output", "format_bytes", "output_options", "report_failure", "report_usage"]

PROGRESS_S: Final = 0.1
PROGRESS_EVENT_S: Final = 1.0


@dataclass
class Output:
    """How a command prints.

    Attributes:
        json_lines: Whether events go to stdout, one JSON object a line.
        json_final: Whether one JSON object goes to stdout at the end.
        quiet: Whether stderr is kept for errors.
    """

    json_lines: bool
    json_final: bool
    quiet: bool
    _sequence: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def machine(self) -> bool:
        """Whether stdout is for a program."""
        return self.json_lines or self.json_final

    def event(self, told: dict[str, Any]) -> None:
        """Print an event if events are wanted."""
        if self.json_lines:
            self._print_json(told)

    def result(self, told: dict[str, Any], text: str) -> None:
        """Print a result: an object for a program, a line for a person."""
        if self.machine:
            self._print_json(told)
        else:
            with self._lock:
                show(text, sys.stdout)

    def note(self, text: str, *, needed: bool = False) -> None:
        """Tell a person something that is no result; what is needed also where quiet is asked for."""
        if needed or not self.quiet:
            with self._lock:
                show(text, sys.stderr)

    def _print_json(self, told: dict[str, Any]) -> None:
        with self._lock:
            stamp = {"ts": datetime.now(UTC).isoformat(), "seq": self._sequence}
            self._sequence += 1
            line = {"type": told.get("type", "result"), **stamp, **told} if self.json_lines else told
            print(json.dumps(line), flush=True)

    @contextmanager
    def progress(self, label: str, read: Callable[[], Progress]) -> Iterator[None]:
        """Show progress while the block runs: a bar on a terminal, an event a second for a program."""
        bar = sys.stderr.isatty() and not self.quiet and not self.json_lines and not is_automatic()
        if not bar and not self.json_lines:
            yield
            return
        ended = threading.Event()
        show = self._show_bar if bar else self._show_events

        def follow() -> None:
            # The session may be closed under it, which is the end of its progress and nothing else.
            with contextlib.suppress(DwcpError):
                show(label, read, ended)

        thread = threading.Thread(target=follow, name="dwcp-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2)

    def _show_events(self, label: str, read: Callable[[], Progress], ended: threading.Event) -> None:
        while not ended.wait(PROGRESS_EVENT_S):
            now = read()
            self.event(
                {
                    "type": "progress",
                    "what": label,
                    "state_bytes_done": now.state_bytes_done,
                    "state_bytes_total": now.state_bytes_total,
                    "wire_bytes": now.wire_bytes,
                    "lanes": now.lanes,
                    "path": asdict(now.path) if now.path else None,
                }
            )

    def _show_bar(self, label: str, read: Callable[[], Progress], ended: threading.Event) -> None:
        # Imported late: rich takes a tenth of a second, which a program need not pay.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[wire]}"),
        )
        console = Console(stderr=True)
        with Bar(*columns, console=console, refresh_per_second=1 / PROGRESS_S, transient=True) as shown:
            task = shown.add_task(label, total=None, wire="")
            while not ended.wait(PROGRESS_S):
                now = read()
                ratio = f" ({now.state_bytes_done / now.wire_bytes:.2f}x)" if now.wire_bytes else ""
                shown.update(
                    task,
                    completed=now.state_bytes_done,
                    total=now.state_bytes_total or None,
                    wire=f"wire {format_bytes(now.wire_bytes)}{ratio}, {now.lanes} lanes",
                )


def make_output(json: bool, json_lines: bool, quiet: bool, verbose: bool) -> Output:
    """Set up printing and logging for the command that runs now."""
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    output = Output(json_lines=json_lines, json_final=json, quiet=quiet)
    LAST.append(output)
    return output


output_options: Final = gather(
    "printer",
    make_output,
    click.option("--json", is_flag=True, help="One JSON object on stdout at the end."),
    click.option("--json-lines", is_flag=True, help="Events on stdout, one JSON object a line."),
    click.option("--quiet", "-q", is_flag=True, help="Nothing on stderr but errors."),
    click.option("--verbose", "-v", is_flag=True, help="Log what happens on stderr."),
)

LAST: Final[list[Output]] = []
"""The output of the command that ran last, for its failure: by then click's context is gone."""


def report_failure(error: BaseException) -> None:
    """Tell what ended a command: a line on stderr, and an object on stdout where a program reads it."""
    hint = error.hint if isinstance(error, DwcpError) else None
    message = describe(error)
    show(f"error: {message}", sys.stderr)
    if hint:
        show(f"hint: {hint}", sys.stderr)
    if isinstance(error, DwcpError) and error.resumable:
        show("hint: verified blocks were kept; run the same command again to continue", sys.stderr)
    if LAST and LAST[-1].machine:
        LAST[-1].result(failure_dict(error), message)


def report_usage(error: click.ClickException, arguments: list[str]) -> None:
    """Tell what is wrong with a command line; by itself it says whether a program reads the answer.

    Args:
        error: What click found.
        arguments: The command line, which need not have become options.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show(sys.stderr)
        return
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"`{context.command_path} -h` tells how it is used" if context else None
    show(f"error: {message}", sys.stderr)
    if hint:
        show(f"hint: {hint}", sys.stderr)
    if {"--json", "--json-lines"} & set(arguments):
        output = Output(json_lines="--json-lines" in arguments, json_final=True, quiet=True)
        told = {"type": "error", "message": message, "exit_code": error.exit_code, "code": "usage"}
        output.result({**told, "hint": hint, "resumable": False}, message)


def failure_dict(error: BaseException) -> dict[str, Any]:
    """Describe a failure for a program."""
    told = {"type": "error", "message": describe(error), "exit_code": exit_code_for(error)}
    if isinstance(error, DwcpError):
        return {**told, "code": error.code, "hint": error.hint, "resumable": error.resumable}
    return {**told, "code": code_of(error), "hint": None, "resumable": False}


def describe(error: BaseException) -> str:
    """Give the text of a failure in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes | str) else str(error.filename)
        return f"{printable(name)}: {error.strerror}"
    return printable(str(error)) or type(error).__name__


def printable(text: str) -> str:
    """Replace what no terminal or JSON reader takes: names on disk need not be text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def show(text: str, stream: TextIO) -> None:
    """Print for a person; what the stream has no letters for is replaced."""
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def code_of(error: BaseException) -> str:
    """Give a stable name to an exception that is not ours."""
    return "system" if isinstance(error, OSError) else "internal"


def is_automatic() -> bool:
    """Whether nobody watches: no animation in CI, nor where NO_COLOR asks for plain text."""
    return bool(os.environ.get("NO_COLOR") or os.environ.get("CI"))


def format_bytes(count: float) -> str:
    """Write a length as a person reads it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
