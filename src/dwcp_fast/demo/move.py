"""A real guest moves over a slow link while it writes, and checks its own memory afterwards."""

import dataclasses
import datetime
import json
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dwcp_fast.demo.guest import Machine, build_initramfs, downtime_s, why_missing
from dwcp_fast.demo.link import Link, LinkShape
from dwcp_fast.demo.record import Claim, describe_machine, describe_versions
from dwcp_fast.errors import ConfigError, DwcpError
from dwcp_fast.vm.accept import Acceptance
from dwcp_fast.vm.migrate import Migration
from dwcp_fast.vm.options import MigrateOptions
from dwcp_fast.vm.picture import require_pictures, write_page
from dwcp_fast.vm.report import MigrationReport

__all__ = ["MoveRecord", "MoveSettings", "run_move"]

SCHEMA: Final = "dwcp-demo-move/1"
BOOT_S: Final = 180.0
COME_S: Final = 60.0
WRITER_SHARE: Final = 0.5
"""Of the guest's memory, what its program writes."""
MIB: Final = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MoveSettings:
    """What is moved over which link.

    Attributes:
        memory_mib: Memory of the guest.
        pages_per_s: Pages that it writes each second.
        rate_bps: What the link carries, in bits a second.
        rtt_s: Its round trip, in seconds.
        max_downtime_s: For how long the guest may stand still, in seconds, without the way of the link.
    """

    memory_mib: int = 192
    pages_per_s: int = 500
    rate_bps: float = 100e6
    rtt_s: float = 0.02
    max_downtime_s: float = 0.3


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """What came of it.

    Attributes:
        started: When, as ISO 8601.
        settings: What was moved.
        machine: The machine.
        versions: Of what was used.
        report: What the move was.
        guest_downtime_s: For how long nobody heard the guest, as who listens to both consoles found.
        told: What the guest said of its memory on the other side.
        claims: What was to be shown, and whether it was.
    """

    started: str
    settings: MoveSettings
    machine: dict[str, str]
    versions: dict[str, str]
    report: MigrationReport
    guest_downtime_s: float
    told: str
    claims: tuple[Claim, ...]

    @property
    def ok(self) -> bool:
        """Whether every claim held."""
        return all(claim.held for claim in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "schema": SCHEMA,
            **fields,
            "settings": dataclasses.asdict(self.settings),
            "report": self.report.to_dict(),
            "claims": [dataclasses.asdict(claim) for claim in self.claims],
        }

    def sentences(self) -> list[str]:
        """Tell it to people, what did not hold first."""
        claims = sorted(self.claims, key=lambda claim: claim.held)
        report = self.report
        size, sent = report.memory_bytes / 1e6, report.wire_bytes / 1e6
        heard_ms, known_ms = self.guest_downtime_s * 1e3, report.downtime_s * 1e3
        return [
            *(f"{'held' if claim.held else 'FAILED'}: {claim.text} ({claim.evidence})" for claim in claims),
            f"{size:.0f} MB in {report.seconds:.1f} s, {len(report.rounds)} rounds, {sent:.1f} MB sent",
            f"silent for {heard_ms:.0f} ms to who listened; {known_ms:.0f} ms by what the two sides know",
        ]


def run_move(out: Path, settings: MoveSettings, say: Say) -> tuple[MoveRecord, list[Path]]:
    """Move a guest between two QEMUs on this machine, and write ``move.html`` and ``move.json``.

    Args:
        out: Directory for the results, made when missing.
        settings: What is moved over which link.
        say: Called with one line of progress at a time.

    Returns:
        What came of it, and the files.

    Raises:
        ConfigError: Something is missing on this machine; the message says what to install.
        DwcpError: The guest was not moved; it went on where it was.
        TimeoutError: The guest does not start, or does not answer.
        OSError: The results cannot be written.
    """
    require_pictures()
    missing = why_missing()
    if missing is not None:
        raise ConfigError(f"a guest cannot be run here: {missing}")
    out.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    # The names of Unix sockets have about a hundred bytes: not in `out`.
    with tempfile.TemporaryDirectory(prefix="dwcp-demo-") as work:
        say("building the guest: a kernel and a program that writes its memory and checks it")
        folder = Path(work)
        initramfs = build_initramfs(folder)
        report, silent_s, told, claims = move_guest(folder, initramfs, settings, say)
    record = MoveRecord(
        started=started,
        settings=settings,
        machine=describe_machine(),
        versions=describe_versions(),
        report=report,
        guest_downtime_s=silent_s,
        told=told,
        claims=claims,
    )
    page, data = out / "move.html", out / "move.json"
    write_page(report, page, "; ".join(record.sentences()))
    data.write_text(json.dumps(record.to_dict(), indent=2) + "\n", encoding="utf-8")
    return record, [page, data]


def move_guest(
    folder: Path, initramfs: Path, settings: MoveSettings, say: Say
) -> tuple[MigrationReport, float, str, tuple[Claim, ...]]:
    """Start a guest, move it while it writes, and ask it what it finds."""
    append = f"writer.mib={round(settings.memory_mib * WRITER_SHARE)}"
    memory = settings.memory_mib
    with (
        Machine(folder, "source", initramfs, memory_mib=memory, append=append) as source,
        Machine(folder, "target", initramfs, memory_mib=memory, append=append, incoming="defer") as target,
        Link(LinkShape(rate_bps=settings.rate_bps, delay_s=settings.rtt_s / 2)) as link,
        Acceptance(str(target.monitor), "127.0.0.1:0") as acceptance,
    ):
        say(f"starting a guest of {memory} MiB")
        source.console.wait_for("READY", BOOT_S)
        source.console.ask(f"r {settings.pages_per_s}", "RATE")
        source.console.wait_for_ticks()
        say(
            f"moving it over {settings.rate_bps / 1e6:g} Mbps and {settings.rtt_s * 1e3:g} ms while it writes"
        )
        taking = threading.Thread(target=take, args=(acceptance,), daemon=True)
        taking.start()
        options = MigrateOptions(max_downtime_s=settings.max_downtime_s)
        to = through(link, acceptance)
        report = Migration(str(source.monitor), to, options=options, events=teller(say)).run()
        taking.join(COME_S)
        say("asking the guest what it finds in its memory")
        target.console.wait_for_ticks()
        told = target.console.ask("v", "VERIFIED")
        return report, downtime_s(source.console, target.console), told, judge(source, target, told, report)


def take(acceptance: Acceptance) -> None:
    """Take the guest; what fails of that the side that it leaves tells."""
    with suppress(DwcpError, OSError):
        acceptance.run(COME_S)


def through(link: Link, acceptance: Acceptance) -> str:
    """Give the pairing string with the link's address in place of the other side's."""
    pairing = acceptance.pairing or ""
    host, _, port = acceptance.address.rpartition(":")
    link.retarget(host, int(port))
    return f"dwcp://127.0.0.1:{link.port}#{pairing.partition('#')[2]}"


def judge(source: Machine, target: Machine, told: str, report: MigrationReport) -> tuple[Claim, ...]:
    """Tell what was shown."""
    where = f"{source.status()} here, {target.status()} there"
    found = [*source.console.complaints(), *target.console.complaints()]
    right = " bad=0 " in told and told.endswith("ever_bad=0") and not found
    saved = f"{report.wire_bytes / 1e6:.1f} MB for {report.sent_bytes / 1e6:.1f} MB"
    return (
        Claim("it runs on the other side, and only there", where == "postmigrate here, running there", where),
        Claim("it finds every page as it wrote it", right, "; ".join([told, *found])),
        Claim("fewer bytes were sent than QEMU wrote", report.wire_bytes < report.sent_bytes, saved),
    )


def teller(say: Say) -> Callable[[dict[str, Any]], None]:
    """Make what tells of each round."""

    def tell(event: dict[str, Any]) -> None:
        if event["type"] == "round":
            left, sent, written = (
                event[name] / 1e6 for name in ("remaining_bytes", "bytes_per_s", "dirty_bytes_per_s")
            )
            say(
                f"round {event['round']}: {left:.1f} MB are left, {sent:.1f} MB/s sent, "
                f"{written:.1f} MB/s written"
            )

    return tell
