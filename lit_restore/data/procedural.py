"""The embedded default data: shards of procedural pictures, made on first use."""

from __future__ import annotations

from pathlib import Path

from lit_restore.data.dead_leaves import procedural_image
from lit_restore.data.packing import write_shards
from lit_restore.data.sources import procedural_images

__all__ = ["ensure_procedural", "procedural_image"]


def ensure_procedural(
    folder: str | Path, *, count: int, size: int, seed: int, per_shard: int = 100, workers: int = 1
) -> Path:
    """Make the shards of a procedural set where they are not there yet.

    Of several processes that ask for one folder, one makes it and the others wait; what a killed
    one left is gone on with.

    Args:
        folder: where the shards are, or go.
        count: number of pictures.
        size: side of the square pictures, pixels.
        seed: of the set.
        per_shard: pictures a shard.
        workers: processes that draw.

    Returns:
        The folder, complete.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    images = procedural_images(count, size=size, seed=seed)
    write_shards(images, Path(folder), per_shard=per_shard, workers=workers, wait=True)
    return Path(folder)
