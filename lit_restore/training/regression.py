"""Restoration by regression: a network from degraded images to clean ones, R(y) ≈ E[x | y].

The restoration network that DP-IR keeps frozen (arXiv 2411.05993, section 3.2), where a user's task
has none yet; faithful, and as blurry as the task is ill-posed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.data.batch import Batch
from lit_restore.errors import UserError, require_at_least
from lit_restore.evaluation.metrics import measure
from lit_restore.io.quantise import to_uint8
from lit_restore.networks import RESTORERS
from lit_restore.networks.base import Network, apply_padded
from lit_restore.training.base import TrainingModule
from lit_restore.training.denoising import Loss, pixel_loss
from lit_restore.training.options import OptimizerOptions, ScheduleOptions

if TYPE_CHECKING:
    from lit_restore.data import ShardDataModule


class RestorationRegression(TrainingModule):
    """Train a restoration network on pairs, from shards or made by `data.degradation`.

    Args:
        net: a restoration network, `net(degraded)`.
        loss: l1, charbonnier (√(d² + 1e-6)), mse (whose minimiser is the posterior mean that DP-IR
            is derived for), or psnr (the mean of the images' log MSE).
        val_border: pixels that the validation's PSNR leaves out on every side; none for the
            network's scale where it enlarges, and 0 elsewhere.
        optimizer: the optimiser.
        schedule: the learning rate over the run.
        clip_norm: the gradient is scaled down to this norm; none for no clipping.
        seed: the run's seed (set by the top-level option of this name).

    Raises:
        UserError: a negative border.
    """

    task: ClassVar[str] = "regression"
    networks: ClassVar[Mapping[str, type[Network]]] = RESTORERS

    def __init__(
        self,
        net: Network,
        *,
        loss: Loss = "l1",
        val_border: int | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
        schedule: ScheduleOptions = ScheduleOptions(),  # noqa: B008
        clip_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, schedule=schedule, clip_norm=clip_norm, seed=seed
        )
        require_at_least(0, model__val_border=val_border, model__clip_norm=clip_norm)
        self.loss = loss
        self.scale = scale_of(net)
        enlarged = self.scale if self.scale > 1 else 0
        self.val_border = enlarged if val_border is None else val_border

    def on_fit_start(self) -> None:
        """Refuse data that the first validation, perhaps hours away, could not use."""
        check_degraded(self.data)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen pixel loss, and the PSNR of the estimates."""
        clean = batch["image"]
        degraded = degraded_of(batch, self.scale)
        error = self.net(degraded).to(clean.dtype) - clean
        mse = error.square().mean(dim=(1, 2, 3)).detach()
        return {"loss": pixel_loss(error, self.loss), "psnr": (-10 * torch.log10(mse)).mean()}

    def restore(self, net: nn.Module, degraded: Tensor) -> Tensor:
        """Estimates of the clean images, of any size."""
        return restore_padded(net, degraded, self.scale)

    def score(self, net: nn.Module, batch: Batch) -> list[dict[str, float]]:
        """PSNR (uint8, `val_border`) of each image, in RGB and in Y."""
        restored = to_uint8(self.restore(net, degraded_of(batch, self.scale)))
        rows: list[dict[str, float]] = []
        for estimate, truth in zip(restored, to_uint8(batch["image"]), strict=True):
            both = {
                f"psnr_{colour}": measure(
                    "psnr", estimate, truth, colour=colour, border=self.val_border
                )
                for colour in ("rgb", "y")
            }
            rows.append(both)
        return rows

    def pictures(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Degraded input (enlarged without smoothing), estimate and truth."""
        degraded = degraded_of(batch, self.scale)
        shown = F.interpolate(degraded, scale_factor=self.scale, mode="nearest")
        return {
            "degraded": shown.clamp(0, 1),
            "restored": self.restore(net, degraded),
            "clean": batch["image"],
        }

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Estimates of the images, taken to be degraded as they are."""
        degraded = batch.get("degraded", batch["image"])
        return {"restored": self.restore(self.eval_net, degraded)}


def scale_of(net: nn.Module) -> int:
    """How many times larger a network's output is than its input."""
    scale = getattr(net, "scale", 1)
    assert isinstance(scale, int), scale
    return scale


def check_degraded(data: ShardDataModule) -> None:
    """Refuse validation images that are not degraded and that nothing degrades.

    Raises:
        UserError: names the option.
    """
    source = data.sources.get("val")
    if source is None or data.degradation is not None or source.read(0).degraded is not None:
        return
    raise UserError(
        "holds no degraded images; give pairs, a data.degradation, or null for no validation",
        where="data.val",
    )


def restore_padded(net: nn.Module, degraded: Tensor, scale: int) -> Tensor:
    """A restoration network on images of any size, float32."""
    if scale == 1:
        return apply_padded(net, degraded).float()
    out: Tensor = net(degraded)
    return out.float()


def degraded_of(batch: Batch, scale: int, *, where: str = "model.net.scale") -> Tensor:
    """The degraded images of a batch, of the size that a network of `scale` takes.

    Args:
        batch: with clean images (B, 3, H, W).
        scale: of the network.
        where: the option that gave it, for the error line.

    Returns:
        (B, 3, H / scale, W / scale).

    Raises:
        UserError: there are none, or they are of another size.
    """
    degraded = batch.get("degraded")
    if degraded is None:
        raise UserError(
            "the data hold no degraded images; set one, or pack pairs (shards make --pairs)",
            where="data.degradation",
        )
    wanted = tuple(side // scale for side in batch["image"].shape[-2:])
    if tuple(degraded.shape[-2:]) != wanted:
        factor = batch["image"].shape[-1] / degraded.shape[-1]
        size = "as large as" if factor == 1 else f"{factor:g} times smaller than"
        raise UserError(
            f"a scale of {scale} does not fit: the degraded images are {size} the clean ones",
            where=where,
        )
    return degraded
