"""How a fleet moves from v1 to v3 and back: flags, the kill switch, outcomes, and what watches them."""
