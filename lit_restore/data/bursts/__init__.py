"""Bursts of raw frames made from one picture, and the way back to a picture for display.

`unprocessing` undoes what a camera does to the light it saw, `motion` moves and shrinks, `mosaic`
keeps one colour a pixel, `noise` adds a sensor's; `parameters` are what is drawn for a burst and
travels with it, and `pipeline` is the whole way.
"""

from lit_restore.data.bursts.parameters import BurstOptions, BurstParameters, draw_parameters
from lit_restore.data.bursts.pipeline import synthesize_burst
from lit_restore.data.bursts.unprocessing import process, unprocess

__all__ = [
    "BurstOptions",
    "BurstParameters",
    "draw_parameters",
    "process",
    "synthesize_burst",
    "unprocess",
]
