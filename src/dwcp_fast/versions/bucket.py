"""An object store that keeps versions: S3 and what speaks like it, through the library obstore."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dwcp_fast.errors import AuthError, ConfigError, ConflictError, LimitExceededError, TransportError
from dwcp_fast.versions.manifest import MAX_HEAD_BYTES
from dwcp_fast.versions.store import Stamp, is_key

try:
    import obstore
    from obstore import exceptions as failures
    from obstore.store import ObjectStore, from_url
except ImportError as exc:
    raise ConfigError(
        "object stores need the library obstore", hint="pip install 'dwcp-fast[object-store]'"
    ) from exc

__all__ = ["BucketStore"]

HEAD_KEY: Final = "head.json"
POLL_S: Final = 0.5
REFUSED: Final = (failures.PermissionDeniedError, failures.UnauthenticatedError)


class BucketStore:
    """Versions under a prefix of a bucket.

    The head is replaced only if it is still the one that was read, which the store itself checks.
    """

    def __init__(self, store: ObjectStore, *, poll_s: float = POLL_S) -> None:
        """Use a store of obstore, with its credentials, limits and retries.

        Args:
            store: The store, with its prefix.
            poll_s: Seconds between two looks at the head.
        """
        self._store = store
        self._poll_s = poll_s
        self._interrupted = threading.Event()

    @classmethod
    def open(cls, url: str) -> "BucketStore":
        """Open a store by its URL, with credentials from the environment.

        Args:
            url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

        Returns:
            The store.

        Raises:
            ConfigError: The URL cannot be used.
        """
        try:
            return cls(from_url(url))
        except failures.BaseError as exc:
            raise ConfigError(f"{url} cannot be used as a store: {first_line(exc)}") from exc

    def read_head(self) -> Stamp | None:
        """Read the head; see :meth:`.store.Source.read_head`."""
        return self._head({})

    def wait_head(self, seen: Stamp | None, held: str | None, timeout_s: float) -> Stamp | None:  # noqa: ARG002
        """Wait for another head; see :meth:`.store.Source.wait_head`."""
        until = time.monotonic() + timeout_s
        while True:
            head = self._changed_head(seen)
            left = until - time.monotonic()
            if head is not None or left <= 0 or self._interrupted.wait(min(left, self._poll_s)):
                # Cleared here and not before, so that an interruption that came too early counts.
                self._interrupted.clear()
                return head

    def read(self, key: str, length: int) -> bytes:
        """Read an object; see :meth:`.store.Source.read`."""
        if not is_key(key):
            raise FileNotFoundError(key)
        with typed("read", key):
            return take(obstore.get(self._store, key), length + 1)

    def tell(self, version: int | None, failure: str | None) -> None:
        """Do nothing: nobody listens."""

    def interrupt(self) -> None:
        """End a wait; see :meth:`.store.Source.interrupt`."""
        self._interrupted.set()

    def close(self) -> None:
        """Do nothing: the connections are the library's."""

    def replace_head(self, data: bytes, seen: Stamp | None) -> Stamp:
        """Replace the head; see :meth:`.store.Store.replace_head`."""
        try:
            with typed("write", HEAD_KEY):
                if seen is None:
                    told = obstore.put(self._store, HEAD_KEY, data, mode="create", use_multipart=False)
                else:
                    told = obstore.put(
                        self._store, HEAD_KEY, data, mode={"e_tag": seen.token}, use_multipart=False
                    )
        except (failures.AlreadyExistsError, failures.PreconditionError) as exc:
            # A repeated request may have met its own first try.
            now = self.read_head()
            if now is not None and now.data == data:
                return now
            raise ConflictError("the head was changed by another publisher") from exc
        return Stamp(data, told["e_tag"] or "")

    def write(self, key: str, data: bytes) -> None:
        """Write an object; see :meth:`.store.Store.write`."""
        with typed("write", key):
            obstore.put(self._store, key, data)

    def remove(self, key: str) -> None:
        """Remove an object; see :meth:`.store.Store.remove`."""
        try:
            with typed("remove", key):
                obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def list_keys(self) -> Iterator[str]:
        """List the objects; see :meth:`.store.Store.keys`."""
        with typed("list", ""):
            for batch in obstore.list(self._store):
                yield from (one["path"] for one in batch if is_key(one["path"]))

    def _changed_head(self, seen: Stamp | None) -> Stamp | None:
        if seen is None:
            return self.read_head()
        try:
            head = self._head({"if_none_match": seen.token})
        except failures.NotModifiedError:
            return None
        return None if head is None or head.data == seen.data else head

    def _head(self, options: "obstore.GetOptions") -> Stamp | None:
        try:
            with typed("read", HEAD_KEY):
                found = obstore.get(self._store, HEAD_KEY, options=options)
                data = take(found, MAX_HEAD_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(data) > MAX_HEAD_BYTES:
            raise LimitExceededError(f"the head has more than {MAX_HEAD_BYTES} bytes, which is the limit")
        return Stamp(data, found.meta["e_tag"] or "")


def take(found: "obstore.GetResult", limit: int) -> bytes:
    """Read what was found, at most `limit` bytes of it."""
    data = bytearray()
    for part in found.stream(min_chunk_size=1 << 20):
        data += memoryview(part)[: limit - len(data)]
        if len(data) >= limit:
            break
    return bytes(data)


@contextmanager
def typed(verb: str, key: str) -> Iterator[None]:
    """Turn failures of the library into those of this package; conflicts are left to the caller."""
    try:
        yield
    except failures.NotFoundError as exc:
        raise FileNotFoundError(key) from exc
    except (failures.AlreadyExistsError, failures.PreconditionError, failures.NotModifiedError):
        raise
    except REFUSED as exc:
        raise AuthError(f"the store refuses to {verb} {key}: {first_line(exc)}") from exc
    except failures.BaseError as exc:
        raise TransportError(f"the store cannot {verb} {key}: {first_line(exc)}") from exc


def first_line(exc: BaseException) -> str:
    """Give the first line of a message, at most 300 characters of it."""
    return (str(exc).splitlines() or [type(exc).__name__])[0][:300]
