"""Versions of a set of tensors: published as anchors and deltas, followed by any number of receivers."""

from dwcp_fast.versions.directory import DirectoryStore
from dwcp_fast.versions.draft import Draft
from dwcp_fast.versions.publisher import DeltaPublisher
from dwcp_fast.versions.reports import CommitReport, PublishReport
from dwcp_fast.versions.serving import PeerStatus
from dwcp_fast.versions.state import Tensors
from dwcp_fast.versions.store import Source, Stamp, Store
from dwcp_fast.versions.subscriber import AsyncStagedVersion, DeltaSubscriber, StagedVersion
from dwcp_fast.versions.tensors import Tensor, TensorSpec

__all__ = [
    "AsyncStagedVersion",
    "CommitReport",
    "DeltaPublisher",
    "DeltaSubscriber",
    "DirectoryStore",
    "Draft",
    "PeerStatus",
    "PublishReport",
    "Source",
    "StagedVersion",
    "Stamp",
    "Store",
    "Tensor",
    "TensorSpec",
    "Tensors",
]
