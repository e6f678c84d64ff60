"""What the networks called as `net(x, t, y)` have in common: tokens in, weights from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from lit_restore.networks.base import Network
from lit_restore.networks.embeddings import (
    PatchEmbed,
    TimestepEmbedder,
    check_input,
    check_labels,
    sincos_2d,
    sizes,
)
from lit_restore.networks.transfer import (
    more_classes,
    resized_head,
    resized_patches,
    resized_positions,
)

_LABELS = "y_embedder.embedding_table.weight"


class Backbone(Network):
    """A network over the tokens of pictures or latents of one size, told a time and a label."""

    head_name: ClassVar[str]
    """Of the layer that gives the pixels of a patch, in the state dict."""

    def _stem(
        self,
        *,
        channels: int,
        size: int | Sequence[int],
        patch: int,
        width: int,
        classes: int,
        time_scale: float,
    ) -> None:
        """Make what turns the input and the time into tokens and a vector.

        Raises:
            UserError: the patch does not divide the size.
        """
        self.size, self.grid = sizes(size, patch)
        self.channels, self.patch, self.classes = channels, patch, classes
        # An input of exactly `size` needs no padding; `tokens` refuses any other.
        self.multiple = math.gcd(*self.size)
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.pos_embed = nn.Parameter(sincos_2d(width, *self.grid)[None])
        self.t_embedder = TimestepEmbedder(width, time_scale)

    def tokens(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Inputs (B, channels, H, W) as tokens (B, N, D) that know their place.

        Raises:
            UserError: the input is of another size, or labels are given to a network without.
        """
        check_input(x, self.channels, self.size)
        check_labels(y, self.classes)
        embedded: Tensor = self.x_embedder(x)
        return embedded + self.pos_embed

    def adapted(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another size, patch or set of classes, see networks.transfer."""
        changed = dict(stored)
        positions, kernel = stored["pos_embed"], stored["x_embedder.proj.weight"]
        changed["pos_embed"] = resized_positions(positions, self.grid)
        changed["x_embedder.proj.weight"] = resized_patches(kernel, self.patch)
        for name in (f"{self.head_name}.weight", f"{self.head_name}.bias"):
            changed[name] = resized_head(stored[name], self.channels, self.patch)
        if _LABELS in stored:
            changed[_LABELS] = more_classes(stored[_LABELS], self.classes + 1)
        elif self.classes:  # the stored network had no labels, and so added nothing for them
            changed[_LABELS] = positions.new_zeros(self.classes + 1, positions.shape[-1])
        return changed
