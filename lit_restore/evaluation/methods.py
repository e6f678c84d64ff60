"""What an evaluation compares: functions from a noisy image to an estimate of the clean one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.evaluation.given import with_mend
from lit_restore.io.wording import shown
from lit_restore.networks import apply_padded
from lit_restore.weights.loading import LoadedNetwork, load_network

Restore: TypeAlias = Callable[[Tensor, float], Tensor]
"""(noisy (B, C, H, W) float32, σ in image units) → (B, C, H, W), on any device."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_CKPT = "--ckpt takes a file of `lit-restore export`, a checkpoint folder or a run folder"
_TAKEN = re.compile(r"clean|noisy|tv-chambolle.*")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of a table, or one candidate for it."""

    name: str
    """Of its folder and in rows.csv."""
    restore: Restore
    family: str | None = None
    """Methods of one family compete: the table shows the best of them."""
    setting: str = ""
    """What distinguishes it within the family: ``weight 0.08``."""
    identity: dict[str, object] = field(default_factory=dict)
    """For the run id: whatever its output depends on. JSON."""
    network: nn.Module | None = None
    """The network whose evaluations are counted."""
    timed: bool = True
    """Whether its seconds mean anything."""
    channels: int | None = None
    """Channels of the only images it takes; None: any."""


def network_method(text: str, *, profile: str | None, device: torch.device) -> Method:
    """A denoiser from a checkpoint.

    Args:
        text: ``F`` or ``NAME=F``; F is an exported file, a checkpoint folder or a run folder.
        profile: which average of the weights to take; by default the first.
        device: where it runs.

    Raises:
        UserError: no such checkpoint, not a denoiser, or an impossible or taken name.
    """
    name, path = split_name(text, option="--ckpt")
    if _TAKEN.fullmatch(name):
        raise UserError(
            f"the name {name} is taken; give another: NAME={path}", where=f"--ckpt {text}"
        )
    loaded = load_denoiser(path, profile=profile)
    net = loaded.net.to(device)
    return Method(
        name=name,
        restore=denoise_with(net, device),
        identity={"sha256": loaded.digest, "profile": loaded.info.get("profile")},
        network=net,
        channels=image_channels(loaded),
    )


def load_denoiser(path: Path, *, profile: str | None) -> LoadedNetwork:
    """The network that ``--ckpt`` names.

    Args:
        path: an exported file, a checkpoint folder or a run folder.
        profile: which average of the weights to take; by default the first.

    Raises:
        UserError: there is no network, it is damaged, lacks the profile, or was trained for
            something else.
    """
    try:
        loaded = load_network(path, profile=profile)
    except UserError as error:
        mend = "leave --profile out" if "profile" in error.message else _CKPT
        raise with_mend(error, mend) from None
    task = loaded.info.get("task", "denoiser")
    if task != "denoiser":
        use = "; lit-restore sample makes pictures with it" if task == "generation" else ""
        raise UserError(f"was trained for {task}, a denoiser is needed{use}", where=path)
    return loaded


def image_channels(loaded: LoadedNetwork) -> int:
    """Channels of the images a network takes (3 if its options do not say)."""
    channels = loaded.net.options.get("channels", 3)
    assert isinstance(channels, int)
    return channels


def denoise_with(net: nn.Module, device: torch.device) -> Restore:
    """The network as a function of (noisy, σ), in float32, without gradients."""

    @torch.inference_mode()
    def restore(noisy: Tensor, sigma: float) -> Tensor:
        x = noisy.to(device, torch.float32)
        level = torch.full((len(x),), sigma, device=device, dtype=torch.float32)
        return apply_padded(net, x, level)

    return restore


def split_name(text: str, *, option: str) -> tuple[str, Path]:
    """``NAME=PATH`` or ``PATH``, whose last part is the name then.

    Raises:
        UserError: there is no path, or the name cannot be a folder's.
    """
    head, equals, tail = text.partition("=")
    named = bool(equals) and "/" not in head
    if not (tail if named else text).strip():
        raise UserError("names no path; give PATH or NAME=PATH", where=f"{option} {text}".strip())
    path = Path(tail if named else text).expanduser()
    default = path.name.removesuffix(".safetensors") or path.resolve().name
    name = head if named else re.sub(r"[^A-Za-z0-9._+-]+", "-", default).strip("-.")[:64]
    if _NAME.fullmatch(name) is None:
        raise UserError(
            f"{shown(name)} is no name; use letters, digits and ._+-", where=f"{option} {text}"
        )
    return name, path


def check_names(methods: Sequence[Method], option: str) -> None:
    """Refuse two methods of one name."""
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two are called {name}; name them: NAME=PATH", where=option)


def pick_device(text: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a device.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    present = torch.cuda.is_available()
    if text == "cuda" and not present:
        raise UserError("this machine has no usable GPU; use auto or cpu", where="--device cuda")
    return torch.device("cuda" if present and text != "cpu" else "cpu")
