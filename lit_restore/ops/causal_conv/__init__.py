"""Depthwise causal convolution along a scan's order: `causal_conv`."""

from lit_restore.ops.causal_conv.conv import causal_conv

__all__ = ["causal_conv"]
