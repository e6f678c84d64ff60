"""BSRT: a burst of raw frames in, one linear RGB picture of eight times their packed size out."""

from lit_restore.networks.bsrt.model import BSRT
from lit_restore.networks.bsrt.official import bsrt_from_official
from lit_restore.networks.bsrt.presets import PRESETS, preset

__all__ = ["BSRT", "PRESETS", "bsrt_from_official", "preset"]
