"""What every training module shares: optimiser, gradient clipping, the position of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.errors import UserError
from lit_restore.io import failpoints
from lit_restore.networks.base import Network
from lit_restore.parallel.apply import Layout, prepare, shard
from lit_restore.seeding import layer_seed
from lit_restore.training.options import OptimizerOptions, ScheduleOptions
from lit_restore.weights.pieces import is_spread

if TYPE_CHECKING:
    from lit_restore.data import ShardDataModule


class TrainingModule(LightningModule):
    """A network, its loss and its optimiser; what happens around a step is in callbacks.

    A subclass gives `losses`, `score`, from which validation follows, and `pictures`.

    Args:
        net: the network that is trained; all its parameters that require a gradient.
        optimizer: the optimiser.
        schedule: the learning rate over the run.
        clip_norm: the gradient is scaled down to this norm; none for no clipping.
        seed: the run's seed (set by the top-level option of this name).
    """

    task: ClassVar[str]
    """The short name of the training, as in a config's `task:`."""
    networks: ClassVar[Mapping[str, type[Network]]]
    """Short name → class of the networks that can be trained so."""
    needs_input: ClassVar[bool] = True
    """Whether its pictures are made of images (`pictures`), or of nothing (`drawn`)."""

    def __init__(
        self,
        net: Network,
        *,
        optimizer: OptimizerOptions,
        schedule: ScheduleOptions,
        clip_norm: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer_options = optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.seed = seed
        self.averages: Mapping[str, nn.Module] = {}
        """Averaged twins of `net` by profile; not part of this module (see callbacks.ema)."""
        self.layout: Layout | None = Layout()
        """What `configure_model` applies to the network; none once it is applied."""
        self.gradient_norm: float = 0.0
        """Norm of the last step's gradient, before clipping."""
        self.step_skipped = False
        """Whether the last step was dropped because its gradient was not finite."""
        self.frozen: Mapping[str, str] = {}
        """Networks that the training uses and does not change: option → sha256 of the weights."""
        self.restored_from: Mapping[str, Any] | None = None
        """The degradation behind pictures that were restored before the training, as a record."""
        self._scores: list[tuple[int, dict[str, float]]] = []

    def check_network(self) -> None:
        """Refuse a network whose input is not what the data give: RGB images.

        Raises:
            UserError: names the option.
        """
        channels = self.net.options.get("channels", 3)
        if channels != 3:
            raise UserError(
                f"{channels} does not fit: images are read as RGB; use 3",
                where="model.net.channels",
            )

    # --- for subclasses -------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss to minimise under "loss", scalars to log under other names: batch means."""
        raise NotImplementedError(f"{type(self).__name__} trains nothing")

    def score(self, net: nn.Module, batch: Batch) -> list[dict[str, float]]:
        """Validation metrics of each sample in `batch`; higher is better for the first of them."""
        raise NotImplementedError(f"{type(self).__name__} has no validation")

    def drawn(self, net: nn.Module, count: int) -> Tensor:
        """Pictures made of nothing, (count, 3, H, W) in [0, 1]; for tasks without an input.

        The same noise and labels whenever it is called, so that grids can be compared.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no pictures")

    def pictures(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Columns of a sample grid, name → (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} draws no pictures")

    # --- the run --------------------------------------------------------------------------------

    @property
    def data(self) -> ShardDataModule:
        """The run's data module."""
        return cast("ShardDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def samples_seen(self) -> int:
        """Samples of all finished optimiser steps: the position of the run."""
        return int(self.trainer.global_step) * self.data.global_batch

    def step_ended(self, batch_idx: int) -> bool:
        """Whether micro-batch `batch_idx` was the last of its optimiser step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    @property
    def eval_net(self) -> nn.Module:
        """The network to validate and sample with: the first average, else the raw one."""
        return next(iter(self.averages.values()), self.net)

    def configure_model(self) -> None:
        """Apply to the network and its averages what is applied from outside, once."""
        if self.layout is None:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        prepare(self.net, self.layout, mesh)
        for twin in self.averages.values():
            if mesh is not None:
                shard(twin, mesh)
        self.layout = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over all trained parameters."""
        if self.optimizer_options.fused and self.trainer.precision == "16-mixed":
            # It would undo the loss scale by itself, after the gradient was measured and clipped.
            raise UserError(
                "does not go with trainer.precision 16-mixed; use bf16-mixed, or leave it out",
                where="model.optimizer.fused",
            )
        return self.optimizer_options.build(self.parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate from the position of the run."""
        factor = self.schedule.factor(self.samples_seen, self.data.total_samples)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.optimizer_options.lr * factor

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure and clip the gradient; drop it where it is not finite.

        Ranks see the same reduced gradient and so decide alike. Without gradients the optimiser
        leaves parameters and its own state as they are.
        """
        parameters = [p for p in self.parameters() if p.grad is not None]
        limit = float("inf") if self.clip_norm is None else self.clip_norm
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.gradient_norm = float(norm.full_tensor() if is_spread(norm) else norm)  # type: ignore[attr-defined]
        self.step_skipped = not math.isfinite(self.gradient_norm)
        if self.step_skipped:
            optimizer.zero_grad(set_to_none=True)
        elif self.gradient_norm > limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss and scalars of one micro-batch."""
        step, micro = divmod(batch_idx, self.trainer.accumulate_grad_batches)
        torch.manual_seed(layer_seed(self.seed, self.global_rank, step, micro))
        values = self.losses(batch)
        if failpoints.fires("train.loss_nan"):
            values["loss"] = values["loss"] * float("nan")
        return values

    # --- validation -----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._scores = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the samples of a batch with the averaged network; padding is left out."""
        scores = self.score(self.eval_net, batch)
        rows = zip(batch["position"].tolist(), batch["weight"].tolist(), scores, strict=True)
        self._scores += [(position, score) for position, weight, score in rows if weight > 0]

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def validation_means(self) -> dict[str, float]:
        """Means over the data set, exact on any number of ranks; the same value on each."""
        rows = sorted(self._gathered(), key=lambda row: row[0])
        names = rows[0][1] if rows else {}
        return {name: sum(score[name] for _, score in rows) / len(rows) for name in names}

    def _gathered(self) -> Sequence[tuple[int, dict[str, float]]]:
        if self.trainer.world_size == 1:
            return self._scores
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, self._scores)
        return [row for part in parts for row in part]
