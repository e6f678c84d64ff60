"""A fusion training with the two networks under it, ready to restore images (DP-IR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from lit_restore.diffusion.discrete import DiscreteDiffusion
from lit_restore.errors import UserError
from lit_restore.inverse.fused import Estimate, FusedPrior
from lit_restore.io import fs
from lit_restore.networks import FUSIONS
from lit_restore.networks.base import JSONValue, Network
from lit_restore.networks.restoration import RestorationNetwork
from lit_restore.weights.frozen import known_noise, load_denoiser
from lit_restore.weights.loading import LoadedNetwork, load_network
from lit_restore.weights.prior import model_config
from lit_restore.weights.restorers import load_restorer, weights_sha256

GIVEN = "given"
"""In the place of a restoration network: what is to be restored has been through one already."""
DEFAULTS: Mapping[str, float] = {"t_max": 250, "steps": 1000, "beta_min": 1e-4, "beta_max": 2e-2}
"""What `lit_restore.training.FusionTraining` takes where its configuration leaves it out."""


@dataclass(frozen=True, kw_only=True)
class LoadedFusion:
    """The three networks of DP-IR, on the CPU and in evaluation mode."""

    fusion: Network
    denoiser: Network
    restorer: RestorationNetwork
    diffusion: DiscreteDiffusion
    t_max: int
    """The largest time that the fusion network was trained for."""
    digests: Mapping[str, str]
    """fusion, denoiser, restorer → sha256 of the weights."""
    sigma_max: float | None
    """The highest noise that the denoiser was trained for, in image units; None: not told."""
    degradation: JSONValue
    """Of the fusion's training: what the networks can be expected to undo; None: not known."""
    restorer_degradation: JSONValue
    """Of the restoration network's own training."""
    notes: tuple[str, ...] = ()
    """What a user should know: networks given that are not those of the training."""
    source: Path
    """The checkpoint or file of the fusion network."""

    def prior(self, estimate: Estimate = "fusion") -> FusedPrior:
        """The estimate of the clean image at any time."""
        fusion: Callable[[Tensor, Tensor, Tensor], Tensor] = self.fusion
        return FusedPrior(self.diffusion, self.denoiser, fusion, estimate=estimate)

    @property
    def restorer_calls(self) -> int:
        """Of the restoration network for an image: none where it has run already."""
        return 0 if self.restorer.name == GIVEN else 1

    def networks(self) -> dict[str, nn.Module]:
        """Name → network, the restoration network first."""
        return {"restorer": self.restorer, "denoiser": self.denoiser, "fusion": self.fusion}


def load_fusion(
    path: str | PathLike[str],
    *,
    denoiser: str | PathLike[str] | None = None,
    restorer: str | PathLike[str] | None = None,
    profile: str | None = None,
) -> LoadedFusion:
    """The fusion network in an exported file, a checkpoint or a run, and those under it.

    Args:
        path: as `load_network` takes it.
        denoiser: another denoiser than the one of the training, which is else looked for where it
            was then and must be the same.
        restorer: likewise another restoration network; needed where the training read its outputs
            from shards. `GIVEN` where images have been through one already.
        profile: which average of the fusion's weights; by default the first.

    Raises:
        UserError: as `load_network`, `load_denoiser` and `load_restorer`; it was trained for
            something else; or a network is not where it was, or not the same any more.
    """
    loaded = load_network(path, profile=profile)
    if loaded.net.kind not in FUSIONS:
        task = loaded.info.get("task", "something else")
        known = ", ".join(FUSIONS)
        told = f"holds a {loaded.net.kind}, trained for {task}; needed is one of {known}"
        raise UserError(told, where=path)
    config = model_config(loaded)
    recorded = _recorded(loaded)
    cleaner = load_denoiser(_place("denoiser", denoiser, config, path), where="--denoiser")
    first = cleaner.net
    channels = loaded.net.options["channels"]
    assert isinstance(channels, int)
    second, digest, own = _restorer(restorer, config, path, channels)
    found = {"denoiser": weights_sha256(first.state_dict()), "restorer": digest}
    notes = []
    for name, given in (("denoiser", denoiser), ("restorer", restorer)):
        if recorded.get(name, found[name]) == found[name] or given == GIVEN:
            continue
        if given is not None:
            notes.append(f"{given} is not the {name} that {path} was trained over")
        else:
            raise UserError(
                f"{config[name]} is not what {path} was trained over (sha256 {found[name][:12]}, "
                f"then {recorded[name][:12]}); give it again to use it all the same",
                where=f"--{name}",
            )
    for name, held in (
        ("denoiser", first.options["channels"]), ("restorer", second.out_channels)
    ):  # fmt: skip
        if held != channels:
            told = f"channels of its images are {held}, the fusion takes {channels}"
            raise UserError(told, where=f"--{name}")
    numbers = {name: _number(config, name, loaded.source) for name in DEFAULTS}
    return LoadedFusion(
        fusion=loaded.net,
        denoiser=first,
        restorer=second,
        diffusion=DiscreteDiffusion(
            int(numbers["steps"]), numbers["beta_min"], numbers["beta_max"]
        ),
        t_max=int(numbers["t_max"]),
        digests={"fusion": weights_sha256(loaded.net.state_dict()), **found},
        sigma_max=known_noise(cleaner),
        degradation=recorded_degradation(loaded.info),
        restorer_degradation=own,
        notes=tuple(notes),
        source=loaded.source,
    )


def recorded_degradation(info: Mapping[str, JSONValue]) -> JSONValue:
    """How the pictures of a training were degraded, as its checkpoint or file tells it.

    Args:
        info: what it says of itself.

    Returns:
        A record, or in older files the entry of a recipe (`data.degradations.recorded.as_record`
        reads both); None where the pictures were pairs, or nothing is known.
    """
    if info.get("degradation") is not None:
        return info["degradation"]
    tree: JSONValue = dict(info)
    for key in ("config", "data", "degradation"):
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def _recorded(loaded: LoadedNetwork) -> dict[str, str]:
    """Option → sha256 of the networks that the training used."""
    frozen = loaded.info.get("frozen")
    if not isinstance(frozen, dict):
        return {}
    return {name: str(digest) for name, digest in frozen.items()}


def _restorer(
    given: str | PathLike[str] | None,
    config: dict[str, JSONValue],
    path: str | PathLike[str],
    channels: int,
) -> tuple[RestorationNetwork, str, JSONValue]:
    """The network, the sha256 of its weights, and the degradation of its own training."""
    if given == GIVEN:
        return RestorationNetwork(nn.Identity(), name=GIVEN, in_channels=channels), GIVEN, None
    place = _place("restorer", given, config, path)
    loaded = load_restorer(place)
    return loaded.net, loaded.sha256, recorded_degradation(loaded.info)


def _place(
    name: str,
    given: str | PathLike[str] | None,
    config: dict[str, JSONValue],
    path: str | PathLike[str],
) -> str | PathLike[str]:
    if given is not None:
        return given
    recorded = config.get(name)
    if not isinstance(recorded, str):
        raise UserError(f"is needed: {path} does not name one", where=f"--{name}")
    # FILE.tar:MEMBER is looked at by who reads it.
    if not fs.exists(recorded) and ".tar:" not in recorded:
        raise UserError(
            f"{recorded}, over which {path} was trained, is not there; say where it is",
            where=f"--{name}",
        )
    return recorded


def _number(config: dict[str, JSONValue], name: str, source: Path) -> float:
    value = config.get(name, DEFAULTS[name])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError("is damaged: a number is expected", where=f"{source}: model.{name}")
    return value
