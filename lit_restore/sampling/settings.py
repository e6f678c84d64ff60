"""What decides how samples look: equal settings and index, equal sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from lit_restore.diffusion import Guidance, SamplerOptions
from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.networks.base import JSONValue
from lit_restore.weights.autoencoder import read_autoencoder_info
from lit_restore.weights.loading import LoadedNetwork
from lit_restore.weights.prior import class_count, data_shape, model_config

Precision: TypeAlias = Literal["32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sample k is a function of these and k; its class is `classes[k mod their number]`."""

    checkpoint: str
    """Name of the file or folder, for people."""
    sha256: str
    """Of the file, or of the manifest that holds the hashes of a checkpoint's files."""
    profile: str | None
    """Which average of the weights."""
    samples_seen: int | None
    """How long they were trained, in images."""
    seed: int
    classes: tuple[int, ...] | None
    """Labels in turn; None for samples without a label."""
    sampler: SamplerOptions
    guidance: Guidance | None
    precision: Precision
    vae: str | None
    """Hash of the autoencoder that decodes them."""

    def label(self, index: int) -> int | None:
        """Class of sample `index`."""
        return None if self.classes is None else self.classes[index % len(self.classes)]

    def file(self, index: int) -> str:
        """Name of sample `index` in the folder of images."""
        label = self.label(index)
        return f"{index:06d}.png" if label is None else f"{index:06d}-class{label}.png"

    def described(self) -> dict[str, JSONValue]:
        """As they stand in `samples.json`: one name an option of the command line."""
        sampler = {k: v for k, v in asdict(self.sampler).items() if v is not None}
        guidance: dict[str, JSONValue] = {"guidance": None}
        if self.guidance is not None:
            low, high = self.guidance.interval
            guidance = {
                "guidance": self.guidance.scale,
                "guidance_schedule": self.guidance.schedule,
                "guidance_interval": [low, high],
            }
        return {
            "checkpoint": self.checkpoint,
            "sha256": self.sha256,
            "profile": self.profile,
            "samples_seen": self.samples_seen,
            "seed": self.seed,
            "class": None if self.classes is None else ",".join(map(str, self.classes)),
            **sampler,
            **guidance,
            "precision": self.precision,
            "vae": self.vae,
        }


def settings_of(
    loaded: LoadedNetwork,
    *,
    seed: int,
    classes: Sequence[int] | None,
    sampler: SamplerOptions,
    guidance: Guidance | None,
    precision: Precision,
    vae: Path | None,
) -> Settings:
    """The settings of samples from a loaded network.

    Args:
        loaded: the backbone.
        seed: of all noise.
        classes: labels in turn; None for none.
        sampler: how noise is carried to data.
        guidance: classifier-free guidance.
        precision: what the network computes in.
        vae: folder of the autoencoder, for a network of latents.

    Raises:
        UserError: the network makes latents and there is no autoencoder for them, or the reverse.
    """
    profile, seen = loaded.info.get("profile"), loaded.info.get("samples_seen")
    source = loaded.source
    return Settings(
        checkpoint=source.name,
        sha256=fs.sha256(source / "manifest.json" if fs.is_dir(source) else source),
        profile=profile if isinstance(profile, str) else None,
        samples_seen=seen if isinstance(seen, int) else None,
        seed=seed,
        classes=None if classes is None else tuple(classes),
        sampler=sampler,
        guidance=guidance,
        precision=precision,
        vae=_vae_of(loaded, vae),
    )


def check_classes(loaded: LoadedNetwork, classes: Sequence[int], *, where: str) -> None:
    """Refuse labels that a network has not.

    Raises:
        UserError: names the first of them, and the option `where`.
    """
    count = class_count(loaded)
    for label in classes:
        if not count:
            raise UserError("the network has no classes; leave it out", where=where)
        if not 0 <= label < count:
            raise UserError(f"{label} is not among 0 … {count - 1}", where=where)


def _vae_of(loaded: LoadedNetwork, vae: Path | None) -> str | None:
    channels = data_shape(loaded)[0]
    if channels == 3:
        if vae is not None:
            raise UserError("the network makes pixels; leave it out", where="--vae")
        return None
    if vae is None:
        trained = model_config(loaded).get("vae")
        known = f" (trained with {trained})" if isinstance(trained, str) else ""
        raise UserError(
            f"makes latents of {channels} channels; name their autoencoder: --vae FOLDER{known}",
            where=loaded.source,
        )
    found = read_autoencoder_info(vae)
    if found.channels != channels:
        raise UserError(
            f"has latents of {found.channels} channels, the network makes {channels}", where=vae
        )
    return found.sha256
