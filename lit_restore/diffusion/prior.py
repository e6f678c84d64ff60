"""Prior: a trained network, its interpolant and prediction, and guidance, as a field over (x, t).

Solvers know nothing of networks: they are given a `Field`, which a `FlowPrior` becomes once the
labels are fixed, and which a test can write in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lit_restore.diffusion.guidance import Guidance
from lit_restore.diffusion.interpolants import Interpolant, expand
from lit_restore.diffusion.predictions import PREDICTIONS, Estimates, Prediction, interval
from lit_restore.errors import UserError, require_choice


class Field(Protocol):
    """What a solver follows: estimates at every (x, t)."""

    @property
    def interpolant(self) -> Interpolant:
        """α and σ."""

    @property
    def interval(self) -> tuple[float, float]:
        """Times at which the velocity may be asked for; beyond it the nearest of them is used."""

    def __call__(self, x: Tensor, t: Tensor) -> Estimates:
        """One evaluation at x (B, …) and times (B,)."""

    def take(self, rows: Tensor) -> Field:
        """The field of the samples `rows` (indices, int64) alone."""


class FlowPrior:
    """A network as velocity, noise, score or data of any (x, t, labels).

    Times outside `interval` are replaced by its nearest end, for the network and the conversions
    alike, so that nothing is ever singular; the price is an error of the order of 1e-3 there.

    Args:
        net: `net(x, t)` or, with labels, `net(x, t, y)`: x (B, …), t (B,) in [0, 1] and of the
            type of x, y (B,) int64; returns (B, …), of any floating type.
        interpolant: that it was trained with.
        prediction: that it was trained for.
        guidance: classifier-free guidance; none for the conditional model alone.
        null_label: the label that stands for none, needed for guidance.

    Raises:
        UserError: an unknown prediction; guidance without a null label.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        interpolant: Interpolant,
        prediction: Prediction = "velocity",
        *,
        guidance: Guidance | None = None,
        null_label: int | None = None,
    ) -> None:
        require_choice(prediction, PREDICTIONS, where="prediction")
        if guidance is not None and null_label is None:
            raise UserError("needs a network with a null label", where="guidance")
        self.net = net
        self.interpolant = interpolant
        self.prediction = prediction
        self.guidance = guidance
        self.null_label = null_label
        self.interval = interval(interpolant, prediction)
        self.network_calls = 0
        """Forward passes so far."""
        self.network_rows = 0
        """Samples that went through the network so far; a guided one counts twice."""

    def estimates(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Estimates:
        """One (guided) evaluation in all four forms.

        Args:
            x: x_t, (B, …).
            t: times in [0, 1], (B,) or a scalar.
            y: labels (B,); none for a network without them.

        Raises:
            UserError: guidance without labels.
        """
        t = t.to(x).expand(len(x)).clamp(*self.interval)
        value = self._guided(self.guidance, x, t, y) if self.guidance else self._net(x, t, y)
        return Estimates(value, self.prediction, x, t, self.interpolant)

    def velocity(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """E[α' x1 + σ' x0 | x_t]; see `estimates`."""
        return self.estimates(x, t, y).velocity

    def noise(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x0 | x_t]; see `estimates`."""
        return self.estimates(x, t, y).noise

    def score(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """∇ log p_t(x_t); see `estimates`."""
        return self.estimates(x, t, y).score

    def data(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x1 | x_t]; see `estimates`."""
        return self.estimates(x, t, y).data

    def given(self, labels: Tensor | None = None) -> Field:
        """The field that a solver follows for these labels (B,)."""
        return _Given(self, labels)

    def _net(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.network_calls += 1
        self.network_rows += len(x)
        output = self.net(x, t) if y is None else self.net(x, t, y)
        # Under autocast it comes back in half precision, in which no state should be kept.
        return output.to(x.dtype)

    def _guided(self, guidance: Guidance, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The value v_c where s = 1, and v_u + s (v_c − v_u) elsewhere."""
        if y is None:
            raise UserError("guidance needs labels", where="labels")
        assert self.null_label is not None
        scale = guidance.at(t)
        rows = (scale != 1).nonzero()[:, 0]
        if len(rows) == 0:
            return self._net(x, t, y)
        null = torch.full_like(y[rows], self.null_label)
        if guidance.batched:
            both = self._net(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), torch.cat([y, null]))
            with_label, without = both[: len(x)], both[len(x) :]
        else:
            with_label, without = self._net(x, t, y), self._net(x[rows], t[rows], null)
        guided = without + expand(scale[rows], x) * (with_label[rows] - without)
        return guided if len(rows) == len(x) else with_label.index_copy(0, rows, guided)


@dataclass(frozen=True)
class _Given:
    """A prior with its labels."""

    prior: FlowPrior
    labels: Tensor | None

    @property
    def interpolant(self) -> Interpolant:
        return self.prior.interpolant

    @property
    def interval(self) -> tuple[float, float]:
        return self.prior.interval

    def __call__(self, x: Tensor, t: Tensor) -> Estimates:
        return self.prior.estimates(x, t, self.labels)

    def take(self, rows: Tensor) -> Field:
        return _Given(self.prior, None if self.labels is None else self.labels[rows])
