"""Decisions: pure functions of what was asked for and what was measured, each with its reason."""
