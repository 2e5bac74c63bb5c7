"""Moves large changing state between machines: compressed per block, resumable, verified."""

from importlib import import_module
from typing import TYPE_CHECKING

from dwcp_fast.codec import (
    compress,
    compress_into,
    decompress,
    decompress_into,
    digest,
    max_compressed_length,
    needed_dictionary,
)
from dwcp_fast.dictionary import Dictionary
from dwcp_fast.engine import force_v1
from dwcp_fast.errors import (
    AuthError,
    BaseMismatchError,
    ClosedError,
    ConfigError,
    ConflictError,
    DeadlineError,
    DeltaError,
    DwcpError,
    FormatError,
    IntegrityError,
    LimitExceededError,
    NegotiationError,
    PeerClosedError,
    PeerError,
    TransportError,
    UnsupportedFormatError,
    V3StoppedError,
)
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.listener import Listener, listen, listen_async
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.pages import compress_pages, decompress_pages_into
from dwcp_fast.received import Received
from dwcp_fast.registered import RegisteredBuffer
from dwcp_fast.reports import Progress, ReceiveReport, SendReport
from dwcp_fast.session import Session, connect, connect_async
from dwcp_fast.trust import INSECURE, MutualTls

if TYPE_CHECKING:
    from dwcp_fast import delta, snap, versions
    from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber

    __version__: str
else:

    def __getattr__(name):
        """Look for what takes long to import, such as numpy for versions, when it is first asked for."""
        if name in {"delta", "snap", "versions"}:
            return import_module(f"dwcp_fast.{name}")
        if name in {"DeltaPublisher", "DeltaSubscriber"}:
            return getattr(import_module("dwcp_fast.versions"), name)
        if name == "__version__":
            return installed_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "INSECURE",
    "AuthError",
    "BaseMismatchError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "DeadlineError",
    "DeltaError",
    "DeltaPublisher",
    "DeltaSubscriber",
    "Dictionary",
    "DwcpError",
    "FormatError",
    "IncomingSession",
    "IntegrityError",
    "LimitExceededError",
    "Listener",
    "MutualTls",
    "NegotiationError",
    "PeerClosedError",
    "PeerError",
    "Progress",
    "ReceiveOptions",
    "ReceiveReport",
    "Received",
    "RegisteredBuffer",
    "SendOptions",
    "SendReport",
    "Session",
    "TransportError",
    "UnsupportedFormatError",
    "V3StoppedError",
    "__version__",
    "compress",
    "compress_into",
    "compress_pages",
    "connect",
    "connect_async",
    "decompress",
    "decompress_into",
    "decompress_pages_into",
    "delta",
    "digest",
    "force_v1",
    "listen",
    "listen_async",
    "max_compressed_length",
    "needed_dictionary",
    "snap",
    "versions",
]


def installed_version() -> str:
    """Give the version that is installed."""
    # Imported late: it parses mail.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dwcp-fast")
    except PackageNotFoundError:
        # Run from a source tree that was never installed.
        return "0+unknown"
