"""What a number means: every table is made by a named, versioned protocol.

A column is metric, colour, border and version; a protocol is its columns, the task, the noise and
where the pictures come from. Both are part of a run's identity: a change of any of them is another
number, and gets another version.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Colour, Metric
from lit_restore.evaluation.perceptual.names import PERCEPTUAL, PerceptualName

JSON = dict[str, object]

_COLOURS = {"rgb": "RGB", "y": "Y", "y_uint8": "Y rounded"}
_DEFINITIONS = {
    "psnr": "PSNR = 10 log10(255²/MSE) over all pixels and channels of an image, in dB",
    "ssim": "SSIM: 11x11 Gaussian window (σ 1.5), population moments, windows inside the image",
    "y": "Y = BT.601 luma in studio swing, not rounded; a grey picture is measured as it is",
    "y_uint8": "Y rounded = the same, rounded to whole numbers",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One kind of number. A perceptual metric sees the whole picture: no border, its own colour."""

    metric: Metric | PerceptualName
    colour: Colour
    border: int
    """Pixels shaved from every side before measuring."""
    version: int = 1
    """Of the metric's definition here."""

    @property
    def name(self) -> str:
        """Identifier, as in rows.csv: ``psnr_rgb_b0``, ``lpips-alex``."""
        if self.metric in PERCEPTUAL:
            return self.metric
        return f"{self.metric}_{self.colour}_b{self.border}"

    @property
    def title(self) -> str:
        """For the head of a table: ``PSNR RGB b0``, ``LPIPS-Alex``."""
        if self.metric in PERCEPTUAL:
            return PERCEPTUAL[self.metric].title
        return f"{self.metric.upper()} {_COLOURS[self.colour]} b{self.border}"

    @property
    def digits(self) -> int:
        """Decimals worth printing."""
        if self.metric in PERCEPTUAL:
            return PERCEPTUAL[self.metric].digits
        return 2 if self.metric == "psnr" else 4


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How pictures become numbers."""

    name: str
    version: int
    task: Literal["denoise", "compare"]
    """``denoise``: noise is added to clean pictures, and methods remove it. ``compare``: given
    pictures are measured against given truths."""
    sigmas: tuple[float, ...]
    """Standard deviations of the noise, in units of 8-bit levels (255 is white)."""
    columns: tuple[Column, ...]
    baselines: tuple[str, ...]
    """Methods that need no checkpoint, in every table of this protocol."""
    data: str | None
    """The pictures it is defined on; None: those given."""
    quantise: Literal["uint8"] = "uint8"
    """Metrics read 8-bit PNG files."""
    degradation: JSON | None = None
    """``{"name": …, "options": {…}}`` of what clean pictures are degraded by before networks
    restore them; None: degraded pictures are given, or how to make them."""
    summary: str
    """One line on what it is for."""

    def identity(self) -> JSON:
        """All that makes it the protocol it is, for the run id."""
        fields = dataclasses.asdict(self)
        del fields["summary"]
        if fields["degradation"] is None:
            del fields["degradation"]
        return fields

    @property
    def words(self) -> list[str]:
        """The protocol in sentences, as they stand under a table."""
        lines = [f"protocol {self.name} v{self.version}: {self.summary}"]
        if self.task == "denoise":
            levels = ", ".join(f"{sigma:g}" for sigma in self.sigmas)
            lines.append(
                f"noise: white, Gaussian, σ = {levels} (of 255), drawn from (seed, key), added in "
                "float32 and not clipped; every method gets the same float image"
            )
        lines.append("outputs are clamped, rounded half up to 8 bits and written as PNG; ")
        lines[-1] += "metrics read the PNG, one image at a time, and are then averaged"
        used = dict.fromkeys(
            word for c in self.columns for word in (c.metric, c.colour) if word in _DEFINITIONS
        )
        lines += [_DEFINITIONS[word] for word in used]
        borders = sorted({c.border for c in self.columns if c.metric not in PERCEPTUAL})
        lines.append(f"border (b): {', '.join(map(str, borders))} pixels shaved from every side")
        seen = dict.fromkeys(c.metric for c in self.columns if c.metric in PERCEPTUAL)
        return lines + [PERCEPTUAL[name].definition for name in seen]


def _columns(border: int, colours: tuple[Colour, ...] = ("rgb", "y")) -> tuple[Column, ...]:
    metrics: tuple[Metric, ...] = ("psnr", "ssim")
    return tuple(
        Column(metric=metric, colour=colour, border=border)
        for colour in colours
        for metric in metrics
    )


def _perceptual(*names: PerceptualName) -> tuple[Column, ...]:
    return tuple(Column(metric=name, colour="rgb", border=0) for name in names)


def _pairs(
    name: str, columns: tuple[Column, ...], summary: str, degradation: JSON | None = None
) -> Protocol:
    return Protocol(
        name=name,
        version=1,
        task="compare",
        sigmas=(),
        columns=columns,
        baselines=(),
        data=None,
        degradation=degradation,
        summary=summary,
    )


def _denoise(name: str, *sigmas: float) -> Protocol:
    levels = ", ".join(f"{sigma:g}" for sigma in sigmas)
    return Protocol(
        name=name,
        version=1,
        task="denoise",
        sigmas=tuple(map(float, sigmas)),
        columns=_columns(0),
        baselines=("noisy",),
        data=None,
        summary=f"remove Gaussian noise of σ = {levels} from any pictures",
    )


_QUICKSTART = Protocol(
    name="quickstart",
    version=1,
    task="denoise",
    sigmas=(25.0,),
    columns=_columns(0),
    baselines=("noisy", "tv-chambolle"),
    data="skimage",
    summary="the three photographs that come with scikit-image (astronaut, coffee, chelsea), "
    "full size, against total variation at its best weight",
)
_PIXELS = _pairs("pixels", _columns(0), "pictures of any origin against their truths")
_SR_X4 = _pairs(
    "sr-x4",
    _columns(4) + _perceptual("lpips-alex", "niqe"),
    "super-resolution by 4 of MATLAB's bicubic; pictures are cut to multiples of 4 first",
    {"name": "Downscale", "options": {"scale": 4}},
)
_DEBLUR = _pairs("deblur", _columns(0, ("rgb",)) + _perceptual("lpips-alex"), "deblurred pictures")
_RESTORE = _pairs(
    "restore", _columns(0, ("rgb",)) + _perceptual("lpips-alex", "niqe"), "restored pictures"
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _QUICKSTART,
        _denoise("denoise", 15, 25, 50),
        _denoise("denoise-15", 15),
        _denoise("denoise-25", 25),
        _denoise("denoise-50", 50),
        _PIXELS,
        _SR_X4,
        _DEBLUR,
        _RESTORE,
    )
}
"""Name → protocol. A new one is one entry here."""


def find_protocol(name: str) -> Protocol:
    """The protocol of that name, with more columns if it names any.

    Args:
        name: of `PROTOCOLS`; ``restore+dists+niqe_d`` has those perceptual metrics beside its own.

    Raises:
        UserError: there is none; suggests the nearest.
    """
    base, *more = name.split("+")
    if base not in PROTOCOLS:
        raise _unknown("protocol", base, PROTOCOLS, where=f"--protocol {name}")
    protocol = PROTOCOLS[base]
    return _with_columns(protocol, more, where=f"--protocol {name}") if more else protocol


def _with_columns(protocol: Protocol, names: list[str], *, where: str) -> Protocol:
    if protocol.task != "compare":
        raise UserError(
            f"{protocol.name} takes no more columns; measure its pictures with compare and "
            f"restore+{names[0]}",
            where=where,
        )
    known: dict[str, PerceptualName] = {metric: metric for metric in PERCEPTUAL}
    for name in names:
        if name not in known:
            raise _unknown("metric", name, known, where=where)
    wanted = _perceptual(*(known[name] for name in names))
    columns = tuple(dict.fromkeys(protocol.columns + wanted))
    full = "+".join([protocol.name, *(c.name for c in columns if c not in protocol.columns)])
    return dataclasses.replace(protocol, name=full, columns=columns)


def _unknown(what: str, name: str, known: Mapping[str, object], *, where: str) -> UserError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return UserError(f"no such {what}; {hint}", where=where)
