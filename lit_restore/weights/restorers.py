"""Restoration networks from files: those trained here, and whatever spandrel recognises.

A foreign file holds tensors alone: it is read by our readers (no code, sizes checked), and spandrel
finds the architecture and its sizes from the tensors' names and shapes. What cannot be told from
them, like a missing last block, cannot be noticed; anything else missing or left over is an error.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.io import fs, tensors
from lit_restore.io.torch_files import load_foreign_weights
from lit_restore.io.wording import shown
from lit_restore.networks import BURST_RESTORERS, Network
from lit_restore.networks.base import JSONValue, noise_map
from lit_restore.networks.restoration import RestorationNetwork
from lit_restore.weights.foreign import split_member
from lit_restore.weights.loading import load_network

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

_REFUSED = {
    "AuraSR": "draws noise of its own at every call",
    "GFPGAN": "restores aligned faces alone",
    "RestoreFormer": "restores aligned faces alone",
}
"""Architectures that spandrel knows and that are no function of an image of any size."""
_FLOAT32 = ("FFTformer",)
"""Architectures that run in float32 under any autocast, whatever spandrel says: the products of
spectra in FFTformer's attention cost a tenth of its change of the image in bfloat16."""
_PREFER = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Dictionaries of a foreign file, first the best: an average of the weights before the weights."""


@dataclass(frozen=True, kw_only=True)
class LoadedRestorer:
    """A restoration network, frozen, and what is known about its weights."""

    net: RestorationNetwork
    """On the CPU."""
    sha256: str
    """Of the weights, by name, as the file holds them: the same for a checkpoint and its export."""
    name: str
    """The class of ours, or spandrel's name of the architecture."""
    source: Path
    """What was read: a file, a checkpoint folder, or FILE.tar:MEMBER."""
    info: Mapping[str, JSONValue] = field(default_factory=dict)
    """What ours say of themselves (task, profile, samples_seen, config …); nothing of others."""


def load_restorer(
    path: str | PathLike[str],
    *,
    expect_scale: int | None = None,
    tile: int | None = None,
    sigma: float | None = None,
    profile: str | None = None,
    legacy: bool = False,
) -> LoadedRestorer:
    """The restoration network in a file or a run.

    Args:
        path: a run, a checkpoint or an exported file of ours whose network takes images alone (and
            enlarges by its attribute `scale`, 1 without), or a foreign ``.pth`` or ``.safetensors``
            (or FILE.tar:MEMBER) of an architecture that spandrel knows: SwinIR, FFTformer, HAT …
        expect_scale: the task's scale; another one is an error.
        tile: largest side in one piece, pixels of the degraded image; see `RestorationNetwork`.
        sigma: noise level, in image units, for networks that take one (FFDNet, DRUNet); no others.
        profile: of ours, which average of the weights; by default the first.
        legacy: also read PyTorch's format from before 1.6; runs no code, but has no checksums.

    Raises:
        UserError: there is no such file, it is damaged, of no known network, its tensors are not
            those of the network they belong to, not finite, or the scale or `sigma` do not fit.
    """
    place, member = split_member(str(path))
    if member is None and _is_ours(place):
        found = _ours(place, sigma, profile)
    elif profile is not None:
        raise UserError(f"has no averages; leave profile {profile} out", where=path)
    else:
        found = _foreign(place, member, sigma, legacy=legacy)
    if expect_scale is not None and found.net.scale != expect_scale:
        raise UserError(
            f"{found.name} enlarges by {found.net.scale}, the task by {expect_scale}", where=path
        )
    if tile is not None:
        found.net.set_tile(tile)
    return found


class AtLevel(nn.Module):
    """A denoiser at one noise level, as a network of images alone.

    Args:
        net: `net(images, levels)` with levels (B,), or where `joined`, `net(images and map)`.
        sigma: the level, in image units.
        joined: the level is a last channel of the input.
    """

    def __init__(self, net: nn.Module, sigma: float, *, joined: bool) -> None:
        super().__init__()
        self.net, self.sigma, self.joined = net, sigma, joined

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        levels = images.new_full((len(images),), self.sigma)
        if self.joined:
            joined: Tensor = self.net(torch.cat([images, noise_map(levels, images)], dim=1))
            return joined
        out: Tensor = self.net(images, levels)
        return out


class Called(nn.Module):
    """A network of spandrel, called as spandrel calls it (of several outputs the first, …).

    Its own descriptor would do so in inference mode, whose tensors no training can use.

    Args:
        descriptor: of the network.
    """

    def __init__(self, descriptor: ImageModelDescriptor[nn.Module]) -> None:
        super().__init__()
        self.net = descriptor.model
        self._call = descriptor._call_fn

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C', scale · h, scale · w)."""
        return cast("Tensor", self._call(self.net, images))


# Ours ---------------------------------------------------------------------------------------------


def _is_ours(path: Path) -> bool:
    """A folder, or a safetensors file that says so."""
    if fs.is_dir(path):
        return True
    return _is_safetensors(path) and "lit_restore" in tensors.read_metadata(path)


def _ours(path: Path, sigma: float | None, profile: str | None) -> LoadedRestorer:
    loaded = load_network(path, profile=profile)
    net = loaded.net
    if net.kind in BURST_RESTORERS:
        told = "restores bursts, not pictures; `lit-restore shards restore` makes bursts for it"
        raise UserError(f"{net.kind} {told}", where=path)
    inputs = inspect.signature(net.forward).parameters
    needed = [name for name, one in inputs.items() if one.default is one.empty and name != "sigma"]
    if len(needed) != 1:
        raise UserError(f"holds a {net.kind}, which restores no images", where=path)
    level = "sigma" in inputs and bool(getattr(net, "has_noise_map", True))
    called = _at_level(net, sigma, needed=level, joined=False, name=net.kind, where=path)
    restorer = RestorationNetwork(
        called,
        name=net.kind,
        scale=_number(net, "scale", 1),
        in_channels=_number(net, "channels", 3),
        multiple=net.multiple,
    )
    return LoadedRestorer(
        net=restorer, sha256=weights_sha256(net.state_dict()), name=net.kind,
        source=loaded.source, info=loaded.info,
    )  # fmt: skip


def _number(net: Network, name: str, default: int) -> int:
    """An attribute of a network or, where it has none, its option of that name."""
    value = getattr(net, name, net.options.get(name, default))
    assert isinstance(value, int), (name, value)
    return value


def _at_level(
    net: nn.Module,
    sigma: float | None,
    *,
    needed: bool,
    joined: bool,
    name: str,
    where: str | PathLike[str],
) -> nn.Module:
    """`net` at its noise level, where it takes one.

    Raises:
        UserError: it takes one and there is none, or the other way round.
    """
    if needed and sigma is None:
        raise UserError(
            f"{name} takes a noise level, which pictures to be restored do not tell; give "
            "another network (in Python, sigma)",
            where=where,
        )
    if sigma is None:
        return net
    if not needed:
        raise UserError(f"{name} takes no noise level; leave sigma out", where=where)
    return AtLevel(net, sigma, joined=joined)


# Others' ------------------------------------------------------------------------------------------


def _foreign(
    place: Path, member: str | None, sigma: float | None, *, legacy: bool
) -> LoadedRestorer:
    where = str(place) if member is None else f"{place}:{member}"
    stored = _read(place, member, legacy)
    bad = next((name for name, tensor in stored.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise UserError(f"{shown(bad)} holds non-finite values", where=where)
    digest = weights_sha256(stored)
    descriptor = _recognised(stored, where)
    name = descriptor.architecture.name
    level = descriptor.architecture.id == "DRUNet" or "FDnCNN" in descriptor.tags
    needs = descriptor.size_requirements
    net = descriptor.model if level else Called(descriptor)
    net = _at_level(net, sigma, needed=level, joined=True, name=name, where=where)
    restorer = RestorationNetwork(
        net, name=name, scale=descriptor.scale, autocast=_precisions(descriptor),
        in_channels=descriptor.input_channels, out_channels=descriptor.output_channels,
        multiple=needs.multiple_of, minimum=needs.minimum, square=needs.square,
    )  # fmt: skip
    return LoadedRestorer(net=restorer, sha256=digest, name=name, source=Path(where))


def _precisions(descriptor: ImageModelDescriptor[nn.Module]) -> list[torch.dtype]:
    """Types in which a network may run under autocast."""
    if descriptor.architecture.id in _FLOAT32:
        return []
    allowed = {
        torch.bfloat16: descriptor.supports_bfloat16,
        torch.float16: descriptor.supports_half,
    }
    return [dtype for dtype, supported in allowed.items() if supported]


def _is_safetensors(path: Path) -> bool:
    """Whether a header of JSON follows the eight bytes of its length."""
    with fs.open_read(path) as file:
        return file.read(9)[8:] == b"{"


def _read(place: Path, member: str | None, legacy: bool) -> dict[str, Tensor]:
    if member is None and _is_safetensors(place):
        return tensors.load_tensors(place)
    return load_foreign_weights(place, member, prefer=_PREFER, legacy=legacy)


def _recognised(stored: dict[str, Tensor], where: str) -> ImageModelDescriptor[nn.Module]:
    """The network that spandrel makes of the tensors.

    Raises:
        UserError: it knows none, or one whose tensors are others.
    """
    # Imported here: it takes as long as all of ours, and most commands never need it.
    from spandrel import MAIN_REGISTRY, ImageModelDescriptor, canonicalize_state_dict

    state = canonicalize_state_dict(stored)
    kinds = (support.architecture for support in MAIN_REGISTRY.architectures("detection"))
    kind = next((kind for kind in kinds if kind.detect(state)), None)
    if kind is None:
        names = ", ".join(shown(name) for name in list(stored)[:3])
        raise UserError(
            f"holds no restoration network that is known; its tensors are {names} …", where=where
        )
    if kind.id in _REFUSED:
        raise UserError(f"holds {kind.name}, which {_REFUSED[kind.id]}", where=where)
    try:
        # Its constructors initialise what is then overwritten, from the global generator.
        with torch.random.fork_rng(devices=[]):
            descriptor = kind.load(dict(state))
    except Exception as error:
        # Sizes are guessed from a stranger's shapes; whatever goes wrong is the file's fault.
        raise UserError(
            f"is no whole {kind.name}: {_reason(error)}; the file is partial, or of a variant that "
            "is not known",
            where=where,
        ) from None
    if not isinstance(descriptor, ImageModelDescriptor):
        raise UserError(f"holds {kind.name}, which needs a mask", where=where)
    return descriptor


_KEYS = re.compile(r'(Missing|Unexpected) key\(s\) in state_dict: ((?:"[^"]*"(?:, )?)+)')
_SIZES = re.compile(r"size mismatch for (\S+):")


def _reason(error: Exception) -> str:
    """What is wrong with a state dict, in a few words."""
    text = str(error)
    found = [
        f"{len(names)} {what.lower()} (first {shown(names[0])})"
        for what, listed in _KEYS.findall(text)
        if (names := re.findall(r'"([^"]*)"', listed))
    ]
    sizes = _SIZES.findall(text)
    if sizes:
        found.append(f"{len(sizes)} of another size (first {shown(sizes[0])})")
    if found:
        return "tensors " + ", ".join(found)
    if isinstance(error, KeyError):
        return f"tensor {shown(text)} is missing"
    return shown(text.splitlines()[0] if text else type(error).__name__)


def weights_sha256(stored: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: names in order, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(stored):
        tensor = stored[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
