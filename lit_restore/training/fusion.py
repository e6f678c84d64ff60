"""DP-IR: train a fusion network over a frozen denoiser and a frozen restoration network.

    minimise  E || F(R(y), D(x_t / sqrt(alpha_bar_t), sigma_t), t) - x_0 ||^2

over the clean image x_0, its degraded version y, the noise of x_t and t, uniform on 1 … t_max
(Zhussip et al. 2024, arXiv 2411.05993, eq. 6 and 7). R(y) does not depend on t: it can lie in the
shards (`lit-restore shards restore`), and several t are drawn for one image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.data.batch import Batch
from lit_restore.data.degradations import Record, describe, same_degradation
from lit_restore.data.degradations.recorded import as_record
from lit_restore.data.restored_shards import restored_by
from lit_restore.diffusion.discrete import DiscreteDiffusion
from lit_restore.diffusion.noise import sample_generators, standard_normal
from lit_restore.errors import UserError, require_at_least
from lit_restore.evaluation.metrics import psnr
from lit_restore.inverse import FusedPrior, PosteriorOptions, sample_posterior
from lit_restore.inverse.fused import denoise
from lit_restore.io.quantise import to_uint8
from lit_restore.networks import FUSIONS
from lit_restore.networks.base import Network
from lit_restore.networks.restoration import RestorationNetwork
from lit_restore.seeding import torch_generator
from lit_restore.training.base import TrainingModule
from lit_restore.training.denoising import Loss, pixel_loss
from lit_restore.training.options import OptimizerOptions, ScheduleOptions
from lit_restore.training.regression import check_degraded, degraded_of
from lit_restore.weights.frozen import known_noise, load_denoiser
from lit_restore.weights.fused import recorded_degradation
from lit_restore.weights.restorers import load_restorer, weights_sha256

_log = logging.getLogger(__name__)


class FusionTraining(TrainingModule):
    """Train a fusion network; the two networks under it are read once and stay as they are.

    Args:
        net: the fusion network, `net(restored, denoised, t)`.
        denoiser: what was trained with `task: denoiser`: an exported file, checkpoint or run.
        restorer: the restoration network: what was trained with `task: regression`, or any file of
            weights that `lit_restore.weights.load_restorer` knows; none where the shards hold its
            outputs.
        t_max: t is uniform on 1 … t_max. The paper's denoiser knows noise of up to 244.3/255, which
            is t = 251.
        times_per_image: how many t are drawn for an image of a batch; the restoration network's
            output is made once for all of them.
        loss: mse (the paper's), l1, charbonnier or psnr.
        steps: T of the diffusion.
        beta_min: its beta_1.
        beta_max: its beta_T, linear in between.
        val_times: t at which the validation measures the estimate, up to t_max; none for those of
            5, 50 and 250 that are.
        val_tau: of the samples in the grid of pictures, up to t_max; none for 50, or t_max.
        other_degradation: allow a restoration network that was trained on pictures degraded
            otherwise, or shards restored so.
        optimizer: the optimiser.
        schedule: the learning rate over the run.
        clip_norm: the gradient is scaled down to this norm; none for no clipping.
        seed: the run's seed (set by the top-level option of this name).

    Raises:
        UserError: an option is out of range, or a network cannot be read or is no such network.
    """

    task: ClassVar[str] = "fusion"
    networks: ClassVar[Mapping[str, type[Network]]] = FUSIONS

    def __init__(
        self,
        net: Network,
        *,
        denoiser: str,
        restorer: str | None = None,
        t_max: int = 250,
        times_per_image: int = 1,
        loss: Loss = "mse",
        steps: int = 1000,
        beta_min: float = 1e-4,
        beta_max: float = 2e-2,
        val_times: tuple[int, ...] | None = None,
        val_tau: int | None = None,
        other_degradation: bool = False,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
        schedule: ScheduleOptions = ScheduleOptions(),  # noqa: B008
        clip_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, schedule=schedule, clip_norm=clip_norm, seed=seed
        )
        require_at_least(1, model__t_max=t_max, model__times_per_image=times_per_image)
        try:
            self.diffusion = DiscreteDiffusion(steps, beta_min, beta_max)
        except UserError as error:
            raise UserError(error.message, where=f"model.{error.where}") from None
        if not t_max <= steps:
            raise UserError(f"{t_max} is above steps ({steps})", where="model.t_max")
        self.t_max, self.times_per_image, self.loss = t_max, times_per_image, loss
        fitting = tuple(t for t in (5, 50, 250) if t <= t_max) or (t_max,)
        self.val_times = fitting if val_times is None else val_times
        self.val_tau = min(50, t_max) if val_tau is None else val_tau
        if not self.val_times:
            raise UserError("needs at least one time", where="model.val_times")
        for name, t in (("val_tau", self.val_tau), *(("val_times", t) for t in self.val_times)):
            if not 1 <= t <= t_max:
                raise UserError(f"{t} is not within 1 to t_max ({t_max})", where=f"model.{name}")
        cleaner = load_denoiser(denoiser, where="model.denoiser")
        found, limit = cleaner.net, known_noise(cleaner)
        level = float(self.diffusion.sigma(t_max))
        if limit is not None and level > 1.01 * limit:
            raise UserError(
                f"{denoiser} was trained for noise of up to {255 * limit:.3g} of 255; t_max "
                f"{t_max} has {255 * level:.3g}",
                where="model.denoiser",
            )
        if found.options.get("channels", 3) != 3:
            raise UserError(
                f"{denoiser} is for grey images; give one for RGB", where="model.denoiser"
            )
        self.denoiser = found.requires_grad_(False)
        self.frozen = {"denoiser": weights_sha256(found.state_dict())}
        self.other_degradation = other_degradation
        self._own_degradation: Record | None = None
        self.restorer: RestorationNetwork | None = None
        if restorer is not None:
            loaded = load_restorer(restorer)
            self.restorer = loaded.net
            self.frozen["restorer"] = loaded.sha256
            self._own_degradation = as_record(
                recorded_degradation(loaded.info), where="model.restorer"
            )

    def train(self, mode: bool = True) -> Self:
        """Only the fusion network is ever in training mode."""
        super().train(mode)
        self.denoiser.eval()  # the restoration network stays in it by itself
        return self

    def setup(self, stage: str) -> None:
        """Learn by what the shards' pictures were restored, and refuse what does not fit.

        Raises:
            UserError: another network's pictures, or another degradation than the networks'.
        """
        for split in ("train", "val") if stage == "fit" else ():
            source = self.data.sources.get(split)
            told = None if source is None else restored_by(source)
            if told is not None:
                self._check_shards(split, told)
            elif split == "train" and self.restorer is None:
                _log.warning("data.train: no manifest says which network restored its pictures")
        given = self.restored_from
        if given is None and self.data.degradation is not None:
            given = describe(self.data.degradation)
        self._check_degradation(self._own_degradation, given, "model.restorer")

    def _check_shards(self, split: str, told: dict[str, Any]) -> None:
        made = str(told["restorer"])
        if self.frozen.get("restorer", made) != made:
            raise UserError(
                f"holds what another network restored (sha256 {made[:12]}); make the shards again "
                "with `lit-restore shards restore`, or name that one",
                where=f"data.{split}",
            )
        if split == "train":
            self.frozen = {**self.frozen, "restorer": made}
            self.restored_from = told.get("degradation")
        if self.data.degradation is not None:
            here = describe(self.data.degradation)
            self._check_degradation(told.get("degradation"), here, "data.degradation")

    def _check_degradation(self, one: Record | None, other: Record | None, where: str) -> None:
        if one is None or other is None or self.other_degradation:
            return
        difference = same_degradation(one, other)
        if difference:
            told = f"{difference}; model.other_degradation: true allows it"
            raise UserError(told, where=where)

    def on_fit_start(self) -> None:
        """Refuse data that the first validation, perhaps hours away, could not use."""
        source = self.data.sources.get("val")
        if source is None or source.read(0).restored is not None:
            return
        if self.restorer is None:
            raise UserError(
                "holds no restored images; give a model.restorer, what `lit-restore shards "
                "restore` makes, or null for no validation",
                where="data.val",
            )
        check_degraded(self.data)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen pixel loss of the estimate at random times, and its PSNR."""
        clean, count = batch["image"], self.times_per_image
        restored = self.restored(batch).repeat_interleave(count, 0)
        x0 = clean.repeat_interleave(count, 0)
        t, noise = self.drawn_times(clean, batch["position"].tolist())
        denoised = self.denoised(self.diffusion.diffuse(x0, t, noise), t)
        error = self.net(restored, denoised, t.to(x0.device)).to(x0.dtype) - x0
        mse = error.square().mean(dim=(1, 2, 3)).detach()
        return {"loss": pixel_loss(error, self.loss), "psnr": (-10 * torch.log10(mse)).mean()}

    def drawn_times(self, clean: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
        """`times_per_image` times t (on the CPU) and noises for each position, side by side."""
        times, noises = [], []
        for position in positions:
            draw = torch_generator(self.seed, position, "time")
            times.append(torch.randint(1, self.t_max + 1, (self.times_per_image,), generator=draw))
            source = torch_generator(self.seed, position, "noise", clean.device)
            noises += [source] * self.times_per_image
        noise = standard_normal(clean.shape[1:], noises, device=clean.device, dtype=clean.dtype)
        return torch.cat(times), noise

    @torch.no_grad()
    def restored(self, batch: Batch) -> Tensor:
        """E[x_0 | y] of a batch, float32: from the shards, or by the restoration network."""
        if "restored" in batch:
            return batch["restored"]
        if self.restorer is None:
            raise UserError(
                "is needed: the data hold no restored images; give a restoration network, or make "
                "them with `lit-restore shards restore`",
                where="model.restorer",
            )
        out: Tensor = self.restorer(degraded_of(batch, self.restorer.scale, where="model.restorer"))
        return out

    @torch.no_grad()
    def denoised(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        return denoise(self.denoiser, self.diffusion, x_t, t)

    def score(self, net: nn.Module, batch: Batch) -> list[dict[str, float]]:
        """RGB PSNR (uint8, border 0) of the estimate at each of `val_times`; and of R(y) alone."""
        clean, restored = batch["image"], self.restored(batch)
        truth = to_uint8(clean)
        noise = self._noise(clean, batch["key"], "val")
        columns = {"restored": restored}
        for time in self.val_times:
            t = torch.full((len(clean),), time)
            denoised = self.denoised(self.diffusion.diffuse(clean, t, noise), t)
            columns[f"t{time}"] = net(restored, denoised, t.to(clean.device)).float()
        pixels = {name: to_uint8(images) for name, images in columns.items()}
        rows = []
        for k, image in enumerate(truth):
            row = {f"psnr_rgb_{name}": psnr(one[k], image) for name, one in pixels.items()}
            mean = sum(row[f"psnr_rgb_t{time}"] for time in self.val_times) / len(self.val_times)
            rows.append({"psnr_rgb": mean, **row})
        return rows

    def pictures(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Degraded input, R(y), a sample at `val_tau`, and truth."""
        clean, restored = batch["image"], self.restored(batch)
        prior = FusedPrior(self.diffusion, self.denoiser, net)
        generators = sample_generators(0, batch["key"], "posterior")
        sample = sample_posterior(
            prior, restored, PosteriorOptions(tau=self.val_tau), generators
        ).samples
        shown = {} if "degraded" not in batch else {"degraded": batch["degraded"]}
        columns = {
            name: F.interpolate(image, clean.shape[-2:], mode="nearest")
            for name, image in shown.items()
        }
        columns |= {"restored": restored, f"tau {self.val_tau}": sample, "clean": clean}
        return {name: image.float().clamp(0, 1) for name, image in columns.items()}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Refused: samples are drawn by a command of its own, with options of its own.

        Raises:
            UserError: always.
        """
        raise UserError("predicts nothing here; use lit-restore restore", where="task")

    def _noise(self, like: Tensor, names: list[str], stream: str) -> Tensor:
        draws = sample_generators(0, names, stream)
        return standard_normal(like.shape[1:], draws, device=like.device, dtype=like.dtype)
