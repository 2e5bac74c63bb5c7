"""Blocking calls awaited from coroutines."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker:
    """A thread for the blocking calls of one object, so that a long one never takes another's place."""

    def __init__(self, name: str) -> None:
        """Start nothing yet; the thread is made by the first call."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, call: Callable[[], T], cancel: Callable[[], None]) -> T:
        """Await a blocking call.

        Args:
            call: What to run in the thread.
            cancel: Makes `call` end soon. It is called when the awaiting task is cancelled; the end of `call`
                is then awaited, and its outcome dropped.

        Returns:
            What `call` returns.
        """
        running = asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel()
            while not running.done():
                # A second cancellation must not leave the native work behind.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    def close(self) -> None:
        """Let the thread end."""
        self._executor.shutdown(wait=False)
