"""Mamba's selective scan: `selective_scan`, and the ways to compute it, a file each."""

from lit_restore.ops.selective_scan.dispatch import set_backend, using
from lit_restore.ops.selective_scan.scan import selective_scan

__all__ = ["selective_scan", "set_backend", "using"]
