"""What turns a clean image into a degraded one, drawn anew for every sample.

To add one: a class in a file here and its line in `DEGRADATIONS` (`listed.py`); the tests run over
that list.
"""

from lit_restore.data.degradations.base import Degradation
from lit_restore.data.degradations.blur import DefocusBlur, GaussianBlur
from lit_restore.data.degradations.chain import Chain, describe
from lit_restore.data.degradations.haze import Haze
from lit_restore.data.degradations.listed import (
    DEGRADATIONS,
    Record,
    build_degradation,
    same_degradation,
)
from lit_restore.data.degradations.motion import MotionBlur
from lit_restore.data.degradations.noise import GaussianNoise, JpegArtifacts
from lit_restore.data.degradations.scale import Downscale

__all__ = [
    "DEGRADATIONS",
    "Chain",
    "DefocusBlur",
    "Degradation",
    "Downscale",
    "GaussianBlur",
    "GaussianNoise",
    "Haze",
    "JpegArtifacts",
    "MotionBlur",
    "Record",
    "build_degradation",
    "describe",
    "same_degradation",
]
