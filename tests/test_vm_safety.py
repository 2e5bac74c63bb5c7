"""A guest runs on one side whatever fails, and whenever; against monitors that say what QEMU would."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from dwcp_fast.errors import DeadlineError, DwcpError, FormatError, PeerClosedError, PeerError, QmpError
from dwcp_fast.vm import mirrors
from dwcp_fast.vm.accept import Acceptance
from dwcp_fast.vm.control import CONTROL, Control
from dwcp_fast.vm.migrate import Migration
from dwcp_fast.vm.options import AcceptOptions, MigrateOptions
from monitor import Monitor, done

WAIT_S: Final = 20.0
MEMORY: Final = 1 << 27
MOVE: Final = "0123456789abcdef" * 2
LEFT, CAME = f"dwcp-left-{MOVE}", f"dwcp-came-{MOVE}"
READY: Final = {"move": MOVE, "answers": True}


class Guest:
    """A QEMU with one disk, and what became of its guest."""

    def __init__(self, path: Path, status: str, migration: str) -> None:
        self.status, self.migration = status, migration
        self.memory = {"total": MEMORY} if status == "postmigrate" else {}
        self.objects = [LEFT] if status == "postmigrate" else [CAME] if migration == "completed" else []
        self.jobs: list[str] = []
        self.on: dict[str, Callable[[], object]] = {}
        self.refused: set[str] = set()
        self.monitor = Monitor(path, self.answer)

    def answer(self, asked: dict[str, Any]) -> bytes | None:
        command = asked["execute"]
        if self.on.get(command, lambda: None)() is False:
            return None
        if command in self.refused:
            return b'{"error": {"desc": "it cannot be"}}\n'
        told = self.tell(command)
        if told is not None:
            return said(told)
        self.obey(command, asked.get("arguments", {}))
        return done(asked)

    def tell(self, command: str) -> Any:
        """The answer to a question."""
        names = ("events", "return-path", "pause-before-switchover")
        disk = {"image": {"virtual-size": 4096}, "node-name": "disk0"}
        return {
            "query-status": {"status": self.status},
            "query-migrate": {"status": self.migration, "ram": self.memory},
            "query-memory-size-summary": {"base-memory": MEMORY},
            "query-migrate-capabilities": [{"capability": name, "state": False} for name in names],
            "query-migrate-parameters": {"downtime-limit": 300},
            "query-block": [{"device": "", "inserted": disk}],
            "query-block-jobs": [
                {"device": name, "offset": 0, "len": 4096, "ready": False} for name in self.jobs
            ],
            "qom-list": [{"name": name} for name in self.objects],
        }.get(command)

    def obey(self, command: str, arguments: dict[str, Any]) -> None:
        """Do what changes something."""
        match command:
            case "blockdev-mirror":
                self.jobs.append(arguments["job-id"])
            case "object-add":
                self.objects.append(arguments["id"])
            case "object-del":
                self.objects.remove(arguments["id"])
            case "cont":
                self.status = "running"
            case "stop":
                self.status = "paused" if self.status == "running" else self.status


def said(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """Makes guests."""
    made: list[Guest] = []

    def make(status: str, migration: str) -> Guest:
        made.append(Guest(tmp_path / f"{len(made)}.qmp", status, migration))
        return made[-1]

    yield make
    for one in made:
        one.monitor.close()


class Counters:
    """As much of a relay's counters as is looked at."""

    state = "running"
    error = opaque = rtt_ms = None
    compressed_by_qemu = False
    behind_s = 0.0
    stream_bytes = wire_bytes = unacknowledged_bytes = lanes = lanes_lost = 0
    pages: Mapping[str, int] = {}


class Near:
    """A carrier that brings the conversation to a function, in a thread, and nothing else anywhere."""

    def __init__(self, channels: Mapping[str, Path], talk: Callable[[Control], object]) -> None:
        self.stopped = threading.Event()
        self._path = channels[CONTROL]
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self._path))
        self._door.listen(1)
        threading.Thread(target=self._run, args=(talk,), daemon=True).start()

    def _run(self, talk: Callable[[Control], object]) -> None:
        with Control(self._door.accept()[0]) as control:
            try:
                talk(control)
            except (DwcpError, OSError):
                return

    def present(self) -> Any:
        return Counters()

    def wait(self, timeout_s: float | None) -> Any:
        return Counters()

    def stop(self, reason: str = "cancelled") -> None:
        self.stopped.set()

    def finish(self) -> None:
        """There are no streams."""

    def close(self) -> None:
        self.stopped.set()
        self._door.close()
        self._path.unlink(missing_ok=True)


def leave(
    guest: Guest,
    talk: Callable[[Control], object],
    *,
    disks: bool = False,
    act: Callable[[Migration], object] | None = None,
    nears: list[Near] | None = None,
) -> Any:
    """Move a guest to a side that answers as `talk` does; `act` is called when it is about to be moved."""
    made: list[Near] = [] if nears is None else nears

    def dial(_: str, channels: Mapping[str, Path]) -> Any:
        made.append(Near(channels, talk))
        return made[-1]

    options = MigrateOptions(disks=disks, settle_s=2)
    migration = Migration(guest.monitor.address, "there", dial=dial, options=options)
    if act is not None:
        act(migration)
    return migration.run()


def ready(words: list[str]) -> Callable[[Control], None]:
    """A side that is ready, and notes what it hears."""

    def talk(control: Control) -> None:
        control.expect("prepare", WAIT_S)
        control.send("ready", **READY)
        note(control, words)

    return talk


def note(control: Control, words: list[str]) -> None:
    """Note what is heard, until the guest goes on where it was."""
    while "abort" not in words and (message := control.receive(WAIT_S)) is not None:
        words.append(message["type"])


def test_a_guest_that_came_from_elsewhere_is_not_taken_for_gone_when_it_is_refused(
    guest: Callable[..., Guest],
) -> None:
    """Its QEMU says "completed" from the move that brought it."""
    here = guest("running", "completed")
    words: list[str] = []

    def refuse(control: Control) -> None:
        control.expect("prepare", WAIT_S)
        control.send("refused", message="no room")
        note(control, words)

    with pytest.raises(PeerError, match="no room"):
        leave(here, refuse)
    assert words == ["abort"]
    assert here.status == "running" and "migrate-set-parameters" in here.monitor.commands()


def test_a_guest_whose_qemu_refuses_to_let_it_go_is_not_taken_for_gone(guest: Callable[..., Guest]) -> None:
    here = guest("running", "completed")
    here.refused = {"migrate"}
    words: list[str] = []
    with pytest.raises(QmpError, match=r"migrate of .* it cannot be"):
        leave(here, ready(words))
    assert words == ["abort"]


def test_a_cancelled_mirroring_lets_the_guest_go_on_before_it_waits_for_anything(
    guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits for the other side ends when the relay is stopped, or not at all."""
    monkeypatch.setattr(mirrors, "END_S", 0.5)
    here = guest("running", "completed")
    words: list[str] = []
    nears: list[Near] = []
    here.on["blockdev-mirror"] = lambda: setattr(here, "status", "paused")
    here.on["block-job-cancel"] = lambda: here.jobs.clear() if nears[0].stopped.is_set() else None
    with pytest.raises(KeyboardInterrupt):
        leave(here, ready(words), disks=True, nears=nears, act=lambda migration: migration.cancel())
    assert here.status == "running" and words == ["abort"]
    done_in_turn = here.monitor.commands()
    assert done_in_turn.index("cont") < done_in_turn.index("block-job-cancel")
    assert here.jobs == []


def test_a_mirroring_that_does_not_end_hides_nothing(
    guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "END_S", 0.2)
    here = guest("running", "none")
    with pytest.raises(KeyboardInterrupt):
        leave(here, ready([]), disks=True, act=lambda migration: migration.cancel())
    assert here.jobs and here.status == "running"
    assert here.monitor.commands()[-1] == "object-del", "capabilities and limits were not put back"
    assert here.objects == []


def test_a_guest_that_cannot_be_let_go_on_is_told_of(
    guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "END_S", 0.2)
    here = guest("running", "none")
    here.on["blockdev-mirror"] = lambda: setattr(here, "status", "io-error")
    here.refused = {"cont"}
    with pytest.raises(QmpError, match=r"stands still here.*given up: KeyboardInterrupt") as told:
        leave(here, ready([]), disks=True, act=lambda migration: migration.cancel())
    assert "cont" in (told.value.hint or "")


def arriving(words: list[dict[str, Any]], answer: Callable[[Control], object]) -> Callable[[Control], None]:
    """A side that has the guest, and answers `go` as it is given."""

    def talk(control: Control) -> None:
        while (message := control.receive(WAIT_S)) is not None:
            words.append(message)
            if message["type"] == "settle":
                control.send("state", loaded=True, running=False)
            if message["type"] == "go":
                answer(control)

    return talk


def runs(control: Control) -> None:
    control.send("running", running=True)


@pytest.mark.parametrize("paused", [True, False])
def test_what_a_guest_did_before_it_left_is_known_to_whoever_settles_it(
    guest: Callable[..., Guest], paused: bool
) -> None:
    here = guest("postmigrate", "completed")
    here.objects = [LEFT, "pc.ram", *(["dwcp-paused"] if paused else [])]
    words: list[dict[str, Any]] = []
    assert leave(here, arriving(words, runs)).settled
    assert words[1] == {"type": "go", "running": not paused}


def test_a_guest_that_somebody_let_go_on_here_is_not_started_there(guest: Callable[..., Guest]) -> None:
    here = guest("postmigrate", "completed")
    words: list[dict[str, Any]] = []

    def settle(control: Control) -> None:
        control.expect("settle", WAIT_S)
        here.status = "running"
        control.send("state", loaded=True, running=False)
        while (message := control.receive(WAIT_S)) is not None:
            words.append(message)

    with pytest.raises(QmpError, match="by another hand"):
        leave(here, settle)
    assert words == []


@pytest.mark.parametrize("ran", [True, False])
def test_a_guest_that_ran_there_before_it_was_lost_does_not_go_on_here(
    guest: Callable[..., Guest], ran: bool
) -> None:
    """Its disks are newer than what stands still here."""
    here = guest("postmigrate", "completed")
    lost = arriving([], lambda control: control.send("lost", message="QEMU ended", ran=ran))
    with pytest.raises(PeerError, match="after it had been started there" if ran else "goes on here"):
        leave(here, lost)
    assert here.status == ("postmigrate" if ran else "running")


def test_an_interruption_at_the_handover_does_not_leave_the_guest_in_doubt(
    guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = guest("running", "none")

    def left() -> None:
        here.status, here.migration, here.memory = "postmigrate", "completed", {"total": MEMORY}

    here.on["migrate"] = left
    sent, receive = Control.send, Control.receive
    went: list[Control] = []

    def send(self: Control, kind: str, **told: Any) -> None:
        sent(self, kind, **told)
        went.extend([self] if kind == "go" and not went else [])

    def interrupted(self: Control, timeout_s: float) -> Any:
        if went == [self]:
            went.append(self)
            raise KeyboardInterrupt
        return receive(self, timeout_s)

    monkeypatch.setattr(Control, "send", send)
    monkeypatch.setattr(Control, "receive", interrupted)

    def talk(control: Control) -> None:
        while (message := receive(control, WAIT_S)) is not None:
            match message["type"]:
                case "prepare":
                    sent(control, "ready", **READY)
                case "settle":
                    sent(control, "state", loaded=True, running=True)
                case "go":
                    runs(control)

    assert leave(here, talk).settled
    assert len(went) == 2


class Waiting:
    """A carrier to a side that comes as often as it is told to."""

    address, pairing = "127.0.0.1:1", None

    def __init__(self) -> None:
        self.channels: Mapping[str, Path] = {}
        self.comes = threading.Semaphore(0)
        self.accepted = threading.Semaphore(0)

    def __call__(self, _: str, channels: Mapping[str, Path]) -> Any:
        self.channels = channels
        return self

    def accept(self, timeout_s: float | None = None) -> None:
        if not self.comes.acquire(timeout=timeout_s):
            raise DeadlineError("nobody came")
        self.accepted.release()

    def present(self) -> Any:
        return Counters()

    def wait(self, timeout_s: float | None) -> Any:
        return Counters()

    def close(self) -> None:
        """There is nothing to close."""

    def come(self) -> Control:
        """Be the other side, once more."""
        self.comes.release()
        assert self.accepted.acquire(timeout=WAIT_S)
        return Control.dial(self.channels[CONTROL], WAIT_S)


class Taking:
    """The side that a guest comes to, in a thread."""

    def __init__(self, guest: Guest, *, settle_s: float = 10.0) -> None:
        self.carrier = Waiting()
        self.acceptance = Acceptance(
            guest.monitor.address,
            "127.0.0.1:0",
            options=AcceptOptions(settle_s=settle_s),
            listen=self.carrier,
        )
        self.report: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.report = self.acceptance.run(WAIT_S)
        except BaseException as error:  # noqa: BLE001  # for the test to look at
            self.error = error

    def end(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the side that accepts does not end"
        self.acceptance.close()


def test_a_guest_that_runs_here_already_is_settled_by_a_new_process(guest: Callable[..., Guest]) -> None:
    here = guest("running", "completed")
    taking = Taking(here)
    with taking.carrier.come() as peer:
        peer.send("settle", move=MOVE)
        assert peer.expect("state", WAIT_S) == {"type": "state", "loaded": True, "running": True}
        peer.send("go", running=True)
        assert peer.expect("running", WAIT_S)["running"]
        peer.send("bye")
        taking.end()
    assert taking.report is not None and taking.report.running, taking.error
    assert "cont" not in here.monitor.commands()


def test_a_guest_that_runs_here_and_did_not_come_from_elsewhere_is_refused(
    guest: Callable[..., Guest],
) -> None:
    """It may be one whose own move ended in its going on where it was."""
    here = guest("running", "completed")
    here.memory = {"total": MEMORY}
    with pytest.raises(QmpError, match="a QEMU that waits for a guest is needed"):
        Acceptance(here.monitor.address, "127.0.0.1:0", listen=Waiting())


def test_a_guest_that_runs_is_not_ended_by_a_peer_that_gives_up(guest: Callable[..., Guest]) -> None:
    here = guest("running", "completed")
    taking = Taking(here)
    with taking.carrier.come() as peer:
        peer.send("settle", move=MOVE)
        peer.expect("state", WAIT_S)
        peer.send("abort", message="never mind")
        taking.end()
    assert isinstance(taking.error, PeerClosedError)
    assert "quit" not in here.monitor.commands()


def test_a_link_that_is_lost_when_the_guest_just_runs_is_waited_for(
    guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = guest("paused", "completed")
    lost = threading.Event()
    send = Control.send

    def losing(self: Control, kind: str, **told: Any) -> None:
        if kind == "running" and not lost.is_set():
            lost.set()
            raise PeerClosedError("the other side is gone")
        send(self, kind, **told)

    monkeypatch.setattr(Control, "send", losing)
    taking = Taking(here)
    with taking.carrier.come() as peer:
        peer.send("settle", move=MOVE)
        peer.expect("state", WAIT_S)
        peer.send("go", running=True)
        assert lost.wait(WAIT_S)
    with taking.carrier.come() as peer:
        peer.send("settle", move=MOVE)
        assert peer.expect("state", WAIT_S)["running"]
        peer.send("go", running=True)
        peer.expect("running", WAIT_S)
        peer.send("bye")
        taking.end()
    assert taking.report is not None and taking.report.running, taking.error


@pytest.mark.parametrize("listens", [True, False])
def test_a_guest_is_told_to_be_lost_only_where_its_qemu_has_surely_ended(
    guest: Callable[..., Guest], listens: bool
) -> None:
    here = guest("paused", "completed")

    def breaks() -> bool:
        if not listens:
            here.monitor.close()
        return False

    here.on["cont"] = breaks
    taking = Taking(here)
    with taking.carrier.come() as peer:
        peer.send("settle", move=MOVE)
        peer.expect("state", WAIT_S)
        peer.send("go", running=True)
        if listens:
            with pytest.raises(PeerClosedError):
                peer.receive(WAIT_S)
        else:
            assert peer.expect("lost", WAIT_S)["ran"]
        taking.end()
    assert isinstance(taking.error, PeerClosedError)


@pytest.mark.parametrize(
    "wanted", [{"disks": [5]}, {"disks": None}, {"disks": [{"name": 1}]}, {"multifd": "no"}, {"disks": {}}]
)
def test_a_wish_that_is_none_is_refused_in_words(guest: Callable[..., Guest], wanted: dict[str, Any]) -> None:
    taking = Taking(guest("inmigrate", "none"))
    with taking.carrier.come() as peer:
        peer.send("prepare", **({"memory_bytes": MEMORY, "multifd": 0, "disks": []} | wanted))
        assert "is needed" in peer.expect("refused", WAIT_S)["message"]
        taking.end()
    assert isinstance(taking.error, QmpError)


@pytest.mark.parametrize("line", [b"[" * 100_000 + b"\n", b'{"type": 1}\n', b"5\n", b"x" * (2 << 20)])
def test_a_message_that_is_none_is_an_error_of_the_format(line: bytes) -> None:
    near, far = socket.socketpair()
    with Control(near) as control, far:
        far.setblocking(False)
        with pytest.raises(FormatError):
            while line:
                # As much as there is room for at a time.
                line = line[far.send(line) :]
                assert control.receive(0 if line else WAIT_S) is None
