"""Bursts of raw frames to one picture: joint demosaicking, denoising and super-resolution.

Each crop becomes a burst by unprocessing (`data.bursts`); the network learns the linear picture in
the camera's colours, by L1 (BSRT, Luo et al. 2022, arXiv 2204.08332). What is measured and shown is
processed back to sRGB, which is also what DP-IR fuses (arXiv 2411.05993, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.data.batch import Batch
from lit_restore.data.bursts import BurstOptions, BurstParameters, process, synthesize_burst
from lit_restore.errors import UserError, require_at_least
from lit_restore.evaluation.metrics import measure
from lit_restore.io.quantise import to_uint8
from lit_restore.networks import BURST_RESTORERS
from lit_restore.networks.base import Network
from lit_restore.seeding import torch_generator
from lit_restore.training.base import TrainingModule
from lit_restore.training.denoising import Loss, pixel_loss
from lit_restore.training.options import OptimizerOptions, ScheduleOptions


class BurstRegression(TrainingModule):
    """Train a burst network on bursts made of clean pictures.

    Args:
        net: a burst network, `net(burst)`.
        loss: l1 (BSRT's), charbonnier, mse or psnr, of the linear picture.
        max_translation: of the frames, pixels of the full-size picture.
        max_rotation: of the frames, degrees.
        border: pixels that a crop has more on each side than the picture that is learnt, from
            which motion draws.
        val_border: pixels of the result that the validation leaves out on every side.
        optimizer: the optimiser.
        schedule: the learning rate over the run.
        clip_norm: the gradient is scaled down to this norm; none for no clipping.
        seed: the run's seed (set by the top-level option of this name).

    Raises:
        UserError: a number is negative.
    """

    task: ClassVar[str] = "burst"
    networks: ClassVar[Mapping[str, type[Network]]] = BURST_RESTORERS

    def __init__(
        self,
        net: Network,
        *,
        loss: Loss = "l1",
        max_translation: float = 24.0,
        max_rotation: float = 1.0,
        border: int = 24,
        val_border: int = 40,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
        schedule: ScheduleOptions = ScheduleOptions(),  # noqa: B008
        clip_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, schedule=schedule, clip_norm=clip_norm, seed=seed
        )
        require_at_least(0, model__val_border=val_border, model__clip_norm=clip_norm)
        self.loss, self.val_border = loss, val_border
        self.frames = int(getattr(net, "frames", 14))
        try:
            self.burst_options = BurstOptions(
                max_translation=max_translation, max_rotation=max_rotation, border=border
            )
        except UserError as error:
            raise UserError(error.message, where=f"model.{error.where}") from None

    def on_fit_start(self) -> None:
        """Refuse what the first validation, perhaps hours away, could not use."""
        if self.data.degradation is not None:
            raise UserError("is not for bursts; leave it out", where="data.degradation")
        crop, border = self.data.val_crop, self.burst_options.border
        if "val" not in self.data.sources or crop is None:
            return
        side = (crop - 2 * border) // 8 * 8
        if side <= 2 * self.val_border:
            least = 2 * self.val_border + 8 + 2 * border
            told = f"{crop} leaves nothing inside the borders; use at least {least}"
            raise UserError(told, where="data.val_crop")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Refused: bursts are no pictures.

        Raises:
            UserError: always.
        """
        raise UserError("restores bursts, of which data.predict holds none", where="task")

    def bursts(
        self, images: Tensor, names: Sequence[int | str], seed: int, where: str = "data.crop"
    ) -> tuple[Tensor, Tensor, BurstParameters]:
        """Bursts (B, F, 4, h, w), linear targets (B, 3, 8h, 8w) and what was drawn.

        Raises:
            UserError: the images are too small; names the option `where`.
        """
        try:
            made = [
                synthesize_burst(
                    image, self.frames, torch_generator(seed, name, "burst"), self.burst_options
                )
                for image, name in zip(images, names, strict=True)
            ]
        except UserError as error:
            raise UserError(error.message, where=where) from None
        bursts, targets, parameters = zip(*made, strict=True)
        return torch.stack(bursts), torch.stack(targets), BurstParameters.stack(parameters)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen loss and the PSNR, both of the linear picture."""
        burst, target, _ = self.bursts(batch["image"], batch["position"].tolist(), self.seed)
        error = self.net(burst).to(target.dtype) - target
        mse = error.square().mean(dim=(1, 2, 3)).detach()
        return {"loss": pixel_loss(error, self.loss), "psnr": (-10 * torch.log10(mse)).mean()}

    def restored(
        self, net: nn.Module, batch: Batch, where: str = "data.val_crop"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The burst's first frame, the estimate and the truth, in sRGB; errors as `bursts`."""
        burst, target, parameters = self.bursts(batch["image"], batch["key"], 0, where)
        estimate = process(net(burst).to(target.dtype), parameters)
        frame = F.interpolate(burst[:, 0, [0, 1, 3]], scale_factor=8.0, mode="nearest")
        return process(frame, parameters), estimate, process(target, parameters)

    def score(self, net: nn.Module, batch: Batch) -> list[dict[str, float]]:
        """RGB PSNR in sRGB (uint8, `val_border`) of each picture."""
        _, estimate, truth = (to_uint8(image) for image in self.restored(net, batch))
        try:
            return [
                {"psnr_rgb": measure("psnr", one, other, border=self.val_border)}
                for one, other in zip(estimate, truth, strict=True)
            ]
        except ValueError as error:
            told = f"{error}; choose a larger data.val_crop, or a smaller border"
            raise UserError(told, where="model.val_border") from None

    def pictures(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The first frame (a pixel of red, green and blue of each four), estimate and truth."""
        frame, estimate, truth = self.restored(net, batch, "samples.size")
        columns = {"burst": frame, "restored": estimate, "clean": truth}
        return {name: image.float().clamp(0, 1) for name, image in columns.items()}
