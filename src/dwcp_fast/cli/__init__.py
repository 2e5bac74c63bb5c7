"""The command line ``dwcp``: arguments become options, the library does the work, and this prints."""

from dwcp_fast.cli.program import main

__all__ = ["main"]
