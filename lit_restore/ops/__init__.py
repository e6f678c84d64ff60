"""Tensor operations: tensors in, tensors out."""

from lit_restore.ops.causal_conv import causal_conv
from lit_restore.ops.selective_scan import selective_scan

__all__ = ["causal_conv", "selective_scan"]
