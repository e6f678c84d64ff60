"""Which code computes an op: chosen by name, by device, by the arguments, by what is available.

The name is the call's ``backend=``, else the innermost `using`'s, else ``$LIT_RESTORE_SCAN``, else
what `set_backend` was given, else "auto": the first of `BACKENDS` that knows the tensors' device,
can run on this machine and takes such arguments. The log says which it was and why no better one. A
new backend is one file in its op's folder, and one line here.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

import torch

from lit_restore.errors import UserError

_log = logging.getLogger(__name__)

VARIABLE = "LIT_RESTORE_SCAN"
AUTO = "auto"
REFERENCE = "reference"
BACKENDS: dict[str, tuple[str, ...]] = {
    "triton": ("cuda",),
    "cuda": ("cuda",),
    "cpu": ("cpu",),
    "mamba_ssm": ("cuda",),
    REFERENCE: (),
}
"""Name → types of device, none for all; the best first. Each is the module of that name in the
folder of its op (an op without one computes as for "auto"). Of its functions `unavailable()` says
in a line why it cannot run here, and `unfit(arguments)` why these arguments are not for it; None is
for "it can". "cuda" needs fewer instructions than "triton", but its launcher has met no GPU yet:
where `tuned` has no measurement, it stands second."""
ON_REQUEST = ("mamba_ssm",)
"""Never chosen by "auto"."""

_default = AUTO
_using: ContextVar[str | None] = ContextVar("scan_backend", default=None)
_announced: set[tuple[str, ...]] = set()


def set_backend(name: str) -> None:
    """The backend of all calls that name none, while `$LIT_RESTORE_SCAN` is not set.

    Args:
        name: "auto" or one of `BACKENDS`.

    Raises:
        UserError: no such backend.
    """
    global _default
    _default = _known(name, where="backend")


@contextmanager
def using(name: str) -> Iterator[None]:
    """The backend of the calls inside that name none; what they leave for later, as a backward,
    keeps to it.

    Args:
        name: "auto" or one of `BACKENDS`.

    Raises:
        UserError: no such backend.
    """
    token = _using.set(_known(name, where="backend"))
    try:
        yield
    finally:
        _using.reset(token)


def requested(name: str | None) -> str:
    """The name in force for a call with ``backend=name``; "auto" is not resolved yet.

    Raises:
        UserError: no such backend.
    """
    if name is not None:
        return _known(name, where="backend")
    inside = _using.get()
    if inside is not None:
        return inside
    named = os.environ.get(VARIABLE)
    return _known(named, where=VARIABLE) if named else _default


def kernel(package: str, name: str, device: torch.device, arguments: object) -> ModuleType:
    """The module that computes an op.

    Args:
        package: the op's folder, as a dotted name.
        name: a backend's name or "auto".
        device: of the tensors.
        arguments: what the backend is to be called with.

    Raises:
        UserError: the named backend does not know the device, cannot run on this machine, or does
            not take such arguments.
    """
    if name != AUTO and not _exists(package, name):
        name = AUTO
    if name != AUTO:
        why = refusal(package, name, device.type, arguments)
        if why is not None:
            raise UserError(f'"{name}" {why}; say "{AUTO}"', where="backend")
        _announce(package, name, device, [])
        return _module(package, name)
    passed: list[str] = []
    fastest = _preferred(package, arguments)
    for better in sorted(BACKENDS, key=lambda each: each != fastest):  # stable: then as they stand
        devices = BACKENDS[better]
        known = not devices or device.type in devices
        if not known or better in ON_REQUEST or not _exists(package, better):
            continue
        why = refusal(package, better, device.type, arguments)
        if why is None:
            _announce(package, better, device, passed)
            return _module(package, better)
        passed.append(f"{better} {why}")
    raise AssertionError("the reference is for all")


def refusal(package: str, name: str, device: str, arguments: object = None) -> str | None:
    """Why a backend would not compute an op, in a few words; None if it would.

    Args:
        package: the op's folder, as a dotted name.
        name: the backend's.
        device: type of device.
        arguments: what it would be called with; None for any.
    """
    devices = BACKENDS[name]
    if devices and device not in devices:
        return f"does not compute on {device}"
    module = _module(package, name)
    why = module.unavailable() if hasattr(module, "unavailable") else None
    if why is not None:
        return f"is not available: {why}"
    why = module.unfit(arguments) if arguments is not None and hasattr(module, "unfit") else None
    return None if why is None else f"does not take this: {why}"


def report(package: str, device: str) -> list[tuple[str, str]]:
    """Each backend's name and what "auto" makes of it on a device, the best first.

    Args:
        package: the op's folder, as a dotted name.
        device: type of device.
    """
    lines, chosen = [], False
    for name in (name for name in BACKENDS if _exists(package, name)):
        why = refusal(package, name, device)
        if why is None and name in ON_REQUEST:
            why = "is there; on request only"
        elif why is None:
            why, chosen = "is there; not needed" if chosen else "is used", True
        lines.append((name, why))
    return lines


def _preferred(package: str, arguments: object) -> str | None:
    """What was measured to be the fastest, where the op has a table of that."""
    if arguments is None or not _exists(package, "tuned"):
        return None
    found: str | None = _module(package, "tuned").preferred(arguments)
    return found


@cache
def _exists(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None


def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")


def _announce(package: str, name: str, device: torch.device, passed: list[str]) -> None:
    key = (package, name, device.type, *passed)
    if key not in _announced:
        _announced.add(key)
        why = "".join(f"; {reason}" for reason in passed)
        # Nobody should have to guess why a run is slow. (Without a compiler `native` warns.)
        slow = name == REFERENCE and device.type != "cpu" and passed
        level = logging.WARNING if slow else logging.INFO
        _log.log(
            level, "%s on %s: %s backend%s", package.rpartition(".")[2], device.type, name, why
        )


def _known(name: str, *, where: str) -> str:
    if name != AUTO and name not in BACKENDS:
        known = ", ".join((AUTO, *BACKENDS))
        raise UserError(f'no backend "{name}"; there are {known}', where=where)
    return name
