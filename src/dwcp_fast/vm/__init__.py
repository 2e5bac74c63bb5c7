"""Moves a running virtual machine: QEMU live migration through a relay."""
