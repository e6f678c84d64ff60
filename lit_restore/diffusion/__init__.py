"""Diffusion and flow: interpolants, predictions, losses, guidance, solvers. Pure PyTorch.

Time is continuous, t = 0 noise and t = 1 data. A trained network becomes a `FlowPrior`; `sample`
carries noise through it with one of `SOLVERS`.
"""

from lit_restore.diffusion.guidance import Guidance
from lit_restore.diffusion.interpolants import INTERPOLANTS, Interpolant, interpolant_named
from lit_restore.diffusion.losses import WEIGHTINGS, flow_loss
from lit_restore.diffusion.noise import noise_like, sample_generators, standard_normal
from lit_restore.diffusion.predictions import PREDICTIONS, Estimates, convert
from lit_restore.diffusion.prior import Field, FlowPrior
from lit_restore.diffusion.result import Result
from lit_restore.diffusion.sampler import SamplerOptions, sample
from lit_restore.diffusion.schedules import TimeGrid
from lit_restore.diffusion.solvers import SOLVERS, solver_named
from lit_restore.diffusion.times import (
    TimeDistribution,
    draw_times,
    stratified_times,
    training_interval,
)

__all__ = [
    "INTERPOLANTS", "PREDICTIONS", "SOLVERS", "WEIGHTINGS", "Estimates", "Field", "FlowPrior",
    "Guidance", "Interpolant", "Result", "SamplerOptions", "TimeDistribution", "TimeGrid",
    "convert", "draw_times", "flow_loss", "interpolant_named", "noise_like", "sample",
    "sample_generators", "solver_named", "standard_normal",
    "stratified_times", "training_interval",
]  # fmt: skip
