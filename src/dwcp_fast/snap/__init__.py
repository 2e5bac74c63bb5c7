"""Snapshots as one file: memory, device state and disks, relative to bases that are named by digest.

A **pack** (``DWCS``) holds a patch for every part of a snapshot. A part with a base, such as a golden image
or the snapshot before, is told by its difference; the pack names the base by size and tree digest and says
nothing of where it lies. Everything else is in the pack. Packs of the same parts are the same bytes.
"""

from dwcp_fast.snap.manifest import PackInfo, Part
from dwcp_fast.snap.pack import info, pack
from dwcp_fast.snap.unpack import UnpackReport, unpack

__all__ = ["PackInfo", "Part", "UnpackReport", "info", "pack", "unpack"]
