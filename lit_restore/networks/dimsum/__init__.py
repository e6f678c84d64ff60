"""DiMSUM: Mamba blocks over space and wavelet frequency."""

from lit_restore.networks.dimsum.model import DiMSUM
from lit_restore.networks.dimsum.presets import PRESETS, preset

__all__ = ["PRESETS", "DiMSUM", "preset"]
