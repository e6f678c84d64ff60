"""A frozen autoencoder between pictures and latents: diffusers' `AutoencoderKL`.

Latent diffusion (Rombach et al., arXiv 2112.10752) trains on z = (E(x) - shift) · scale. The
network is diffusers' own class (the extra "diffusers"); its folder is read by us: a config of
plain values and one safetensors file, never a pickle, never the network.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import fs, tensors
from lit_restore.io.wording import shown
from lit_restore.weights.exported import fill
from lit_restore.weights.transfer import load_exactly

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

_LIMIT = 1 << 20
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Names of the attention's layers before diffusers 0.17: the published SD VAEs still have them.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(?<=\.attentions\.0\.)({'|'.join(_OLD_NAMES)})(?=\.)")


@dataclass(frozen=True, kw_only=True)
class AutoencoderInfo:
    """What identifies an autoencoder, and what its latents are."""

    sha256: str
    """Of its options and weights, 64 hexadecimal digits."""
    channels: int
    """Of a latent."""
    factor: int
    """Pixels of a picture's side for one of the latent's; sizes are multiples of it."""
    scaling_factor: float
    shift_factor: float
    """Latents are (E(x) - shift_factor) · scaling_factor."""


class Autoencoder:
    """Pictures → latents and back, with frozen weights.

    Not an `nn.Module`, so that a model that holds one neither trains, averages nor saves it.

    Args:
        model: an `AutoencoderKL`; is put into evaluation mode and frozen.
        info: what it is.
    """

    def __init__(self, model: Any, info: AutoencoderInfo) -> None:
        self._model = model.eval().requires_grad_(False)
        self.info = info

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of each image's latent.

        Args:
            images: (B, 3, H, W) in [0, 1], of any device; H and W multiples of `info.factor`.

        Returns:
            (mean - shift_factor) · scaling_factor and std · scaling_factor, (B, C, H / factor,
            W / factor) each, float32 on this autoencoder's device.

        Raises:
            UserError: height or width is no multiple of the factor.
        """
        check_multiple(self.info, *images.shape[-2:])
        signed = (2 * images.to(self.device, torch.float32) - 1).to(self.dtype)
        posterior = self._model.encode(signed).latent_dist
        scale, shift = self.info.scaling_factor, self.info.shift_factor
        mean = (posterior.mean.float() - shift) * scale
        # The exponential of a bfloat16 logarithm would keep two digits of the deviation.
        return mean, torch.exp(0.5 * posterior.logvar.float()) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents, scaled as `moments` gives them, as images.

        Differentiable in the latents, except where the image is clipped.

        Args:
            latents: (B, C, h, w) of any device.

        Returns:
            (B, 3, factor · h, factor · w) float32 in [0, 1] on this autoencoder's device.
        """
        plain = latents.to(self.device, torch.float32) / self.info.scaling_factor
        decoded: Tensor = self._model.decode((plain + self.info.shift_factor).to(self.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


def check_multiple(info: AutoencoderInfo, *sides: int, where: str = "size") -> None:
    """`UserError` naming `where` for a side that is no multiple of the factor."""
    for side in sides:
        if side < 1 or side % info.factor:
            below = max(side // info.factor, 1) * info.factor
            mend = f"use {below} or {below + info.factor}"
            raise UserError(
                f"{side} is no multiple of the VAE's {info.factor}; {mend}", where=where
            )


def load_autoencoder(
    folder: str | PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """The autoencoder in a folder as diffusers saves one.

    Args:
        folder: holds `config.json` and one `.safetensors` file.
        device: where it shall compute.
        dtype: what it shall compute in: float32, bfloat16 or float16.

    Raises:
        UserError: diffusers is missing, or as `read_autoencoder_info`, or the weights are not
            those of the config, or not finite.
    """
    place = _local(folder)
    info, weights = read_autoencoder_info(place), _weights_file(place)
    model = _build(_read_config(place), place / CONFIG)
    stored = tensors.read_header(weights).entries
    blanks = {_renamed(e.name): torch.empty(e.shape, device="meta") for e in stored}
    load_exactly(model, blanks, where=weights)  # before anything of a stranger's size is made
    model.to_empty(device="cpu")
    state = {_renamed(name): tensor for name, tensor in tensors.load_tensors(weights).items()}
    fill(model, state, where=weights)
    # diffusers' own `to` warns of any other type, whatever the network.
    torch.nn.Module.to(model, device, dtype)
    return Autoencoder(model, info)


def read_autoencoder_info(folder: str | PathLike[str]) -> AutoencoderInfo:
    """What the autoencoder in a folder is; its weights are hashed, not loaded.

    Raises:
        UserError: no such folder, or one that is not as diffusers saves an `AutoencoderKL`; no
            safetensors; or options that are not known here.
    """
    place = _local(folder)
    config, weights = _read_config(place), _weights_file(place)
    where = place / CONFIG
    tensors.read_header(weights)
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise UserError("latents_mean and latents_std are not supported", where=where)
    if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
        raise UserError("is no autoencoder of RGB pictures (in_channels)", where=where)
    widths = config.get("block_out_channels", [64])
    if not isinstance(widths, list) or not 1 <= len(widths) <= 8:
        raise UserError("block_out_channels is no short list", where=where)
    # What older configs do not say is what `AutoencoderKL` takes.
    scaling = _number(config, "scaling_factor", 0.18215, where)
    channels = _number(config, "latent_channels", 4, where)
    if not scaling > 0 or channels < 1:
        raise UserError("scaling_factor and latent_channels must be positive", where=where)
    return AutoencoderInfo(
        sha256=_digest(config, weights),
        channels=int(channels),
        factor=2 ** (len(widths) - 1),
        scaling_factor=scaling,
        shift_factor=_number(config, "shift_factor", 0.0, where),
    )


def _local(folder: str | PathLike[str]) -> Path:
    text = str(folder)
    if text.startswith("hf:") or "://" in text:
        mend = "download it first: hf download OWNER/NAME --local-dir vae"
        raise UserError(f"is not on this machine; {mend}", where=shown(text))
    return Path(folder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    fs.list_dir(folder)
    if not fs.exists(path):
        if fs.exists(folder / "vae" / CONFIG):
            raise UserError(f"is a whole pipeline; give {folder / 'vae'}", where=folder)
        raise UserError(
            "holds no config.json; give a folder as diffusers saves an AutoencoderKL", where=folder
        )
    try:
        config = json.loads(fs.read_text(path, limit=_LIMIT))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("is not JSON", where=path) from None
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKL":
        raise UserError("is not that of an AutoencoderKL (_class_name)", where=path)
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _weights_file(folder: Path) -> Path:
    paths = fs.list_dir(folder)
    found = [path for path in paths if path.suffix == ".safetensors"]
    if folder / WEIGHTS in found or len(found) == 1:
        return folder / WEIGHTS if folder / WEIGHTS in found else found[0]
    if found:
        names = " and ".join(path.name for path in found[:2])
        raise UserError(f"holds {names}; keep one of them", where=folder)
    for path in paths:
        if path.suffix in _PICKLES:
            reason = "is a pickle, which can run code, and is not read; get the .safetensors"
            raise UserError(reason, where=path)
    raise UserError(f"holds no weights ({WEIGHTS})", where=folder)


def _digest(config: dict[str, Any], weights: Path) -> str:
    said = {name: value for name, value in config.items() if value is not None}
    text = json.dumps([said, fs.sha256(weights)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _number(config: dict[str, Any], key: str, default: float, where: Path) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} is no number", where=where)
    return float(value)


def _build(config: dict[str, Any], where: Path) -> Any:
    """The network without memory for its weights."""
    try:
        # By name: mypy would read all of diffusers otherwise.
        kind: Any = importlib.import_module("diffusers").AutoencoderKL
    except ImportError:
        mend = "pip install 'lit-restore[diffusers]'"
        raise UserError(f"needs the package diffusers: {mend}", where="--vae") from None
    try:
        with torch.device("meta"):
            return kind(**config)
    except Exception as error:
        # Options come from a stranger's file; whatever they break is the file's fault.
        reason = shown(" ".join(str(error).split()))
        raise UserError(f"its options are refused by diffusers ({reason})", where=where) from None


def _renamed(name: str) -> str:
    """A tensor's name as diffusers has it today."""
    return _OLD.sub(lambda match: _OLD_NAMES[match[1]], name)
