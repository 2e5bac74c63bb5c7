"""What is kept on disk between runs: who this sender is, what it sent, and how a receiver is paired."""

import base64
import contextlib
import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dwcp_fast import _core
from dwcp_fast.errors import ConfigError

__all__ = [
    "KeptPairing",
    "client_identity",
    "forget_pairing",
    "keep_pairing",
    "kept_links",
    "kept_pairing",
    "read_pairing",
    "sent_index",
    "served_arrival",
    "served_pairing",
    "state_dir",
    "write_pairing",
    "write_private",
]

STATE_VARIABLE: Final = "DWCP_STATE_DIR"
PAIRING_NAME: Final = "pairing.json"
# The fingerprints of 65,536 clients, in base64, and room for the rest.
MAX_KEPT_BYTES: Final = 4 << 20


def state_dir() -> Path:
    """Give the directory for what this user's senders keep: ``DWCP_STATE_DIR``, or ``dwcp`` in the XDG state.

    Returns:
        A directory that exists, readable by its owner only if it was made here.

    Raises:
        OSError: It cannot be made.
    """
    named = os.environ.get(STATE_VARIABLE)
    if named:
        path = Path(named)
    else:
        base = os.environ.get("XDG_STATE_HOME")
        path = (Path(base) if base else Path.home() / ".local" / "state") / "dwcp"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def sent_index() -> Path:
    """Give the file that remembers what was sent, for ``--base auto``."""
    return state_dir() / "sent.index"


def kept_links() -> Path:
    """Give the file that remembers what links to receivers carry."""
    return state_dir() / "links.json"


def served_pairing(directory: Path) -> Path:
    """Give the file that keeps the pairing of whoever serves a directory, so that it outlives the process.

    Args:
        directory: What is served.

    Returns:
        A file in the state directory; it need not exist.
    """
    name = _core.digest(os.fsencode(directory.resolve())).hex()
    return state_dir() / f"serve-{name}.json"


def served_arrival(place: Path) -> Path:
    """Give the file that keeps what is known of a guest that was to come to a place.

    Args:
        place: The socket of the QEMU that it comes to.

    Returns:
        A file in the state directory; it need not exist.
    """
    name = _core.digest(os.fsencode(place.resolve())).hex()
    return state_dir() / f"arrival-{name}.json"


def client_identity() -> _core.Identity:
    """Give this user's sender identity, made once: a token is bound to it by the first session.

    Returns:
        The identity.

    Raises:
        ConfigError: The kept identity is damaged, or others may read it.
        OSError: It cannot be read or written.
    """
    path = state_dir() / "identity"
    with contextlib.suppress(FileNotFoundError):
        return _core.Identity.from_blob(read_secret(path))
    identity = _core.Identity.generate()
    try:
        write_private(path, identity.to_blob(), replace=False)
    except FileExistsError:
        # Another process was faster; both must use the same one.
        return _core.Identity.from_blob(read_secret(path))
    return identity


@dataclass(frozen=True, slots=True)
class KeptPairing:
    """How a receiver was paired when it ended, so that the same pairing string works again.

    Attributes:
        identity: The receiver's identity, as bytes with its private key.
        tickets: Its tokens and whose they are.
        port: The TCP port it listened on.
    """

    identity: bytes
    tickets: bytes
    port: int


def kept_pairing(into: Path) -> KeptPairing | None:
    """Read the pairing kept in a target directory while an unfinished transfer is staged there.

    Args:
        into: The target directory.

    Returns:
        The pairing; None if nothing is staged or none was kept.

    Raises:
        ConfigError: It is damaged, or others may read it.
        OSError: It cannot be read.
    """
    return read_pairing(into / ".dwcp" / PAIRING_NAME) if _core.staged_transfers(into) else None


def read_pairing(path: Path) -> KeptPairing | None:
    """Read a kept pairing.

    Args:
        path: The file it is kept in.

    Returns:
        The pairing; None if there is no such file.

    Raises:
        ConfigError: It is damaged, or others may read it.
        OSError: It cannot be read.
    """
    try:
        text = read_secret(path)
    except FileNotFoundError:
        return None
    try:
        kept = json.loads(text)
        return KeptPairing(
            identity=base64.b64decode(kept["identity"]),
            tickets=base64.b64decode(kept["tickets"]),
            port=int(kept["port"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"the pairing kept in {path} cannot be read", hint="remove the file") from exc


def keep_pairing(into: Path, pairing: KeptPairing) -> None:
    """Keep a pairing in a target directory.

    Args:
        into: The target directory.
        pairing: What to keep.

    Raises:
        OSError: It cannot be written.
    """
    (into / ".dwcp").mkdir(mode=0o700, parents=True, exist_ok=True)
    write_pairing(into / ".dwcp" / PAIRING_NAME, pairing)


def write_pairing(path: Path, pairing: KeptPairing) -> None:
    """Keep a pairing in a file that only its owner may read.

    Args:
        path: The file, in a directory that exists.
        pairing: What to keep.

    Raises:
        OSError: It cannot be written.
    """
    told = {
        "identity": base64.b64encode(pairing.identity).decode(),
        "tickets": base64.b64encode(pairing.tickets).decode(),
        "port": pairing.port,
    }
    write_private(path, json.dumps(told).encode(), replace=True)


def forget_pairing(into: Path) -> None:
    """Remove the kept pairing if no unfinished transfer needs it.

    Args:
        into: The target directory.

    Raises:
        OSError: It cannot be removed.
    """
    if not _core.staged_transfers(into):
        (into / ".dwcp" / PAIRING_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Only if nothing else is in it.
            (into / ".dwcp").rmdir()


def read_secret(path: Path) -> bytes:
    """Read a file that only its owner may read."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"{path} holds a secret and others may read it", hint=f"chmod 600 {path}")
        return file.read(MAX_KEPT_BYTES)


def write_private(path: Path, data: bytes, *, replace: bool, sync: bool = True) -> None:
    """Write a file that only its owner may read, whole or not at all.

    Args:
        path: The file, in a directory that exists.
        data: What it is to hold.
        replace: Whether one that exists is replaced.
        sync: Whether it has to be whole after a crash of the machine, too.

    Raises:
        FileExistsError: It exists and is not to be replaced.
        OSError: It cannot be written.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if replace:
            staged.replace(path)
        else:
            # A link fails where a rename would replace.
            os.link(staged, path)
    finally:
        staged.unlink(missing_ok=True)
