"""What this host offers to transfers, and what to change where it offers little.

Looks, and changes nothing. Needs no rights: what cannot be read, as on other systems than Linux, is
``"unknown"``.
"""

from dwcp_fast.doctor.examination import examine
from dwcp_fast.doctor.finding import UNKNOWN, Finding, Host
from dwcp_fast.doctor.rdma import rdma_limits

__all__ = ["UNKNOWN", "Finding", "Host", "examine", "rdma_limits"]
