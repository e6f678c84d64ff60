"""Networks: plain PyTorch modules. A new one is a file here and a line in a list below."""

from lit_restore.networks.base import Network, apply_padded
from lit_restore.networks.bsrt import BSRT
from lit_restore.networks.dimsum import DiMSUM
from lit_restore.networks.dit import DiT
from lit_restore.networks.edsr import EDSR
from lit_restore.networks.ffdnet import FFDNet
from lit_restore.networks.fusion import FusionNet, TimeAverage, WaveletAverage
from lit_restore.networks.mirnet import MIRNet
from lit_restore.networks.unet import UNet

DENOISERS: dict[str, type[Network]] = {"UNet": UNet, "MIRNet": MIRNet, "FFDNet": FFDNet}
"""Called as `net(noisy, sigma)`."""

BACKBONES: dict[str, type[Network]] = {"DiMSUM": DiMSUM, "DiT": DiT}
"""Called as `net(x, t, y)`."""

RESTORERS: dict[str, type[Network]] = {"EDSR": EDSR}
"""Called as `net(degraded)`."""

FUSIONS: dict[str, type[Network]] = {
    "FusionNet": FusionNet,
    "TimeAverage": TimeAverage,
    "WaveletAverage": WaveletAverage,
}
"""Called as `net(restored, denoised, t)`."""

BURST_RESTORERS: dict[str, type[Network]] = {"BSRT": BSRT}
"""Called as `net(burst)`, (B, frames, 4, h, w)."""

NETWORKS: dict[str, type[Network]] = {
    **DENOISERS, **BACKBONES, **RESTORERS, **FUSIONS, **BURST_RESTORERS
}  # fmt: skip
"""Short name → class: what `net:` in a config and the metadata of a weights file may name."""

__all__ = [
    "BACKBONES",
    "BSRT",
    "BURST_RESTORERS",
    "DENOISERS",
    "EDSR",
    "FUSIONS",
    "NETWORKS",
    "RESTORERS",
    "DiMSUM",
    "DiT",
    "FFDNet",
    "FusionNet",
    "MIRNet",
    "Network",
    "TimeAverage",
    "UNet",
    "WaveletAverage",
    "apply_padded",
]
