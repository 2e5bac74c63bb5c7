"""The model that chooses compressors."""

from pathlib import Path
from typing import Final

from dwcp_fast._core import SelectorModel
from dwcp_fast.errors import LimitExceededError

__all__ = ["SELECTOR_CARD", "read_selector", "selector_bytes"]

SELECTOR_MODEL: Final = "selector.dwsm"
SELECTOR_CARD: Final = "selector.json"
MOST_MODEL_BYTES: Final = 16 << 20


def selector_bytes(path: Path | None = None) -> bytes:
    """Read a model file without looking into it.

    Args:
        path: The file; None for the one that comes with the package.

    Raises:
        LimitExceededError: It is longer than any model.
        OSError: It cannot be read.
    """
    if path is None:
        # Not as a resource: what finds those takes longer to import than the model to read.
        return Path(__file__).with_name(SELECTOR_MODEL).read_bytes()
    with path.open("rb") as file:
        data = file.read(MOST_MODEL_BYTES + 1)
    if len(data) > MOST_MODEL_BYTES:
        raise LimitExceededError(
            f"{path.name} has over {MOST_MODEL_BYTES} bytes, which is the limit of a model"
        )
    return data


def read_selector(path: Path | None = None) -> SelectorModel:
    """Read and check a model.

    Args:
        path: The file; None for the one that comes with the package.

    Raises:
        FormatError: It is damaged, or no model.
        UnsupportedFormatError: It is of another version, or made for other features or actions.
        LimitExceededError: It is longer than any model.
        OSError: It cannot be read.
    """
    return SelectorModel(selector_bytes(path))
