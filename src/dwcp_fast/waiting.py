"""Blocking calls awaited from coroutines. Who awaits has asyncio; who does not is spared its import."""

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["Worker"]

LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")


class Worker:
    """A thread for the blocking calls of one object, so that a long one never takes another's place."""

    def __init__(self, name: str) -> None:
        """Start nothing yet; the thread is made by the first call."""
        self._name = name
        self._calls = self._make_thread()
        self._cancels = self._make_thread()

    async def run(
        self, call: Callable[[], T], cancel: Callable[[], object], drop: Callable[[T], object] | None = None
    ) -> T:
        """Await a blocking call.

        Args:
            call: What to run in the thread.
            cancel: Makes `call` end soon; it may block. It is called, in another thread, when the awaiting
                task is cancelled; the end of both is then awaited, and what `call` returned is dropped.
            drop: What is done, in the thread, with what is dropped; it may block.

        Returns:
            What `call` returns.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._calls, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            try:
                cancelling = loop.run_in_executor(self._cancels, cancel)
            except RuntimeError:
                # There are no new threads while the interpreter ends.
                cancel()
            else:
                await end_of(cancelling)
            if await end_of(running) and drop is not None:
                await end_of(loop.run_in_executor(self._calls, drop, running.result()))
            raise

    async def end(self, close: Callable[[], object], cancel: Callable[[], object]) -> None:
        """Await what ends the object; it does not wait for its turn behind a call that is under way.

        Args:
            close: Ends the object in peace, which makes the call under way end soon; it may block.
            cancel: Makes `close` hurry. It is called, in another thread, when the awaiting task is cancelled;
                the end of both is then awaited.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(self._cancels, close)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await end_of(loop.run_in_executor(None, cancel))
            await end_of(closing)
            raise

    def close(self) -> None:
        """Let the threads end; a later call starts them again."""
        for executor in (self._calls, self._cancels):
            executor.shutdown(wait=False)
        self._calls, self._cancels = self._make_thread(), self._make_thread()

    def _make_thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)


async def end_of(running: "asyncio.Future[Any]") -> bool:
    """Await the end of what runs in a thread, however often that is cancelled, and tell if it went well."""
    import asyncio

    while not running.done():
        # A second cancellation must not leave the native work behind.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    if running.cancelled():
        return False
    failure = running.exception()
    if failure is not None:
        LOG.debug("what was cancelled ended with %r", failure)
    return failure is None
