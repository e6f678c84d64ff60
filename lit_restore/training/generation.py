"""Generation by flow matching: a velocity field from noise to pictures or latents (DiMSUM, DiT).

x_t = α(t) x1 + σ(t) x0 with data x1 in [-1, 1] (or latents), noise x0 and time t drawn for each
sample; the network's output is regressed on the velocity (Lipman et al., arXiv 2210.02747; SiT,
arXiv 2401.08740; DiMSUM, arXiv 2411.04168).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.data.latents import draw_latent
from lit_restore.diffusion import (
    FlowPrior,
    Guidance,
    SamplerOptions,
    TimeDistribution,
    draw_times,
    flow_loss,
    interpolant_named,
    noise_like,
    sample,
    sample_generators,
    solver_named,
    standard_normal,
    stratified_times,
    training_interval,
)
from lit_restore.diffusion.losses import Weighting
from lit_restore.diffusion.predictions import Prediction
from lit_restore.errors import UserError, require_at_least
from lit_restore.networks import BACKBONES
from lit_restore.networks.base import Network
from lit_restore.seeding import torch_generator
from lit_restore.training.base import TrainingModule
from lit_restore.training.drawing import Decoder, decoder_of
from lit_restore.training.fitting import check_autoencoder, check_data
from lit_restore.training.options import OptimizerOptions, ScheduleOptions
from lit_restore.training.scoring import SampleScore, ScoreOptions

_VALIDATION_TIMES = 4
_LABEL_DROPOUT = 0.1


class FlowGeneration(TrainingModule):
    """Train a backbone to carry noise to data; sample with the averaged weights.

    Args:
        net: a backbone, `net(x, t, y)`; with classes: 0 labels are left out.
        interpolant: linear, gvp (DiMSUM's released models) or vp.
        prediction: what the network gives: velocity, noise, score or data.
        weighting: of the loss: none, velocity, likelihood or min_snr.
        times: distribution of the training times.
        label_dropout: share of the samples trained without their label, which guidance needs;
            0.1 if not given; for networks with classes alone.
        vae: folder of the autoencoder that made the latents, for pictures during training; none
            shows their first three channels as colours. For latents alone.
        sampler: how pictures are made for grids and scores.
        guidance: of these; none for networks without classes, or without guidance.
        sample_batch: pictures that are made at once.
        score: distances between made and real pictures, at validation.
        optimizer: the optimiser.
        schedule: the learning rate over the run.
        clip_norm: the gradient is scaled down to this norm; none for no clipping.
        seed: the run's seed (set by the top-level option of this name).

    Raises:
        UserError: an option is out of range or does not go with another.
    """

    task: ClassVar[str] = "generation"
    networks: ClassVar[Mapping[str, type[Network]]] = BACKBONES
    needs_input: ClassVar[bool] = False

    def __init__(
        self,
        net: Network,
        *,
        interpolant: str = "linear",
        prediction: Prediction = "velocity",
        weighting: Weighting = "none",
        times: TimeDistribution = TimeDistribution(),  # noqa: B008
        label_dropout: float | None = None,
        vae: str | None = None,
        sampler: SamplerOptions = SamplerOptions(),  # noqa: B008
        guidance: Guidance | None = None,
        sample_batch: int = 64,
        score: ScoreOptions = ScoreOptions(),  # noqa: B008
        optimizer: OptimizerOptions = OptimizerOptions(lr=1e-4),  # noqa: B008
        schedule: ScheduleOptions = ScheduleOptions(name="constant"),  # noqa: B008
        clip_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, schedule=schedule, clip_norm=clip_norm, seed=seed
        )
        require_at_least(0, model__clip_norm=clip_norm, model__label_dropout=label_dropout)
        require_at_least(1, model__sample_batch=sample_batch)
        self.interpolant = interpolant_named(interpolant, where="model.interpolant")
        self.prediction, self.weighting, self.times = prediction, weighting, times
        self.within = training_interval(self.interpolant, prediction, weighting)
        self.classes, self.shape = _count(net.options["classes"]), _shape(net)
        self._check_labels(label_dropout, guidance)
        self.label_dropout = _LABEL_DROPOUT if label_dropout is None else label_dropout
        self.vae, self.sampler, self.guidance = vae, sampler, guidance
        self.sample_batch = sample_batch
        self.score_options = score
        self._score = SampleScore(ScoreOptions())
        self._decoder: Decoder | None = None

    def _check_labels(self, label_dropout: float | None, guidance: Guidance | None) -> None:
        if label_dropout is not None and label_dropout >= 1:
            raise UserError(
                f"{label_dropout} leaves no label; below 1", where="model.label_dropout"
            )
        for option, value in (("label_dropout", label_dropout), ("guidance", guidance)):
            if value is not None and not self.classes:
                raise UserError(
                    "is for networks with classes; leave it out, or set model.net.classes",
                    where=f"model.{option}",
                )

    def check_network(self) -> None:
        """Any channels will do: what the data have is known with the first batch."""

    # --- before the run -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Find what will show and compare pictures, so that it is told now if it cannot be had.

        Raises:
            UserError: no such autoencoder, or not the one of the data; no such features.
        """
        self._decoder = decoder_of(self.shape[0], self.vae)
        self._score = SampleScore(self.score_options)
        if self.vae is not None:
            for split in ("train", "val"):
                check_autoencoder(self.vae, getattr(self.data, split))

    def configure_model(self) -> None:
        """As for every training; and every rank must call a sharded network equally often.

        Raises:
            UserError: pictures would be made for scores with steps of each sample's own.
        """
        super().configure_model()
        adaptive = (
            solver_named(self.sampler.solver, where="model.sampler.solver").kind == "adaptive"
        )
        if self.device_mesh is not None and self.score_options.count and adaptive:
            raise UserError(
                "takes as many steps as each rank's pictures need, which a sharded network cannot; "
                "use heun, or model.score.count 0, or trainer.strategy ddp",
                where="model.sampler.solver",
            )

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        # The data module has the public hook; here the labels can be read without a wait.
        batch = super()._on_before_batch_transfer(batch, dataloader_idx)
        check_data(batch, self.shape, self.classes, self.vae)
        return batch

    # --- training -------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The flow-matching loss at one time of each sample."""
        positions = batch["position"].tolist()
        x1 = self.data_of(batch, self.seed, positions)
        generators = [torch_generator(self.seed, p, "time") for p in positions]
        t = draw_times(self.times, generators, self.within).to(x1)
        x0 = noise_like(x1, self.seed, positions)
        return {"loss": self.loss_at(self.net, x1, x0, t, self.labels_of(batch, positions)).mean()}

    def data_of(self, batch: Batch, seed: int, names: Sequence[int | str]) -> Tensor:
        """x1 of a batch: latents as drawn from their posteriors, or pictures in [-1, 1].

        Args:
            batch: on the device.
            seed: of the draw.
            names: the samples' positions in the run, or their keys.
        """
        if "latent" in batch:
            return draw_latent(batch["latent"], seed, names).to(batch["image"].dtype)
        return 2 * batch["image"] - 1

    def labels_of(self, batch: Batch, positions: Sequence[int]) -> Tensor | None:
        """Labels (B,), the share `label_dropout` replaced by "none"; None without classes."""
        if not self.classes:
            return None
        labels = batch["label"]
        draws = [
            torch.rand((), generator=torch_generator(self.seed, p, "label")) for p in positions
        ]
        dropped = (torch.stack(draws) < self.label_dropout).to(labels.device)
        return torch.where(dropped, self.classes, labels)

    def loss_at(
        self, net: nn.Module, x1: Tensor, x0: Tensor, t: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Loss (B,) of data `x1` mixed with noise `x0` at times `t` (B,)."""
        x_t = self.interpolant.mix(x1, x0, t)
        output = net(x_t, t) if labels is None else net(x_t, t, labels)
        return flow_loss(
            output.to(x1.dtype), x1, x0, t, self.interpolant,
            prediction=self.prediction, weighting=self.weighting,
        )  # fmt: skip

    # --- sampling -------------------------------------------------------------------------------

    def prior(self, net: nn.Module) -> FlowPrior:
        """The network as a field to follow."""
        return FlowPrior(
            net, self.interpolant, self.prediction,
            guidance=self.guidance, null_label=self.classes if self.classes else None,
        )  # fmt: skip

    @torch.no_grad()
    def made(self, net: nn.Module, names: Sequence[int | str], labels: Tensor | None) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], each a function of its name, its label and the weights.

        Args:
            net: the weights to sample with.
            names: one a picture: seeds its noise (seed 0: not the run's, so that runs compare).
            labels: (B,); None without classes.
        """
        prior = self.prior(net)
        dtype = next(net.parameters()).dtype
        parts = []
        with evaluating(net):
            for start in range(0, len(names), self.sample_batch):
                few = names[start : start + self.sample_batch]
                y = None if labels is None else labels[start : start + self.sample_batch]
                noise = standard_normal(self.shape, sample_generators(0, few, "noise"))
                result = sample(
                    prior, noise.to(self.device, _state_dtype(dtype)), y, self.sampler,
                    generators=sample_generators(0, few, "steps"),
                )  # fmt: skip
                parts.append(self.shown(result.samples))
        return torch.cat(parts)

    def shown(self, x: Tensor) -> Tensor:
        """Data as pictures (B, 3, H, W) in [0, 1]."""
        assert self._decoder is not None, "after setup"
        return self._decoder(x)

    def drawn(self, net: nn.Module, count: int) -> Tensor:
        """The same `count` pictures at any time of the run; labels 0, 1, 2 … in turn."""
        labels = None
        if self.classes:
            labels = (torch.arange(count) % self.classes).to(self.device)
        return self.made(net, list(range(count)), labels)

    # --- validation -----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        super().on_validation_epoch_start()
        self._score.start(self.trainer.world_size)

    on_test_epoch_start = on_validation_epoch_start

    def score(self, net: nn.Module, batch: Batch) -> list[dict[str, float]]:
        """Minus the loss at the same times and noise at every validation, labels given."""
        keys = batch["key"]
        x1 = self.data_of(batch, 0, keys)
        x0 = noise_like(x1, 0, keys)
        labels = batch["label"] if self.classes else None
        times = stratified_times(self.times, _VALIDATION_TIMES, self.within).to(x1)
        losses = [self.loss_at(net, x1, x0, t.expand(len(x1)), labels) for t in times]
        self._score.add(self, net, batch, x1, labels)
        return [{"minus_loss": -value} for value in torch.stack(losses).mean(0).tolist()]

    def validation_means(self) -> dict[str, float]:
        """The mean of minus the loss, and the distances between made and real pictures."""
        return super().validation_means() | self._score.compute()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Refused: a generation has no input to predict from.

        Raises:
            UserError: always.
        """
        raise UserError(
            "makes pictures of nothing, not of data.predict; use lit-restore sample",
            where="task",
        )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the mode it had before afterwards."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def _state_dtype(weights: torch.dtype) -> torch.dtype:
    """Of the state that a solver keeps: never half precision."""
    return torch.float64 if weights == torch.float64 else torch.float32


def _count(value: object) -> int:
    assert isinstance(value, int), value
    return value


def _shape(net: Network) -> tuple[int, int, int]:
    """Channels, height and width that a backbone takes; its `size` may be one number."""
    size = net.options["size"]
    height, width = size if isinstance(size, list) else (size, size)
    return _count(net.options["channels"]), _count(height), _count(width)
