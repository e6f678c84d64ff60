"""What every backend of the selective scan is given and gives back.

A backend is a module beside this one with two functions of these types, and a line in
`dispatch.BACKENDS`:

    forward(s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]
    backward(s: Scan, grad: Tensor, states: Tensor) -> Grads

`forward` returns y (batch, L, G, D) in the type of u, the last state (batch, G, D, N) and the
states before steps 0, `CHUNK`, 2 `CHUNK`, … of the scan (batch, chunks, G, N, D), with no chunk
unless `save`. `backward` gets the gradient of y and those states. All are contiguous and new.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 16
"""Steps between two kept states: as much memory as u has, with 16 states."""


@dataclass(frozen=True)
class Scan:
    """The arguments of a scan of G groups, with all groups of one shape."""

    u: Tensor
    """(batch, L, G, D)."""
    dt: Tensor
    """(batch, L, G, D)."""
    A: Tensor
    """(G, D, N), negative."""
    B: Tensor
    """(batch, L, G, N)."""
    C: Tensor
    """(batch, L, G, N)."""
    D: Tensor | None
    """(G, D)."""
    z: Tensor | None
    """(batch, L, G, D)."""
    dt_bias: Tensor | None
    """(G, D)."""
    index: Tensor | None
    """(G, L): step t of group g is row index[g, t]."""
    dt_softplus: bool

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(batch, G, D, N)."""
        return (self.u.shape[0], *self.A.shape)

    @property
    def state_dtype(self) -> torch.dtype:
        """float32, or float64 for float64 inputs."""
        return torch.promote_types(self.u.dtype, torch.float32)

    def states_shape(self, *, save: bool) -> tuple[int, int, int, int, int]:
        """(batch, chunks, G, N, D)."""
        groups, channels, states = self.A.shape
        chunks = -(-self.u.shape[1] // CHUNK) if save else 0
        return (self.u.shape[0], chunks, groups, states, channels)

    def widened(self) -> Scan:
        """Everything but the index in the type of the state."""
        u, dt, A, B, C = (t.to(self.state_dtype) for t in (self.u, self.dt, self.A, self.B, self.C))
        D, z, dt_bias = (
            None if t is None else t.to(self.state_dtype) for t in (self.D, self.z, self.dt_bias)
        )
        return Scan(u, dt, A, B, C, D, z, dt_bias, self.index, self.dt_softplus)

    def in_order(self) -> Scan:
        """The same with the tokens gathered into the order of the scan, and no index."""
        if self.index is None:
            return self
        index = self.index
        u, dt, B, C = (rows(t, index) for t in (self.u, self.dt, self.B, self.C))
        z = None if self.z is None else rows(self.z, index)
        return replace(self, u=u, dt=dt, B=B, C=C, z=z, index=None)


@dataclass(frozen=True)
class Grads:
    """The gradients of a scan, as its arguments are shaped; None for absent ones."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None

    def cast_like(self, s: Scan) -> Grads:
        """Each contiguous and in the type of what it is the gradient of."""
        cast = {
            field.name: value.to(getattr(s, field.name).dtype).contiguous()
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **cast)


class Kernel(Protocol):
    """A backend's module."""

    def forward(self, s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See the head of this file."""

    def backward(self, s: Scan, grad: Tensor, states: Tensor) -> Grads:
        """See the head of this file."""


def adjacent(x: Tensor) -> Tensor:
    """The same numbers with neighbours along the last axis beside each other; a copy if need be."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def in_pairs(x: Tensor) -> bool:
    """Whether the last axis of x (batch, L, G, ·) lies two by two in aligned words."""
    even = all(step % 2 == 0 for step in (x.shape[-1], *x.stride()[:3]))
    return even and x.data_ptr() % (2 * x.element_size()) == 0


def not_single(*tensors: Tensor | None) -> str | None:
    """Why a kernel whose states are float32 does not take these, in a line; None if it does."""
    fit = all(t is None or t.dtype in _SINGLE for t in tensors)
    return None if fit else "it computes in float32"


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index[g]`` of each group g.

    Args:
        x: (batch, L, G, ·).
        index: (G, L), int32 or int64.
    """
    return x.gather(1, index.long().T[None, :, :, None].expand(x.shape))


def inverse(index: Tensor) -> Tensor:
    """The permutations that undo those of index (G, L)."""
    return index.argsort(-1)
