"""What a generative network asks of its data, checked while they are on the CPU."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lit_restore.data.batch import Batch
from lit_restore.data.latents import read_latent_info
from lit_restore.data.manifest import MANIFEST
from lit_restore.errors import UserError
from lit_restore.weights.autoencoder import read_autoencoder_info


def check_data(batch: Batch, shape: tuple[int, int, int], classes: int, vae: str | None) -> None:
    """Refuse a batch that a network cannot take.

    Args:
        batch: not on a device yet, where a look at the labels would make the step wait.
        shape: channels, height and width that the network takes.
        classes: that it knows; 0 for none.
        vae: folder of the autoencoder that shows latents.

    Raises:
        UserError: the data are of another size or number of channels, have no labels, or labels
            that are none of the classes; or an autoencoder is named for pixels.
    """
    if vae is not None and "latent" not in batch:
        raise UserError(
            "is for latents, and the data hold pictures; leave it out", where="model.vae"
        )
    latent = "latent" in batch
    got = tuple(batch["latent"].shape[-3:] if latent else batch["image"].shape[1:])
    if got != shape:
        mend = "model.net.size or model.net.channels"
        raise UserError(
            f"the data are {'latents' if latent else 'pictures'} of {_by(got)}, the network takes "
            f"{_by(shape)}; set {mend if latent else f'data.crop, data.val_crop, {mend}'}",
            where="model.net",
        )
    if classes:
        _check_labels(batch.get("label"), classes)


def _check_labels(labels: Tensor | None, classes: int) -> None:
    where = "model.net.classes"
    if labels is None:
        mend = "use 0, or pack them with --classes or --labels"
        raise UserError(f"{classes} classes, and the data have no labels; {mend}", where=where)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UserError(f"label {wrong} of the data is not in 0 … {classes - 1}", where=where)


def check_autoencoder(vae: str, shards: str | None) -> None:
    """Refuse an autoencoder other than the one that a folder of latents says it is of.

    Args:
        vae: the autoencoder's folder.
        shards: a folder of shards; anything else is not looked at.

    Raises:
        UserError: it is another, or one of the two cannot be read.
    """
    if shards is None or not (Path(shards) / MANIFEST).is_file():
        return
    if read_latent_info(Path(shards)).vae != read_autoencoder_info(vae).sha256:
        raise UserError(f"is not the autoencoder that made {shards}", where="model.vae")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
