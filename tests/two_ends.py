"""Both ends of a session in threads of one process, with deadlines on every wait."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import dwcp_fast as dwcp

T = TypeVar("T")
WAIT_S = 30.0
LOCAL = "127.0.0.1:0"
# Both ends are on one host, and nothing forbids them to share memory.
NEAREST = "shm" if sys.platform == "linux" else "tls"


@contextmanager
def meanwhile(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `work` in a thread while the block runs; its failure is raised where its result is asked for."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def accepted(listener: dwcp.Listener) -> dwcp.IncomingSession:
    """Accept a peer or fail."""
    incoming = listener.accept(WAIT_S)
    assert incoming is not None
    return incoming


def pairing_of(listener: dwcp.Listener) -> str:
    """The pairing string, which must be there."""
    assert listener.pairing is not None
    return listener.pairing
