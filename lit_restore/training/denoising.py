"""Denoiser pretraining: Gaussian noise of any level, removed by one network told the level.

D(x + σn, σ) ≈ E[x | x + σn] by regression; DP-IR's frozen denoiser (arXiv 2411.05993, App. H).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.diffusion import noise_like
from lit_restore.errors import UserError, require_at_least
from lit_restore.evaluation.metrics import psnr
from lit_restore.io.quantise import to_uint8
from lit_restore.networks import DENOISERS
from lit_restore.networks.base import Network, apply_padded
from lit_restore.seeding import torch_generator
from lit_restore.training.base import TrainingModule
from lit_restore.training.options import OptimizerOptions, ScheduleOptions

Loss = Literal["mse", "l1", "charbonnier", "psnr"]


class DenoiserPretraining(TrainingModule):
    """Train a denoiser on clean images: σ ~ U[sigma_min, sigma_max] and noise per sample.

    Args:
        net: a denoiser, `net(noisy, sigma)`.
        sigma_min: lowest noise level, in image units ([0, 1] images).
        sigma_max: highest noise level; the paper's is 244.3/255 = 0.958 (spec dpir.md §1.4).
        loss: mse (the paper's), l1, charbonnier (√(d² + 1e-6)), or psnr (the mean of the images'
            log MSE, which weighs all noise levels alike).
        val_sigmas: noise levels of the validation, in image units.
        predict_sigma: noise level that the images to predict are taken to hold, in image units.
        optimizer: the optimiser.
        schedule: the learning rate over the run.
        clip_norm: the gradient is scaled down to this norm; none for no clipping.
        seed: the run's seed (set by the top-level option of this name).

    Raises:
        UserError: noise levels out of order.
    """

    task: ClassVar[str] = "denoiser"
    networks: ClassVar[Mapping[str, type[Network]]] = DENOISERS

    def __init__(
        self,
        net: Network,
        *,
        sigma_min: float = 0.0,
        sigma_max: float = 0.958,
        loss: Loss = "mse",
        val_sigmas: tuple[float, ...] = (15 / 255, 25 / 255, 50 / 255),
        predict_sigma: float = 25 / 255,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
        schedule: ScheduleOptions = ScheduleOptions(),  # noqa: B008
        clip_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, schedule=schedule, clip_norm=clip_norm, seed=seed
        )
        if not 0 <= sigma_min <= sigma_max:
            raise UserError(
                f"{sigma_max} is below sigma_min {sigma_min}, or negative", where="model.sigma_max"
            )
        require_at_least(0, model__predict_sigma=predict_sigma, model__clip_norm=clip_norm)
        if not val_sigmas or min(val_sigmas) < 0:
            raise UserError(
                "needs at least one noise level, none negative", where="model.val_sigmas"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.loss = loss
        self.val_sigmas = val_sigmas
        self.predict_sigma = predict_sigma

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen pixel loss, and the PSNR of the estimates."""
        clean = batch["image"]
        noisy, sigma = self.corrupt(clean, batch["position"].tolist())
        error = self.net(noisy, sigma).to(clean.dtype) - clean
        mse = error.square().mean(dim=(1, 2, 3)).detach()
        return {"loss": pixel_loss(error, self.loss), "psnr": (-10 * torch.log10(mse)).mean()}

    def corrupt(self, clean: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
        """X + σn with σ and n drawn for each position: (B, 3, H, W) and (B,)."""
        sigmas = []
        for position in positions:
            level = torch.rand((), generator=torch_generator(self.seed, position, "sigma"))
            sigmas.append(self.sigma_min + (self.sigma_max - self.sigma_min) * level)
        sigma = torch.stack(sigmas).to(clean)
        return clean + sigma.view(-1, 1, 1, 1) * noise_like(clean, self.seed, positions), sigma

    def denoise(self, net: nn.Module, batch: Batch, level: float) -> tuple[Tensor, Tensor]:
        """Noisy images at one level, noise drawn by key, and their estimates."""
        clean = batch["image"]
        noisy = clean + level * noise_like(clean, 0, batch["key"])
        sigma = torch.full((len(clean),), level).to(clean)
        return noisy, apply_padded(net, noisy, sigma).float()

    def score(self, net: nn.Module, batch: Batch) -> list[dict[str, float]]:
        """RGB PSNR (uint8, border 0) of each image at each of `val_sigmas`, and their mean."""
        clean = to_uint8(batch["image"])
        rows: list[dict[str, float]] = [{} for _ in clean]
        for level in self.val_sigmas:
            restored = to_uint8(self.denoise(net, batch, level)[1])
            for row, estimate, truth in zip(rows, restored, clean, strict=True):
                row[f"psnr_rgb_sigma{round(level * 255)}"] = psnr(estimate, truth)
        return [{"psnr_rgb": sum(row.values()) / len(row), **row} for row in rows]

    def pictures(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Noisy input, estimate and truth at the middle validation level."""
        level = sorted(self.val_sigmas)[len(self.val_sigmas) // 2]
        noisy, restored = self.denoise(net, batch, level)
        return {"noisy": noisy, "denoised": restored, "clean": batch["image"]}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Estimates of the images as they are, taken to hold noise of `predict_sigma`."""
        noisy = batch.get("degraded", batch["image"])
        sigma = torch.full((len(noisy),), self.predict_sigma).to(noisy)
        return {"denoised": apply_padded(self.eval_net, noisy, sigma).float()}


def pixel_loss(error: Tensor, kind: Loss) -> Tensor:
    """Mean of the chosen penalty of `error` (B, C, H, W) over all pixels.

    psnr: the mean over the images of ln MSE, the negative mean PSNR up to a factor and constant
    (as in HINet, arXiv 2105.06086, and NAFNet).
    """
    if kind == "psnr":
        return (error.square().mean(dim=(1, 2, 3)) + 1e-8).log().mean()
    if kind == "mse":
        return error.square().mean()
    if kind == "l1":
        return error.abs().mean()
    return (error.square() + 1e-6).sqrt().mean()
