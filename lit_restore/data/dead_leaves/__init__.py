"""Pictures with the statistics of photographs, made from a seed: nothing to download.

`canvas` keeps what is seen where, `scatter` strews leaves of many `shapes` on it, `looks` and
`textures` say how they look, and `picture` adds shadows, light, a lens and a tone curve.
"""

from lit_restore.data.dead_leaves.picture import VERSION, procedural_image

__all__ = ["VERSION", "procedural_image"]
