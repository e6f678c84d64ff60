"""Networks: plain PyTorch modules. A new one is a file here and a line in `NETWORKS`."""

from lit_restore.networks.base import Network, apply_padded
from lit_restore.networks.ffdnet import FFDNet
from lit_restore.networks.mirnet import MIRNet
from lit_restore.networks.unet import UNet

NETWORKS: dict[str, type[Network]] = {"UNet": UNet, "MIRNet": MIRNet, "FFDNet": FFDNet}
"""Short name → class: what `net:` in a config and the metadata of a weights file may name."""

__all__ = ["NETWORKS", "FFDNet", "MIRNet", "Network", "UNet", "apply_padded"]
