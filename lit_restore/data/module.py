"""The one DataModule: shards in, batches out, the same for every training module."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_restore.data.agreement import open_agreed
from lit_restore.data.ahead import FollowedOrder
from lit_restore.data.batch import Batch, Refusal, Sample
from lit_restore.data.decode import decoder_name
from lit_restore.data.degradations import Degradation, describe
from lit_restore.data.loading import make_loader
from lit_restore.data.locate import open_source
from lit_restore.data.order import ORDER_VERSION, Order
from lit_restore.data.plan import BatchPlan, PositionBatches, plan_batches
from lit_restore.data.procedural import ensure_procedural
from lit_restore.data.reader import CachedSource, Source
from lit_restore.data.remote import RemoteSource
from lit_restore.data.report import BadSamples
from lit_restore.data.samples import Augmentation, OrderedSamples, TrainingSamples
from lit_restore.data.streaming import StreamedSamples, StreamSource, open_streams
from lit_restore.errors import UserError, require_at_least
from lit_restore.io.cache import Cache, default_folder
from lit_restore.io.remote import NETWORK
from lit_restore.seeding import torch_generator

_log = logging.getLogger(__name__)

PROCEDURAL = "procedural"


@dataclass(kw_only=True, frozen=True)
class ProceduralOptions:
    """The procedural training images, made on first use."""

    count: int = 1000
    """Number of images."""
    size: int = 256
    """Side of the square images, pixels."""
    seed: int = 0
    """Another seed, other images."""
    folder: str = "data/procedural"
    """Where the shards go; count, size and seed are appended to the name."""

    @property
    def path(self) -> Path:
        """The folder of these images."""
        return Path(f"{self.folder}-{self.count}x{self.size}-{self.seed}")


class ShardDataModule(LightningDataModule):
    """Training, validation and prediction data from webdataset shards.

    Args:
        train: folder of shards, shard or glob pattern, or the URL of a folder with a manifest or of
            shards (train-{000..099}.tar); "procedural" for images made on first use.
        val: the same for validation, or "photographs" for the three of scikit-image; none without.
        predict: the same for prediction.
        global_batch: samples per optimiser step over all ranks; accumulation follows from it.
        micro_batch: cap on the samples per rank and forward pass; none: as many as there are.
        crop: side of the random square training crop, pixels; none for whole images.
        flip: mirror training samples left–right at random.
        rotate: turn training samples by random multiples of 90 degrees.
        degradation: made from the clean image on the device; its input is `batch["degraded"]`.
        val_batch: samples per rank and validation batch; 1 where sizes differ.
        val_crop: side of the centre crop for validation; none for whole images.
        workers: processes that read and decode; 0 reads in the training process.
        prefetch: batches each worker keeps ready.
        cache: decoded images that each process keeps in memory, megabytes; for small data sets.
        shuffle_window: shards shuffled together; the working set of the training data.
        max_bad: unreadable samples replaced before the run ends, on each rank; none for the larger
            of 10 and 0.1 % of the data set.
        max_bad_shards: training shards that cannot be indexed and are left out of the run.
        streaming: read the training data as streams that come by, for what cannot be indexed or
            kept (endless, compressed, pipe:); a resumed run sees its images in another order.
        stream_buffer: streamed samples that each process shuffles together, as stored.
        cache_dir: where remote shards are kept; none for $LIT_RESTORE_CACHE or
            ~/.cache/lit_restore.
        cache_gb: what is kept there, 10^9 bytes; the shards used last stay.
        procedural: the images behind `train: procedural`.
        total_samples: length of the run in samples (set by the top-level option of this name).
        seed: the run's seed (set by the top-level option of this name).

    Raises:
        UserError: from `setup` and the loaders, one line that names the option or the file.
    """

    def __init__(
        self,
        *,
        train: str | None = PROCEDURAL,
        val: str | None = "photographs",
        predict: str | None = None,
        global_batch: int = 16,
        micro_batch: int | None = None,
        crop: int | None = 64,
        flip: bool = True,
        rotate: bool = True,
        degradation: Degradation | None = None,
        val_batch: int = 1,
        val_crop: int | None = None,
        workers: int = 2,
        prefetch: int = 4,
        cache: int = 0,
        shuffle_window: int = 16,
        max_bad: int | None = None,
        max_bad_shards: int = 0,
        streaming: bool = False,
        stream_buffer: int = 256,
        cache_dir: str | None = None,
        cache_gb: float = 50.0,
        procedural: ProceduralOptions = ProceduralOptions(),  # noqa: B008
        total_samples: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_at_least(
            1, data__crop=crop, data__val_crop=val_crop, data__val_batch=val_batch,
            data__prefetch=prefetch, data__procedural__count=procedural.count,
            data__procedural__size=procedural.size,
        )  # fmt: skip
        require_at_least(
            0, data__workers=workers, data__cache=cache, data__shuffle_window=shuffle_window,
            data__max_bad=max_bad, data__max_bad_shards=max_bad_shards,
            data__stream_buffer=stream_buffer,
        )  # fmt: skip
        require_at_least(0.001, data__cache_gb=cache_gb)
        self.train, self.val, self.predict = train, val, predict
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.augmentation = Augmentation(crop=crop, flip=flip, rotate=rotate)
        self.degradation = degradation
        self.val_batch, self.val_crop = val_batch, val_crop
        self.workers, self.prefetch = workers, prefetch
        self.cache = cache
        self.shuffle_window = shuffle_window
        self.max_bad, self.max_bad_shards = max_bad, max_bad_shards
        self.streaming, self.stream_buffer = streaming, stream_buffer
        self.remote_cache = Cache(
            cache_dir or default_folder(), limit=int(min(cache_gb, 1e9) * 10**9), network=NETWORK
        )
        """Where remote shards are kept."""
        self.procedural = procedural
        self.total_samples, self.seed = total_samples, seed
        self.start_position = 0
        """The first position still to be seen; set when a run is resumed."""
        self.sources: dict[str, Source] = {}
        self.bad: BadSamples | None = None

    # --- what Lightning calls -----------------------------------------------------------------

    def prepare_data(self) -> None:
        """Make the procedural images where they are asked for and not there yet."""
        if PROCEDURAL in (self.train, self.val, self.predict):
            options = self.procedural
            ensure_procedural(
                options.path,
                count=options.count,
                size=options.size,
                seed=options.seed,
                workers=max(1, self.workers),
            )

    def setup(self, stage: str) -> None:
        """Index the splits that `stage` (fit, validate, test, predict) needs."""
        wanted = {"fit": ("train", "val"), "predict": ("predict",)}.get(stage, ("val",))
        for split in wanted:
            data = getattr(self, split)
            if data is None and split != "val":
                raise UserError("names no data; give a folder of shards", where=f"data.{split}")
            if data is not None and split not in self.sources:
                self.sources[split] = self._open(data, split)
        if stage == "fit":
            self.plan()  # an impossible batch is told before anything is loaded
            self._check_crops()

    def train_dataloader(self) -> DataLoader[Sample | Refusal]:
        """Micro-batches of this rank, from `start_position` to the end of the run."""
        batches = PositionBatches(self.plan(), rank=self.rank, start=self.start_position)
        return self._loader(
            self._training_samples(self.sources["train"]),
            batch_sampler=batches,
            fetching=self.streaming or isinstance(_below(self.sources["train"]), RemoteSource),
        )

    def val_dataloader(self) -> DataLoader[Sample | Refusal] | list[None]:
        """All validation samples dealt to the ranks, padded with samples of weight zero."""
        return self._whole("val", self.val_crop) if "val" in self.sources else []

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader[Sample | Refusal]:
        """All samples of the prediction split, in order, padded likewise."""
        return self._whole("predict", None)

    def on_before_batch_transfer(self, batch: Batch | Refusal, dataloader_idx: int) -> Batch:
        """End the run where a sample refuses it; note what was replaced.

        Raises:
            UserError: a sample cannot be used, or too many cannot be read.
        """
        if isinstance(batch, Refusal):
            raise UserError(batch.message, where=batch.where)
        bad = batch.pop("bad", [])
        if bad and self.bad is not None:
            self.bad.add(bad)
        return batch

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the pixels as uint8; keys and positions stay on the CPU."""
        moved = cast(dict[str, Any], dict(batch))
        for name, value in moved.items():
            if isinstance(value, Tensor) and name != "position":
                moved[name] = value.to(device, non_blocking=True)
        return cast(Batch, moved)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 → float in [0, 1], and the degradation, on the device.

        Pairs are degraded already, and pictures to predict from are taken as they are.
        """
        double = self.trainer is not None and str(self.trainer.precision).startswith("64")
        dtype = torch.float64 if double else torch.float32
        batch["image"] = batch["image"].to(dtype).div_(255)
        if "restored" in batch:
            batch["restored"] = batch["restored"].to(dtype).div_(255)
        if "degraded" in batch:
            batch["degraded"] = batch["degraded"].to(dtype).div_(255)
        elif self.degradation is not None and not self._is_predicting():
            if not self._is_training():
                batch["image"] = _cut(batch["image"], self.degradation.multiple)
                if "restored" in batch:
                    batch["restored"] = _cut(batch["restored"], self.degradation.multiple)
            batch["degraded"] = self._degrade(batch, self.degradation)
        return batch

    # --- what callbacks ask ---------------------------------------------------------------------

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.trainer.global_rank if self.trainer is not None else 0

    def plan(self) -> BatchPlan:
        """The division of the run for this number of ranks.

        Raises:
            UserError: sizes that do not divide; names the key and valid values.
        """
        return plan_batches(
            total_samples=self.total_samples,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            world=self.world,
        )

    def fingerprint(self) -> dict[str, object]:
        """What must not change between the parts of one run: data, order and batch."""
        augmentation = self.augmentation
        data: dict[str, object] = {
            "shards": self.sources["train"].fingerprint(),
            "decoder": decoder_name(),
        }
        if self.degradation is not None:
            data["degradation"] = describe(self.degradation)
        return {
            "data": data,
            "order": {
                "algorithm": ORDER_VERSION,
                "seed": self.seed,
                "shuffle_window": self.shuffle_window,
                "crop": augmentation.crop,
                "flip": augmentation.flip,
                "rotate": augmentation.rotate,
            },
            "batch": {"global_batch": self.global_batch},
        }

    # --- parts ------------------------------------------------------------------------------------

    def _open(self, data: str, split: str) -> Source:
        path = str(self.procedural.path) if data == PROCEDURAL else data
        training, key = split == "train", f"data.{split}"
        allowed = self.max_bad_shards if training else 0
        window = self.shuffle_window if training else None
        streaming = training and self.streaming

        def opener(without: Collection[str]) -> Source:
            if streaming:
                return open_streams(path, key=key, cache=self.remote_cache)
            return open_source(
                path, key=key, max_bad=allowed, window=window, cache=self.remote_cache,
                without=without,
            )  # fmt: skip

        source, bad_shards = open_agreed(opener, key=key, max_bad=allowed)
        if training:
            self.bad = BadSamples(self._allowed_bad(source), bad_shards)
        if streaming:
            _log.warning(
                "data.streaming: which images a resumed run sees is approximate; only indexed "
                "shards resume exactly"
            )
            return source
        return CachedSource(source, megabytes=self.cache) if self.cache and training else source

    def _training_samples(self, source: Source) -> Dataset[Sample | Refusal]:
        augmentation, seed, window = self.augmentation, self.seed, self.shuffle_window
        if isinstance(source, StreamSource):
            return StreamedSamples(
                source, augmentation=augmentation, seed=seed, start=self.start_position,
                rank=self.rank, world=self.world, buffer=self.stream_buffer,
                network=self.remote_cache.network,
            )  # fmt: skip
        order = Order(source.counts, seed=seed, window=window)
        remote = _below(source)
        if isinstance(remote, RemoteSource):
            order = FollowedOrder(source.counts, seed=seed, window=window, tell=remote.want)
        return TrainingSamples(source, order, augmentation=augmentation, seed=seed)

    def _check_crops(self) -> None:
        """Try the first sample of each shard, so that an impossible crop is told at once."""
        source = self.sources["train"]
        if not isinstance(source, StreamSource):
            order = Order(source.counts, seed=self.seed, window=0)
            _try_firsts(
                TrainingSamples(source, order, augmentation=self.augmentation, seed=self.seed),
                source,
            )
        if "val" in self.sources and self.val_crop is not None:
            _try_firsts(
                OrderedSamples(self.sources["val"], crop=self.val_crop), self.sources["val"]
            )

    def _allowed_bad(self, source: Source) -> int:
        return max(10, len(source) // 1000) if self.max_bad is None else self.max_bad

    def _whole(self, split: str, crop: int | None) -> DataLoader[Sample | Refusal]:
        source = self.sources[split]
        stride = self.world * self.val_batch
        padded = -(-len(source) // stride) * stride
        plan = BatchPlan(
            total_samples=padded, global_batch=stride, world=self.world, micro=self.val_batch
        )
        return self._loader(
            OrderedSamples(source, crop=crop),
            batch_sampler=PositionBatches(plan, rank=self.rank),
            fetching=isinstance(source, RemoteSource),
        )

    def _loader(
        self,
        samples: Dataset[Sample | Refusal],
        *,
        batch_sampler: PositionBatches,
        fetching: bool = False,
    ) -> DataLoader[Sample | Refusal]:
        return make_loader(
            samples,
            batch_sampler,
            workers=self.workers,
            prefetch=self.prefetch,
            fetching=fetching,
        )

    def _is_training(self) -> bool:
        return self.trainer is not None and self.trainer.training

    def _is_predicting(self) -> bool:
        return self.trainer is not None and self.trainer.predicting

    def _degrade(self, batch: Batch, degradation: Degradation) -> Tensor:
        """Degrade sample by sample: what is drawn depends on (seed, position) alone."""
        positions = batch["position"].tolist()
        names: Sequence[int | str] = positions if self._is_training() else batch["key"]
        device = batch["image"].device
        return torch.stack(
            [
                degradation(image, torch_generator(self.seed, name, "degradation", device))
                for image, name in zip(batch["image"], names, strict=True)
            ]
        )


def _cut(images: Tensor, multiple: int) -> Tensor:
    """To multiples of it, at the bottom and the right; a crop of the training says so itself."""
    height, width = (side // multiple * multiple for side in images.shape[-2:])
    return images[..., :height, :width]


def _below(source: Source) -> Source:
    """What a cache of decoded images reads from."""
    return source.source if isinstance(source, CachedSource) else source


def _try_firsts(samples: Dataset[Sample | Refusal], source: Source) -> None:
    first = 0
    # Of what lies elsewhere one shard: trying all would fetch them all.
    lazy = isinstance(_below(source), RemoteSource)
    for count in list(source.counts)[: 1 if lazy else None]:
        sample = samples[first]
        if isinstance(sample, Refusal) and not sample.unreadable:
            raise UserError(sample.message, where=sample.where)
        first += count
