"""Arithmetic of one training sample, counted without doing it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from lit_restore.data.batch import Batch, Refusal, collate
from lit_restore.data.order import Order
from lit_restore.data.samples import TrainingSamples
from lit_restore.training.base import TrainingModule

_log = logging.getLogger(__name__)


def flops_per_image(module: TrainingModule) -> float | None:
    """FLOPs (a multiplication and an addition are two) of forward and backward for one sample.

    The module's own loss is computed on the run's first sample, while a twin of the network on the
    meta device (shapes without memory) stands in for it. So parameters, gradients and the state of
    every random generator stay as they are, and a large network costs no time. Counted are
    convolutions, products of matrices and attention, as by PyTorch's counter. To be called while
    the network is whole and not compiled (in a `setup` hook); recomputation by activation
    checkpointing does not count, as is usual for MFU.

    Returns:
        FLOPs, or None where they cannot be counted; the reason is logged.
    """
    try:
        batch = _first_sample(module)
        if batch is None:
            return None  # training will say why
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            FlopCounterMode(display=False) as counter,
            shapes_only(module.net),
        ):
            module.losses(batch)["loss"].backward()  # type: ignore[no-untyped-call]
        return float(counter.get_total_flops())
    except Exception as error:  # a network that meta tensors cannot go through trains none the less
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        _log.info("FLOPs are not counted, so there is no MFU (%s)", reason)
        return None


@contextmanager
def shapes_only(net: nn.Module) -> Iterator[None]:
    """For a while, `net` computes shapes only: zeros come out, and gradients end at its twin."""
    twin = meta_twin(net)
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)

    def enter(x: Tensor) -> Tensor:
        return _across(x.to(dtype) if x.is_floating_point() else x, "meta")

    def forward(*args: Any, **kwargs: Any) -> Any:
        devices = [x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        inputs, named = tree_map_only(Tensor, enter, (args, kwargs))
        outputs = twin(*inputs, **named)
        return tree_map_only(Tensor, lambda y: _across(y, devices[0]), outputs)

    kept = net.__dict__.get("forward")
    net.__dict__["forward"] = forward
    try:
        yield
    finally:
        if kept is None:
            del net.__dict__["forward"]
        else:
            net.__dict__["forward"] = kept


def meta_twin(net: nn.Module) -> nn.Module:
    """A copy of `net` on the meta device; no tensor of it is copied on the way."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        empty = torch.empty_like(p, device="meta", requires_grad=False)
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad)
    for buffer in net.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(net, memo)


def _across(x: Tensor, device: torch.device | str) -> Tensor:
    return cast(Tensor, _Across.apply(x, device))


class _Across(torch.autograd.Function):
    """Zeros of a tensor's shape on another device; as the gradient, zeros back on its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device | str) -> Tensor:
        ctx.device = x.device
        return torch.zeros_like(x, device=device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(grads[0], device=ctx.device), None


def _first_sample(module: TrainingModule) -> Batch | None:
    """The run's first sample as a batch of one, on the CPU; None where it is refused."""
    data = module.data
    source = data.sources["train"]
    order = Order(source.counts, seed=data.seed, window=data.shuffle_window)
    samples = TrainingSamples(source, order, augmentation=data.augmentation, seed=data.seed)
    batch = collate([samples[0]])
    if isinstance(batch, Refusal):
        return None
    batch.pop("bad", None)
    moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    return data.on_after_batch_transfer(moved, 0)
