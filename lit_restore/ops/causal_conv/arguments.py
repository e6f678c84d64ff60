"""What every backend of the causal convolution is given and gives back.

A backend is a module beside this one, listed in `selective_scan.dispatch.BACKENDS`, with

    forward(c: Conv) -> Tensor
    backward(c: Conv, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]

`forward` returns y (batch, L, G, D) in the type of x, `backward` the gradients of x, weight and
bias in theirs. All are contiguous and new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Conv:
    """The arguments of a convolution of G groups."""

    x: Tensor
    """(batch, L, G, D)."""
    weight: Tensor
    """(G, D, K); the last tap is that of the present token."""
    bias: Tensor | None
    """(G, D)."""
    index: Tensor | None
    """(G, L): step t of group g is row index[g, t]."""
    silu: bool
    """Whether SiLU follows."""


class Kernel(Protocol):
    """A backend's module."""

    def forward(self, c: Conv) -> Tensor:
        """See the head of this file."""

    def backward(self, c: Conv, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See the head of this file."""
