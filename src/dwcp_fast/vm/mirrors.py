"""Disks that move with a guest: served by QEMU's NBD server there, mirrored by block jobs here."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from dwcp_fast.errors import DeadlineError, QmpError
from dwcp_fast.vm.machine import Disk, Machine

__all__ = ["Exports", "Mirrors"]

LOG: Final = logging.getLogger(__name__)
POLL_S: Final = 0.02
END_S: Final = 60.0


class Mirrors:
    """The jobs that copy disks to the other side, and then every write too."""

    def __init__(self, machine: Machine, disks: Sequence[Disk], socket: Path) -> None:
        """Start nothing yet.

        Args:
            machine: The QEMU that the guest leaves.
            disks: Its disks.
            socket: Where the other side's NBD server is reached.
        """
        self._machine = machine
        self._disks = list(disks)
        self._socket = socket
        self._jobs: dict[str, str] = {}

    def start(self) -> None:
        """Start a job for each disk."""
        for number, disk in enumerate(self._disks):
            job = f"dwcp-mirror-{number}"
            node = f"dwcp-target-{number}"
            server = {"type": "unix", "path": str(self._socket)}
            self._machine.qmp.execute(
                "blockdev-add", {"driver": "nbd", "node-name": node, "server": server, "export": disk.name}
            )
            self._jobs[job] = node
            mirror = {"job-id": job, "device": disk.node, "target": node, "sync": "full"}
            self._machine.qmp.execute("blockdev-mirror", mirror)

    def progress(self) -> tuple[int, int, bool]:
        """Give the bytes copied, those of all, and whether nothing but new writes is left.

        Raises:
            QmpError: A job ended by itself.
        """
        told = {one["device"]: one for one in self._machine.qmp.execute("query-block-jobs")}
        lost = sorted(set(self._jobs) - set(told))
        if lost:
            raise QmpError(f"QEMU gave up mirroring a disk: {lost[0]}")
        ours = [told[job] for job in self._jobs]
        return (
            sum(job["offset"] for job in ours),
            sum(job["len"] for job in ours),
            all(job["ready"] for job in ours),
        )

    def complete(self, seen: Callable[[], Sequence[dict[str, Any]]]) -> None:
        """Copy what is left while the guest stands still, and end.

        Args:
            seen: Gives every event of the QEMU so far.

        Raises:
            QmpError: A disk was not copied to its end.
            DeadlineError: It takes too long.
        """
        for job in self._jobs:
            # On a mirror that is ready this means: finish, and stay with the old disk.
            self._machine.qmp.execute("block-job-cancel", {"device": job})
        self._wait_for_end()
        # A job that is gone tells nothing: only its event says whether it came to its end.
        ended = {
            told.get("device"): told
            for event in seen()
            if event.get("event") == "BLOCK_JOB_COMPLETED" and isinstance(told := event.get("data"), dict)
        }
        for job in self._jobs:
            told = ended.get(job, {"error": "its end was not told"})
            if told.get("error") or told.get("offset") is None or told.get("offset") != told.get("len"):
                raise QmpError(
                    f"a disk was not mirrored to its end: {told.get('error') or 'bytes are missing'}"
                )
        self._drop()

    def abandon(self) -> None:
        """End without a care for what was copied."""
        for job in self._jobs:
            try:
                self._machine.qmp.execute("block-job-cancel", {"device": job, "force": True})
            except QmpError as error:
                LOG.debug("%s", error)
        self._wait_for_end()
        self._drop()

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + END_S
        while any(one["device"] in self._jobs for one in self._machine.qmp.execute("query-block-jobs")):
            if time.monotonic() > deadline:
                raise DeadlineError(f"the mirroring of disks does not end in {END_S:g} s")
            time.sleep(POLL_S)

    def _drop(self) -> None:
        for node in self._jobs.values():
            try:
                self._machine.qmp.execute("blockdev-del", {"node-name": node})
            except QmpError as error:
                LOG.debug("%s", error)
        self._jobs.clear()


class Exports:
    """The disks of a guest that is to come, as an NBD server has them."""

    def __init__(self, machine: Machine) -> None:
        """Start nothing yet."""
        self._machine = machine
        self._exports: list[str] = []

    def start(self, socket: Path, wanted: Sequence[tuple[str, int]]) -> None:
        """Serve disks.

        Args:
            socket: Where.
            wanted: Names and lengths in bytes.

        Raises:
            QmpError: A disk is not there, or has another length.
        """
        here = {disk.name: disk for disk in self._machine.disks()}
        for name, length in wanted:
            if name not in here:
                raise QmpError(f"there is no disk {name} here, of: {', '.join(sorted(here)) or 'none'}")
            if here[name].length_bytes != length:
                raise QmpError(f"the disk {name} has {here[name].length_bytes} bytes here and {length} there")
        server = {"addr": {"type": "unix", "data": {"path": str(socket)}}}
        self._machine.qmp.execute("nbd-server-start", server)
        for number, (name, _) in enumerate(wanted):
            export = {"type": "nbd", "id": f"dwcp-{number}", "node-name": here[name].node, "name": name}
            self._machine.qmp.execute("block-export-add", {**export, "writable": True})
            self._exports.append(f"dwcp-{number}")

    def stop(self) -> None:
        """Serve them no longer; the guest may have them then."""
        if not self._exports:
            return
        # Ends every export too, and waits for the connections.
        self._machine.qmp.execute("nbd-server-stop", timeout_s=END_S)
        deadline = time.monotonic() + END_S
        while self._machine.qmp.execute("query-block-exports"):
            if time.monotonic() > deadline:
                raise DeadlineError(f"the disks are still served after {END_S:g} s")
            time.sleep(POLL_S)
        self._exports.clear()
