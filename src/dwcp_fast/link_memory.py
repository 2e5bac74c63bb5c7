"""What links to receivers carried, kept from one session to the next.

Whoever knows what a link carries need not find out with the first blocks of a transfer. What is kept is a
hint: a link that has changed is noticed as the blocks go, and a file that cannot be read is as good as none.
"""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any, Final

from dwcp_fast.state import kept_links, write_private

__all__ = ["KnownLink", "recall_link", "remember_link"]

VERSION: Final = 1
MOST_LINKS: Final = 256
MOST_BYTES: Final = 64 << 10
MOST_ADDRESS: Final = 200
MOST_AGE_S: Final = 30 * 86_400.0
MOST_BYTES_PER_S: Final = 1e12
LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownLink:
    """What a session has found out about a link.

    Attributes:
        bytes_per_s: What it carries.
        was_limit: Whether everything waited for it at some time, so that it carries no more.
    """

    bytes_per_s: float
    was_limit: bool


def recall_link(address: str) -> KnownLink | None:
    """Tell what the last session to an address found out.

    Args:
        address: ``HOST:PORT`` as it is dialled.

    Returns:
        What is known; None if that is nothing, or older than 30 days. That the file cannot be read is logged.
    """
    entry = read_links().get(address)
    if entry is None or not 0 <= time.time() - entry["at_s"] <= MOST_AGE_S:
        return None
    return KnownLink(float(entry["bytes_per_s"]), entry["was_limit"])


def remember_link(address: str, link: KnownLink) -> None:
    """Keep what a session has found out; of more than 256 addresses, those of the longest ago are forgotten.

    Args:
        address: ``HOST:PORT`` as it is dialled; a longer one than 200 characters is not kept.
        link: What was found out. That it cannot be kept is logged.
    """
    if len(address) > MOST_ADDRESS or not is_rate(link.bytes_per_s):
        return
    links = read_links()
    entry = {"bytes_per_s": round(link.bytes_per_s), "was_limit": link.was_limit, "at_s": int(time.time())}
    links = {known: kept for known, kept in links.items() if known != address}
    newest = sorted(links.items(), key=lambda item: -item[1]["at_s"])[: MOST_LINKS - 1]
    told = {"version": VERSION, "links": {address: entry, **dict(newest)}}
    try:
        write_private(kept_links(), json.dumps(told).encode(), replace=True, sync=False)
    except OSError as exc:
        LOG.warning("what the link to %s carries is not remembered: %s", address, exc)


def read_links() -> dict[str, dict[str, Any]]:
    """Read what is kept, by address; nothing if that is damaged, which is logged."""
    try:
        with kept_links().open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has over {MOST_BYTES} bytes, which is the limit")
        told = json.loads(data)
        if told["version"] != VERSION:
            raise ValueError(f"its version is {told['version']!r}, and {VERSION} is known")
        links: dict[str, dict[str, Any]] = told["links"]
        for address, entry in links.items():
            check_entry(address, entry)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        LOG.warning("what links carry is not known: the file that keeps it cannot be used: %s", exc)
        return {}
    return links


def check_entry(address: str, entry: dict[str, Any]) -> None:
    """Refuse with ValueError what no session has kept."""
    at_s = entry["at_s"]
    is_time = isinstance(at_s, int) and not isinstance(at_s, bool) and 0 <= at_s < 1 << 40
    if not is_time or not is_rate(entry["bytes_per_s"]) or not isinstance(entry["was_limit"], bool):
        raise ValueError(f"what it says of {address[:MOST_ADDRESS]!r} makes no sense")


def is_rate(value: object) -> bool:
    """Tell whether a link can carry so many bytes per second."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 1 <= value <= MOST_BYTES_PER_S
