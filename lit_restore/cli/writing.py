"""What `export` and `convert` share: where a file may go, one line for a disk that refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.errors import ExitCode, SaveError, UserError
from lit_restore.io import fs

if TYPE_CHECKING:
    from lit_restore.networks import Network
    from lit_restore.networks.base import JSONValue


def write_network(path: Path, net: Network, info: Mapping[str, JSONValue]) -> int:
    """Export `net` to `path` and say so.

    Raises:
        UserError: the name does not end in .safetensors, or its folder does not exist.
        SaveError: the disk refused.
    """
    from lit_restore.weights.exported import describe, save_exported

    write_safetensors(path, lambda: save_exported(path, net, info=info))
    count = sum(tensor.numel() for tensor in net.state_dict().values())
    print(f"{path}: {describe(net)['name']}, {count:,} numbers, profile {info.get('profile')}")
    return int(ExitCode.OK)


def write_safetensors(path: Path, write: Callable[[], None]) -> None:
    """Call `write`, which makes the file `path`, where that may be made.

    Raises:
        UserError: the name does not end in .safetensors, or its folder does not exist.
        SaveError: the disk refused.
    """
    if path.suffix != ".safetensors":
        raise UserError("must end in .safetensors", where=f"--out {path}")
    if not fs.is_dir(path.parent):
        raise UserError(f"no folder {path.parent}; make it first", where=f"--out {path}")
    try:
        write()
    except OSError as error:
        raise SaveError(f"{path}: cannot write ({error.strerror or error})") from None
