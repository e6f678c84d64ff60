"""Networks: plain PyTorch modules. A new one is a file here and a line in a list below."""

from lit_restore.networks.base import Network, apply_padded
from lit_restore.networks.dimsum import DiMSUM
from lit_restore.networks.dit import DiT
from lit_restore.networks.ffdnet import FFDNet
from lit_restore.networks.mirnet import MIRNet
from lit_restore.networks.unet import UNet

DENOISERS: dict[str, type[Network]] = {"UNet": UNet, "MIRNet": MIRNet, "FFDNet": FFDNet}
"""Called as `net(noisy, sigma)`."""

BACKBONES: dict[str, type[Network]] = {"DiMSUM": DiMSUM, "DiT": DiT}
"""Called as `net(x, t, y)`."""

NETWORKS: dict[str, type[Network]] = {**DENOISERS, **BACKBONES}
"""Short name → class: what `net:` in a config and the metadata of a weights file may name."""

__all__ = [
    "BACKBONES",
    "DENOISERS",
    "NETWORKS",
    "DiMSUM",
    "DiT",
    "FFDNet",
    "MIRNet",
    "Network",
    "UNet",
    "apply_padded",
]
