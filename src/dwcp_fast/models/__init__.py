"""The models that come with the package, and how one is read: checked, and never by unpickling."""

from dwcp_fast.models.selector import SELECTOR_CARD, read_selector, selector_bytes

__all__ = ["SELECTOR_CARD", "read_selector", "selector_bytes"]
