"""What a number means: every table is made by a named, versioned protocol.

A column is metric, colour, border and version; a protocol is its columns, the task, the noise and
where the pictures come from. Both are part of a run's identity: a change of any of them is another
number, and gets another version.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Literal

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Colour, Metric

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
    """One kind of number."""

    metric: Metric
    colour: Colour
    border: int
    """Pixels shaved from every side before measuring."""
    version: int = 1
    """Of the metric's definition here."""

    @property
    def name(self) -> str:
        """Identifier, as in rows.csv: ``psnr_rgb_b0``."""
        return f"{self.metric}_{self.colour}_b{self.border}"

    @property
    def title(self) -> str:
        """For the head of a table: ``PSNR RGB b0``."""
        return f"{self.metric.upper()} {_COLOURS[self.colour]} b{self.border}"

    @property
    def digits(self) -> int:
        """Decimals worth printing."""
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
    summary: str
    """One line on what it is for."""

    def identity(self) -> JSON:
        """All that makes it the protocol it is, for the run id."""
        fields = dataclasses.asdict(self)
        del fields["summary"]
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
        borders = sorted({column.border for column in self.columns})
        lines.append(f"border (b): {', '.join(map(str, borders))} pixels shaved from every side")
        return lines


def _columns(border: int) -> tuple[Column, ...]:
    metrics: tuple[Metric, ...] = ("psnr", "ssim")
    colours: tuple[Colour, ...] = ("rgb", "y")
    return tuple(
        Column(metric=metric, colour=colour, border=border)
        for colour in colours
        for metric in metrics
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
_PIXELS = Protocol(
    name="pixels",
    version=1,
    task="compare",
    sigmas=(),
    columns=_columns(0),
    baselines=(),
    data=None,
    summary="pictures of any origin against their truths (compare only)",
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
    )
}
"""Name → protocol. A new one is one entry here."""


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none; suggests the nearest.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    close = difflib.get_close_matches(name, PROTOCOLS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(PROTOCOLS)}"
    raise UserError(f"no such protocol; {hint}", where=f"--protocol {name}")
