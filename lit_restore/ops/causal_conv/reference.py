"""The causal convolution in plain PyTorch: every device, every order of derivative."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.ops.causal_conv.arguments import Conv
from lit_restore.ops.selective_scan.arguments import inverse, rows


def conv(c: Conv) -> Tensor:
    """What autograd differentiates; y (batch, L, G, D) of the type of ``c.x``."""
    wide = torch.promote_types(c.x.dtype, torch.float32)
    with torch.autocast(c.x.device.type, enabled=False):
        pre = _back(c, _preactivation(c, _ordered(c, c.x.to(wide))))
        return (F.silu(pre) if c.silu else pre).to(c.x.dtype)


def forward(c: Conv) -> Tensor:
    """See `arguments`."""
    return conv(c).contiguous()


def backward(c: Conv, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `arguments`. With g the gradient before the activation and w_j tap j from the present:

    dx_t = sum_j w_j g_{t+j},   dw_j = sum_t g_t x_{t-j},   dbias = sum_t g_t.
    """
    wide = torch.promote_types(c.x.dtype, torch.float32)
    x, g = _ordered(c, c.x.to(wide)), _ordered(c, grad.to(wide))
    if c.silu:
        pre = _preactivation(c, x)
        s = torch.sigmoid(pre)
        g = g * s * (1 + pre * (1 - s))
    dx, dweight = torch.zeros_like(x), torch.zeros_like(c.weight, dtype=wide)
    taps, length = c.weight.shape[-1], x.shape[1]
    for j in range(min(taps, length)):
        later = g[:, j:]
        dx[:, : length - j] += c.weight[..., taps - 1 - j].to(wide) * later
        dweight[..., taps - 1 - j] = (later * x[:, : length - j]).sum((0, 1))
    dbias = None if c.bias is None else g.sum((0, 1)).to(c.bias.dtype)
    return _back(c, dx).to(c.x.dtype).contiguous(), dweight.to(c.weight.dtype), dbias


def _preactivation(c: Conv, x: Tensor) -> Tensor:
    """Bias + sum_j w_j x_{t-j}, x in the order of the scan."""
    taps, length = c.weight.shape[-1], x.shape[1]
    weight = c.weight.to(x.dtype)
    padded = F.pad(x, (0, 0, 0, 0, taps - 1, 0))
    pre = sum((weight[..., k] * padded[:, k : k + length] for k in range(taps)), x.new_zeros(()))
    return pre if c.bias is None else pre + c.bias.to(x.dtype)


def _ordered(c: Conv, x: Tensor) -> Tensor:
    return x if c.index is None else rows(x, c.index)


def _back(c: Conv, x: Tensor) -> Tensor:
    return x if c.index is None else rows(x, inverse(c.index))
