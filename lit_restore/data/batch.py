"""The one shape of a batch, and how samples become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate


class Batch(TypedDict):
    """What every module's step receives."""

    image: Tensor
    """(B, 3, H, W), [0, 1] on the device (uint8 while it travels there): the clean image.
    (B, 3, 0, 0) where the data hold arrays alone."""
    degraded: NotRequired[Tensor]
    """(B, 3, h, w), the degraded image; may leave [0, 1] where noise is not clipped."""
    restored: NotRequired[Tensor]
    """(B, 3, H, W), [0, 1]: what a restoration network made of the degraded image."""
    label: NotRequired[Tensor]
    """(B,) int64 class labels."""
    latent: NotRequired[Tensor]
    """(B, …) the sample's array, as stored: never cropped, mirrored or turned."""
    key: list[str]
    """The samples' keys, unique in their data set."""
    position: Tensor
    """(B,) int64 on the CPU: places in the run (train) or in the data set (else)."""
    weight: NotRequired[Tensor]
    """(B,) 1 for a sample, 0 for padding (validation, prediction)."""
    bad: NotRequired[list[tuple[str, str]]]
    """(sample, reason) of what could not be read and was replaced; taken off before the step."""


@dataclass
class Sample:
    """One decoded and cropped sample, before it is part of a batch."""

    key: str
    position: int
    image: npt.NDArray[np.uint8]
    """(H, W, 3); (0, 0, 3) for a sample that is an array alone."""
    degraded: npt.NDArray[np.uint8] | None = None
    restored: npt.NDArray[np.uint8] | None = None
    label: int | None = None
    array: npt.NDArray[np.generic] | None = None
    weight: float = 1.0
    bad: tuple[tuple[str, str], ...] = ()
    """What was replaced by this sample: (name, reason)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.image, self.degraded, self.restored, self.array)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass
class Refusal:
    """Sent through a worker in a sample's place: its message ends the run with one line.

    A raised exception would come out of a worker wrapped in a traceback.
    """

    message: str
    where: str | None
    unreadable: bool = False
    """The file is at fault, not what was asked of its picture."""


def collate(samples: Sequence[Sample | Refusal]) -> Batch | Refusal:
    """Stack samples into a batch of uint8 images; the first refusal, where there is one."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Refusal):
            return sample
        good.append(sample)
    sizes = {sample.image.shape[:2] for sample in good}
    if len(sizes) > 1:
        shown = " and ".join(f"{w}x{h}" for h, w in sorted(sizes)[:2])
        return Refusal(f"{shown} do not fit into one batch; set a crop or a batch of 1", "data")
    arrays = [sample.array for sample in good if sample.array is not None]
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        names = " and ".join(sorted({f"{a.dtype} {a.shape}" for a in arrays})[:2])
        return Refusal(f"arrays {names} do not fit into one batch", "data")
    batch = Batch(
        image=_stack([sample.image for sample in good]),
        key=[sample.key for sample in good],
        position=torch.tensor([sample.position for sample in good], dtype=torch.int64),
        weight=torch.tensor([sample.weight for sample in good]),
    )
    if all(sample.degraded is not None for sample in good):
        batch["degraded"] = _stack([s.degraded for s in good if s.degraded is not None])
    if all(sample.restored is not None for sample in good):
        batch["restored"] = _stack([s.restored for s in good if s.restored is not None])
    if all(sample.label is not None for sample in good):
        batch["label"] = torch.tensor([s.label for s in good], dtype=torch.int64)
    if len(arrays) == len(good):
        batch["latent"] = torch.from_numpy(np.stack(arrays))
    bad = [entry for sample in good for entry in sample.bad]
    if bad:
        batch["bad"] = bad
    return batch


def _stack(images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """(H, W, 3) arrays of one size → (B, 3, H, W) uint8, laid out channels-last as decoded."""
    # In a worker this stacks into shared memory at once, which saves a copy on the way out.
    tensors = [torch.from_numpy(np.require(image, requirements="W")) for image in images]
    stacked: Tensor = default_collate(tensors)
    return stacked.permute(0, 3, 1, 2)
