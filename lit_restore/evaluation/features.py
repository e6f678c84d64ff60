"""Networks whose features stand for images where two sets of images are compared.

A distance between sets is a number about a network, a layer, a preparation and weights: all of them
are in its title, `FD[network-layer, digest]`. Only the Inception network of 2015 with its published
weights makes a Fréchet distance FID. Nothing is ever fetched: weights are files that a user has.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.quantise import to_uint8
from lit_restore.io.torch_files import load_foreign_weights
from lit_restore.networks.inception import FIDInceptionV3, tf1_bilinear
from lit_restore.networks.squeezenet import SqueezeNet
from lit_restore.weights.exported import fill
from lit_restore.weights.foreign import split_member

_AT_ONCE = 32
"""Images that go through a network together: the memory does not depend on the caller's batch."""
_DIGITS = 8
_FULL_FID = 10_000


class FeatureNetwork(ABC):
    """A frozen network in evaluation mode: images to features, float32 whatever the caller uses.

    Not an `nn.Module`, so that a module that holds one neither trains, saves nor wraps it.
    """

    kind: ClassVar[str]
    """Short name, in `FEATURES` and in the names of metrics."""
    name: str
    """Network, layer and how the map becomes a vector."""
    digest: str
    """First 8 hexadecimal digits of the SHA-256 of the weights; empty where there are none."""
    dimension: int
    """Features of an image."""

    def __init__(self, net: nn.Module, *, name: str, digest: str, dimension: int) -> None:
        self._net = net.eval().requires_grad_(False)
        self.name, self.digest, self.dimension = name, digest, dimension

    @classmethod
    @abstractmethod
    def of(cls, path: Path | None, member: str | None, *, where: str) -> FeatureNetwork:
        """From a user's file, or the member of a tar.

        Raises:
            UserError: no file given where one is needed, or it is missing, damaged or another's.
        """

    @abstractmethod
    def prepare(self, pixels: Tensor) -> Tensor:
        """What the network reads, from whole levels (B, 3, H, W) in [0, 255], float32."""

    @property
    def identity(self) -> str:
        """Name and digest."""
        return f"{self.name}, {self.digest}" if self.digest else self.name

    def title(self, measure: str, count: int) -> str:
        """The head of a column.

        Args:
            measure: ``fd``, ``kid``, ``precision`` …
            count: images on the smaller side.

        Returns:
            ``FD[squeezenet1.1-caffe-fire9-mean, 12345678]``. Never FID: numbers on other features
            are on another scale, and must not be read beside published ones.
        """
        text = f"{measure.upper() if len(measure) < 4 else measure}[{self.identity}]"
        assert "fid" not in text.lower(), text
        return text

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (B, 3, H, W), nominally in [0, 1], any float type and device; they go through
                the one quantisation to 8 bits here, which leaves quantised images as they are.

        Returns:
            (B, dimension) float32 on the CPU. Of one image they differ by rounding (1e-6 of their
            size) with the images that go through beside it.
        """
        assert images.ndim == 4, images.shape
        assert images.shape[1] == 3, images.shape
        pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)
        self._net.to(images.device)
        with torch.autocast(images.device.type, enabled=False), _full_precision(images.device):
            parts = [
                self._net(self.prepare(part.to(images.device, torch.float32))).cpu()
                for part in (pixels[k : k + _AT_ONCE] for k in range(0, len(pixels), _AT_ONCE))
            ]
        return torch.cat(parts) if parts else torch.empty(0, self.dimension)


class PixelFeatures(FeatureNetwork):
    """The image itself, averaged down to 8x8: for tests and the smallest runs, needs no weights.

    Sees colours and coarse layout, and nothing of detail.
    """

    kind = "pixels"
    side = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), name="pixels-8x8-mean", digest="", dimension=3 * self.side**2
        )

    @classmethod
    def of(cls, path: Path | None, member: str | None, *, where: str) -> PixelFeatures:
        """Takes no file."""
        if path is not None:
            raise UserError("takes no file; write `pixels` alone", where=where)
        return cls()

    def prepare(self, pixels: Tensor) -> Tensor:
        """Means over areas, in [0, 1], (B, 3, 8, 8)."""
        return F.interpolate(pixels, size=(self.side, self.side), mode="area") / 255


class SqueezeNetFeatures(FeatureNetwork):
    """SqueezeNet 1.1 with its authors' Caffe weights: means over the last fire module's map.

    Images are resized to 227x227, the authors' size (bicubic, antialiased where they shrink, not
    clipped), turned to BGR, and the authors' means (104, 117, 123) taken off. Their channel order
    and means were confirmed on the weights: a linear classifier of 40 classes on the features is
    right in 55 % of images so, in 46 % with RGB and in 51 % without the means.

    Args:
        net: with weights.
        size: side of the resized images; another than 227 is part of the name.
    """

    kind = "squeezenet"
    mean_bgr = (104.0, 117.0, 123.0)

    def __init__(self, net: SqueezeNet, *, size: int = 227) -> None:
        name = "squeezenet1.1-caffe-fire9-mean" + ("" if size == 227 else f"-{size}px")
        super().__init__(net, name=name, digest=weights_digest(net), dimension=net.dimension)
        self.size = size

    @classmethod
    def of(cls, path: Path | None, member: str | None, *, where: str) -> SqueezeNetFeatures:
        """From a file of arrays `conv1.weight`, `conv1.bias`, `fire2.squeeze1x1.weight` …"""
        given = _needed(path, cls.kind, where)
        stored = load_foreign_weights(given, member)
        net = SqueezeNet()
        parts = {name: part for name, part in stored.items() if not name.startswith("conv10.")}
        fill(net, parts, where=given if member is None else f"{given}:{member}")
        return cls(net)

    def prepare(self, pixels: Tensor) -> Tensor:
        """BGR, means taken off, (B, 3, size, size)."""
        x = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True)
        return x.flip(1) - torch.tensor(self.mean_bgr, device=x.device).view(1, 3, 1, 1)


class FIDInception(FeatureNetwork):
    """FID's network: Inception-v3 of 2015-12-05, 2048 means, images as TensorFlow 1 resized them.

    The preparation is `fid-tf` of the literature: bilinear to 299x299 without antialiasing or
    half-pixel centres, (x - 128) / 128. The structure is checked against torch-fidelity's with
    random weights; with the published ones it has not been run here, for they were not at hand, so
    confirm a published number before relying on it.
    """

    kind = "inception"
    published = "6726825d"
    """Digest of `pt_inception-2015-12-05-6726825d.pth`, the only file whose distance is FID."""

    def __init__(self, net: FIDInceptionV3, *, digest: str) -> None:
        super().__init__(net, name="inception-v3-fid", digest=digest, dimension=net.dimension)

    @classmethod
    def of(cls, path: Path | None, member: str | None, *, where: str) -> FIDInception:
        """From the published file, known by its SHA-256."""
        given = _needed(path, cls.kind, where)
        if member is not None:
            raise UserError("takes the file itself, not a tar's member", where=where)
        digest = fs.sha256(given)[:_DIGITS]
        if digest != cls.published:
            raise UserError(
                f"is not pt_inception-2015-12-05-{cls.published}.pth: its SHA-256 begins {digest}",
                where=given,
            )
        net = FIDInceptionV3()
        # Written before PyTorch's zip format, which has checksums; the digest stands in for them.
        stored = load_foreign_weights(given, legacy=True)
        own = net.state_dict()
        counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
        fill(net, {**counters, **stored}, where=given)
        return cls(net, digest=digest)

    def title(self, measure: str, count: int) -> str:
        """``FID``, or ``FID@5000`` below 10,000 images; other measures as of any network."""
        if measure == "fd" and self.digest == self.published:
            return "FID" if count >= _FULL_FID else f"FID@{count}"
        return f"{measure.upper() if len(measure) < 4 else measure}[{self.identity}]"

    def prepare(self, pixels: Tensor) -> Tensor:
        """In [-1, 1), (B, 3, 299, 299)."""
        return (tf1_bilinear(pixels, 299) - 128) / 128


FEATURES: dict[str, type[FeatureNetwork]] = {
    network.kind: network for network in (PixelFeatures, SqueezeNetFeatures, FIDInception)
}
"""Short name → network. A new one is one class and its place here."""


def open_features(spec: str, *, where: str = "--features") -> FeatureNetwork:
    """The feature network that a user names.

    Args:
        spec: ``pixels``, ``squeezenet:FILE``, ``squeezenet:FILE.tar:MEMBER`` or
            ``inception:FILE``.
        where: option or key that it stands in, for error lines.

    Raises:
        UserError: no such network, or its file is missing, damaged or another's.
    """
    kind, _, file = spec.partition(":")
    if kind not in FEATURES:
        close = difflib.get_close_matches(kind, FEATURES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FEATURES)}"
        raise UserError(f"no such features; {hint}", where=f"{where} {spec}")
    path, member = split_member(file) if file else (None, None)
    if path is not None and member is None and path.suffix == ".tar":
        raise UserError(f"is a tar; name its member, {spec}:MEMBER", where=path)
    return FEATURES[kind].of(path, member, where=f"{where} {spec}")


def weights_digest(net: nn.Module) -> str:
    """First 8 digits of the SHA-256 over weight and bias of each convolution, in order.

    Of the numbers as float32, little-endian, (out, in, height, width): it names the weights,
    whatever file they came in.
    """
    digest = hashlib.sha256()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            for part in (layer.weight, layer.bias):
                if part is not None:
                    digest.update(part.detach().cpu().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:_DIGITS]


def _needed(path: Path | None, kind: str, where: str) -> Path:
    if path is None:
        raise UserError(f"needs a file of weights: {kind}:FILE", where=where)
    return path


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Convolutions in true float32: TF32 keeps ten bits, and the features would be a GPU's own."""
    if device.type != "cuda":
        yield
        return
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before
