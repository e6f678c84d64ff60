"""The flow-matching loss of each sample, for every prediction and weighting.

All weightings are written as a factor on the squared error of the network's own prediction, so
that the same weighting means the same loss whatever is predicted. With errors δ at the same x_t:
δ_velocity = (D/α) δ_noise = −(D/σ) δ_data, δ_noise = −(α/σ) δ_data, D = α σ' − σ α'.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant, expand
from lit_restore.diffusion.predictions import Prediction

Weighting: TypeAlias = Literal["none", "velocity", "likelihood", "min_snr"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
"""none: the prediction's own squared error. velocity: the error of the velocity it amounts to.
likelihood: ½ g² times the error of the score, which bounds the likelihood (arXiv 2101.09258,
theorem 1). min_snr: min(α²/σ², 5) times the error of the data (min-SNR-γ, arXiv 2303.09556). The
first three are SiT's `WeightType`, for noise and score; it ignores them for velocity."""

SNR_LIMIT = 5.0
"""γ of min-SNR, the paper's choice."""


def flow_loss(
    output: Tensor,
    x1: Tensor,
    x0: Tensor,
    t: Tensor,
    interpolant: Interpolant,
    *,
    prediction: Prediction = "velocity",
    weighting: Weighting = "none",
) -> Tensor:
    """Weighted mean squared error of each sample.

    Args:
        output: the network's prediction at x_t = α x1 + σ x0, (B, …).
        x1: data, (B, …).
        x0: standard normal noise, (B, …).
        t: times (B,), inside `times.training_interval`.
        interpolant: α and σ.
        prediction: what the network predicts.
        weighting: see `WEIGHTINGS`.

    Returns:
        (B,), the mean over all but the batch axis, in the type of `x1`.
    """
    error = prediction_error(output.to(x1.dtype), x1, x0, t, interpolant, prediction)
    squares = error.square().flatten(1).mean(1)
    if weighting == "none":
        return squares
    return loss_weight(t.to(x1), interpolant, prediction, weighting) * squares


def prediction_error(
    output: Tensor,
    x1: Tensor,
    x0: Tensor,
    t: Tensor,
    interpolant: Interpolant,
    prediction: Prediction,
) -> Tensor:
    """Prediction minus its target; for a score σ s + x0, the finite −σ times it (as SiT does)."""
    if prediction == "velocity":
        return output - interpolant.velocity(x1, x0, t)
    if prediction == "noise":
        return output - x0
    if prediction == "data":
        return output - x1
    return expand(interpolant.sigma(t), x1) * output + x0


def loss_weight(
    t: Tensor, interpolant: Interpolant, prediction: Prediction, weighting: Weighting
) -> Tensor:
    """The factor (B,) on the squared `prediction_error` at times (B,)."""
    if weighting == "none":
        return torch.ones_like(t)
    weights = {"velocity": _velocity, "likelihood": _likelihood, "min_snr": _min_snr}
    return weights[weighting](t, interpolant, prediction)


def _velocity(t: Tensor, interpolant: Interpolant, prediction: Prediction) -> Tensor:
    """(δ_velocity/δ)²."""
    if prediction == "velocity":
        return torch.ones_like(t)
    divisor = interpolant.sigma(t) if prediction == "data" else interpolant.alpha(t)
    return (interpolant.determinant(t) / divisor) ** 2


def _likelihood(t: Tensor, interpolant: Interpolant, prediction: Prediction) -> Tensor:
    """½ g² (δ_score/δ)² with ½ g² = −D σ/α and δ_score = −δ_noise/σ."""
    alpha, sigma = interpolant.alpha(t), interpolant.sigma(t)
    minus_d = -interpolant.determinant(t)
    if prediction == "velocity":
        return alpha / (sigma * minus_d)
    return minus_d * alpha / sigma**3 if prediction == "data" else minus_d / (alpha * sigma)


def _min_snr(t: Tensor, interpolant: Interpolant, prediction: Prediction) -> Tensor:
    """min(α²/σ², γ) (δ_data/δ)², with the quotients cancelled so that the ends are finite."""
    alpha2, sigma2 = interpolant.alpha(t) ** 2, interpolant.sigma(t) ** 2
    if prediction == "data":
        return (alpha2 / sigma2).clamp(max=SNR_LIMIT)
    limited = torch.minimum(alpha2, SNR_LIMIT * sigma2)
    if prediction == "velocity":
        return limited / interpolant.determinant(t) ** 2
    return limited / alpha2
