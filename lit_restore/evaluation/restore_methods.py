"""What an evaluation of restorations compares: functions from a degraded image to a clean one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_restore.data.degradations import Record, same_degradation
from lit_restore.data.degradations.recorded import as_record
from lit_restore.errors import UserError
from lit_restore.evaluation.methods import Method, split_name
from lit_restore.inverse.fused import denoise
from lit_restore.networks import FUSIONS
from lit_restore.ops.resize import imresize
from lit_restore.sampling.restoration import RestoreOptions, check_tau, exact, restore_images
from lit_restore.weights.fused import LoadedFusion, load_fusion, recorded_degradation
from lit_restore.weights.loading import network_kind
from lit_restore.weights.restorers import load_restorer

Apply: TypeAlias = Callable[[Tensor, str, int], tuple[Tensor, int | None]]
"""(degraded (1, C, h, w), key, seed) → (restored (1, C, H, W), evaluations of networks or None)."""

_log = logging.getLogger(__name__)

_SIDE = 256
"""Of the image that the cost is given for, pixels of the output."""


@dataclass(frozen=True, kw_only=True)
class Restoring:
    """One row of a table."""

    name: str
    apply: Apply
    fused: bool = False
    """Whether it is of a fusion training, which the sampler's options are for."""
    seeded: bool = False
    """Whether it draws: what does not is measured with the first seed alone."""
    identity: dict[str, object] = field(default_factory=dict)
    """For the run id: whatever its output depends on. JSON."""
    degradations: tuple[Record, ...] = ()
    """That its networks were trained for, as far as it is known."""
    about: str = ""
    """A line below the table: parameters and cost."""
    timed: bool = True

    @property
    def method(self) -> Method:
        """As tables and reports know it."""
        return Method(name=self.name, restore=_never, identity=self.identity, timed=self.timed)


def _never(noisy: Tensor, sigma: float) -> Tensor:
    raise AssertionError("restorations are applied by their own loop")


def enlarged(scale: int) -> Restoring:
    """The degraded picture itself: MATLAB's bicubic enlargement, or as it is at scale 1."""

    def apply(degraded: Tensor, key: str, seed: int) -> tuple[Tensor, None]:
        return (degraded if scale == 1 else imresize(degraded, scale)), None

    return Restoring(name="degraded" if scale == 1 else "bicubic", apply=apply, timed=False)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a checkpoint's networks are replaced by, and where they run."""

    device: torch.device
    profile: str | None = None
    denoiser: str | None = None
    restorer: str | None = None


def methods_of(
    text: str, taus: Sequence[int], options: RestoreOptions, networks: Networks
) -> list[Restoring]:
    """The rows of one checkpoint.

    Args:
        text: ``F`` or ``NAME=F``. A fusion training gives a row for its restoration network alone
            and one for each tau; a restoration network, ours or foreign, gives one.
        taus: of a fusion training.
        options: of its sampler.
        networks: which, and where they run.

    Raises:
        UserError: no such checkpoint, or one for another task; tau is above what it was trained
            for.
    """
    name, path = split_name(text, option="--ckpt")
    if network_kind(path) not in FUSIONS:
        return [_regression(name, str(path), options, networks)]
    model = load_fusion(
        path, denoiser=networks.denoiser, restorer=networks.restorer, profile=networks.profile
    )
    try:
        check_tau(model, _at(options, max(taus)))
    except UserError as error:
        raise UserError(error.message, where="--tau") from None
    for net in model.networks().values():
        net.to(networks.device)
    about = f"{name}: {_cost(model, networks.device)}"
    for note in model.notes:
        _log.warning("%s", note)
    told = (model.degradation, model.restorer_degradation)
    known = tuple(d for one in told if (d := as_record(one, where=text)) is not None)
    alone = _fused(f"{name}-restorer", model, _at(options, 0), networks.device)
    rows = [replace(alone, seeded=False, about=about, degradations=known)]
    for tau in taus:
        if tau:
            row = _fused(f"{name}-tau{tau}", model, _at(options, tau), networks.device)
            rows.append(replace(row, degradations=known))
    return rows


def check_degradation(methods: Sequence[Restoring], given: Record | None) -> None:
    """Refuse networks for pictures degraded otherwise than those they were trained on.

    Args:
        methods: all rows.
        given: how the pictures at hand are degraded; None where they come from files.

    Raises:
        UserError: says what differs.
    """
    for method in methods:
        for own in method.degradations if given is not None else ():
            difference = same_degradation(own, given)
            if difference:
                raise UserError(
                    f"{method.name} was {difference}; --other-degradation measures it all the same",
                    where="--ckpt",
                )


def _at(options: RestoreOptions, tau: int) -> RestoreOptions:
    posterior = options.posterior
    steps = posterior.steps if posterior.steps is None else min(posterior.steps, max(1, tau))
    return replace(options, posterior=replace(posterior, tau=tau, steps=steps))


def _fused(
    name: str, model: LoadedFusion, options: RestoreOptions, device: torch.device
) -> Restoring:
    def apply(degraded: Tensor, key: str, seed: int) -> tuple[Tensor, int]:
        chosen = replace(options, seed=seed)
        grey = degraded.shape[1] == 1 < model.restorer.in_channels
        images = degraded.expand(-1, model.restorer.in_channels, -1, -1) if grey else degraded
        found = restore_images(model, images.to(device), chosen, [key])
        restored = found.images.mean(1, keepdim=True) if grey else found.images
        return restored.cpu(), model.restorer_calls + options.samples * found.nfe

    identity: dict[str, object] = {"networks": dict(model.digests), "options": _plain(options)}
    return Restoring(name=name, apply=apply, fused=True, seeded=True, identity=identity)


def _plain(options: RestoreOptions) -> dict[str, object]:
    posterior = options.posterior
    return {
        "tau": posterior.tau, "steps": posterior.steps, "tail": posterior.tail,
        "eta": posterior.eta, "variance": posterior.variance, "start": posterior.start,
        "estimate": options.estimate, "samples": options.samples, "tile": options.tile,
    }  # fmt: skip


def _regression(name: str, path: str, options: RestoreOptions, networks: Networks) -> Restoring:
    loaded = load_restorer(path, profile=networks.profile)
    net = loaded.net.to(networks.device)
    net.grey = "repeat"
    own = as_record(recorded_degradation(loaded.info), where=path)

    @torch.no_grad()
    def apply(degraded: Tensor, key: str, seed: int) -> tuple[Tensor, int]:
        net.tile_output(degraded, options.tile)
        with exact():
            return net(degraded.to(networks.device)).float().cpu(), 1

    sides = [_SIDE // net.scale] * 2
    flops = _gmac(net, torch.zeros(1, net.in_channels, *sides, device=networks.device))
    return Restoring(
        name=name,
        apply=apply,
        identity={"networks": {"restorer": loaded.sha256}, "tile": options.tile},
        degradations=() if own is None else (own,),
        about=f"{name}: {loaded.name}, {_millions(net)}, {flops:.3g} GMAC at {_SIDE}x{_SIDE}",
    )


def _cost(model: LoadedFusion, device: torch.device) -> str:
    """Parameters of each network, and multiply-adds as "x · NFE + y"."""
    net = model.restorer
    image = torch.zeros(1, net.out_channels, _SIDE, _SIDE, device=device)
    t = torch.ones(1, dtype=torch.int64, device=device)
    once = _gmac(net, torch.zeros(1, net.in_channels, *[_SIDE // net.scale] * 2, device=device))
    denoised = _gmac(
        model.denoiser, None, lambda: denoise(model.denoiser, model.diffusion, image, t)
    )
    fused = _gmac(model.fusion, None, lambda: model.fusion(image, image, t))
    sizes = ", ".join(f"{name} {_millions(net)}" for name, net in model.networks().items())
    return (
        f"{sizes}; {denoised + fused:.3g} GMAC for each evaluation of denoiser and fusion and "
        f"{once:.3g} once, at {_SIDE}x{_SIDE}; NFE counts both kinds"
    )


@torch.no_grad()
def _gmac(net: nn.Module, inputs: Tensor | None, call: Callable[[], Tensor] | None = None) -> float:
    """10^9 multiply-adds of convolutions and products of matrices in one call."""
    with FlopCounterMode(display=False) as counter:
        if call is not None:
            call()
        else:
            net(inputs)
    return float(counter.get_total_flops()) / 2e9


def _millions(net: nn.Module) -> str:
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters"
