"""Which code computes an op: chosen by name, by device and by what is available here.

The name is the call's ``backend=``, else ``$LIT_RESTORE_SCAN``, else what `set_backend` was given,
else "auto": the first of `BACKENDS` that knows the tensor's device and can run on this machine.
A new backend is one file in its op's folder, and one line here.
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

import torch

from lit_restore.errors import UserError

_log = logging.getLogger(__name__)

VARIABLE = "LIT_RESTORE_SCAN"
AUTO = "auto"
REFERENCE = "reference"
BACKENDS: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu",),
    REFERENCE: (),
}
"""Name → types of device, none for all; the best first. Each is the module of that name in the
folder of its op, whose `unavailable()`, if any, says in a line why it cannot run here."""

_default = AUTO
_announced: set[tuple[str, str, str]] = set()


def set_backend(name: str) -> None:
    """The backend of all calls that name none, while `$LIT_RESTORE_SCAN` is not set.

    Args:
        name: "auto" or one of `BACKENDS`.

    Raises:
        UserError: no such backend.
    """
    global _default
    _default = _known(name, where="backend")


def requested(name: str | None) -> str:
    """The name in force for a call with ``backend=name``; "auto" is not resolved yet.

    Raises:
        UserError: no such backend.
    """
    if name is not None:
        return _known(name, where="backend")
    named = os.environ.get(VARIABLE)
    return _known(named, where=VARIABLE) if named else _default


def kernel(package: str, name: str, device: torch.device) -> ModuleType:
    """The module that computes an op.

    Args:
        package: the op's folder, as a dotted name.
        name: a backend's name or "auto".
        device: of the tensors.

    Raises:
        UserError: the backend does not know the device, or cannot run on this machine.
    """
    if name == AUTO:
        name = _best(package, device)
    else:
        _refuse_unusable(package, name, device)
    _announce(package, name, device)
    return _module(package, name)


def _best(package: str, device: torch.device) -> str:
    for name, devices in BACKENDS.items():
        if not devices:
            return name
        if device.type in devices and _unavailable(package, name) is None:
            return name
    raise AssertionError("the reference is for all devices")


def _refuse_unusable(package: str, name: str, device: torch.device) -> None:
    devices = BACKENDS[name]
    if devices and device.type not in devices:
        raise UserError(
            f'"{name}" does not compute on {device.type}; say "{AUTO}"', where="backend"
        )
    why = _unavailable(package, name)
    if why is not None:
        raise UserError(f'"{name}" is not available: {why}', where="backend")


def _unavailable(package: str, name: str) -> str | None:
    ask = getattr(_module(package, name), "unavailable", None)
    return None if ask is None else ask()


def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")


def _announce(package: str, name: str, device: torch.device) -> None:
    key = (package, name, device.type)
    if key not in _announced:
        _announced.add(key)
        _log.info("%s on %s: %s backend", package.rpartition(".")[2], device.type, name)


def _known(name: str, *, where: str) -> str:
    if name != AUTO and name not in BACKENDS:
        known = ", ".join((AUTO, *BACKENDS))
        raise UserError(f'no backend "{name}"; there are {known}', where=where)
    return name
