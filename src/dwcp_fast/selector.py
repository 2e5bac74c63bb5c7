"""The model with which ``codec="auto"`` predicts what each codec makes of a block."""

import logging
from functools import cache
from pathlib import Path
from typing import Final

from dwcp_fast._core import SelectorModel
from dwcp_fast.errors import FormatError
from dwcp_fast.models import read_selector

__all__ = ["load_selector"]

LOG: Final = logging.getLogger(__name__)


def load_selector(path: Path | None) -> SelectorModel | None:
    """Load the model that a session is to use.

    Args:
        path: Its file; None for the one that comes with the package.

    Returns:
        The model. None if the package has none that can be used, which is logged: sessions then go by what
        earlier blocks gave.

    Raises:
        FormatError: `path` is damaged, no model, or made for another version.
        LimitExceededError: `path` is longer than any model.
        OSError: `path` cannot be read.
    """
    return built_in() if path is None else read_selector(path)


@cache
def built_in() -> SelectorModel | None:
    """Load the model that comes with the package, once."""
    try:
        return read_selector()
    except (FormatError, OSError) as exc:
        LOG.warning("codecs are chosen without a model: %s", exc)
        return None
