"""Moves a running virtual machine: QEMU live migration through a relay.

Beside the QEMU that the guest comes to, and beside the one that it leaves::

    with Acceptance("new.qmp", "0.0.0.0:7443") as acceptance:
        print(acceptance.pairing)
        acceptance.run()

    report = migrate("old.qmp", "dwcp://host:7443#...")
"""

from dwcp_fast.vm.accept import Acceptance, accept
from dwcp_fast.vm.estimate import Estimate, estimate
from dwcp_fast.vm.migrate import Migration, migrate, migrate_async
from dwcp_fast.vm.options import AcceptOptions, MigrateOptions
from dwcp_fast.vm.report import AcceptReport, MigrationReport, Moment

__all__ = [
    "AcceptOptions",
    "AcceptReport",
    "Acceptance",
    "Estimate",
    "MigrateOptions",
    "Migration",
    "MigrationReport",
    "Moment",
    "accept",
    "estimate",
    "migrate",
    "migrate_async",
]
