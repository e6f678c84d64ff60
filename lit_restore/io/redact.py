"""Secrets taken out of everything that is printed, logged or saved.

What counts: the user part of a URL, its signed query parameters, tokens by their form (Hugging
Face, Weights & Biases, GitHub, AWS), values given to options whose names say so, and the values of
environment variables named ``*_TOKEN``, ``*_KEY``, ``*_SECRET`` or ``*PASSWORD``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from urllib.parse import quote

MASK = "***"

_SHORTEST = 8
_SECRET_VARIABLE = re.compile(r".*(?:_TOKEN|_KEY|_SECRET|PASSWORD)", re.IGNORECASE)
_NAMED_SO = r"(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credentials?)"
_SECRET_OPTION = re.compile(rf"(?:.*[_.-])?{_NAMED_SO}|\w*(?:Token|Secret|Password)", re.I)

_USERINFO = re.compile(r"(?<=://)[^/\s?#'\"<>]+@")
_QUERY = re.compile(
    r"([?&;](?:[\w.-]*(?:token|sig|signature|secret|password|passwd|credential)|"
    r"(?:[\w.-]*[_-])?key|[\w.-]*(?:api|access)key(?:id)?|X-(?:Amz|Goog)-[\w-]+)=)[^&;#\s'\"<>]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|wandb_v[0-9]_\w{8,}|gh[opsur]_\w{20,}|AKIA[0-9A-Z]{16})"
)
# An old W&B key has the form of a Git commit, which is wanted in logs.
_WANDB_KEY = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
_COMMIT = re.compile(r"(?:commit|revision|\brev|\bgit)\W*$", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""(\b[\w.-]{{0,64}}{_NAMED_SO}(?:\s*=\s*|["']\s*:\s*)["']?|--[\w.-]{{0,64}}{_NAMED_SO}\s+"""
    rf"""|(?m:^)[ \t]*[\w.-]{{0,64}}{_NAMED_SO}:[ \t]+["']?)(?!null\b|None\b)[^\s"',;&)}}\]]+""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\b(?:Bearer|Basic)\s+)[A-Za-z0-9+/=._~-]{8,}")


def redact(text: str) -> str:
    """`text` with every secret replaced by ``***``."""
    for value in _environment_values():
        text = text.replace(value, MASK)
    text = _USERINFO.sub(f"{MASK}@", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    text = _TOKEN.sub(MASK, text)
    return _WANDB_KEY.sub(_unless_commit, text)


def redact_tree(obj: object) -> object:
    """A copy of nested mappings, lists and tuples with every secret replaced.

    Text under a key that names a secret (``hf_token``, ``password``) goes whole; other objects stay
    as they are.
    """
    if isinstance(obj, str):
        return redact(obj)
    if isinstance(obj, PurePath):
        text = redact(str(obj))
        return obj if text == str(obj) else text
    if isinstance(obj, Mapping):
        return {redact_tree(key): _redact_value(key, value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [redact_tree(item) for item in obj]
    return tuple(map(redact_tree, obj)) if isinstance(obj, tuple) else obj


def _redact_value(key: object, value: object) -> object:
    if isinstance(key, str) and isinstance(value, str):
        if value and _SECRET_OPTION.fullmatch(key):
            return MASK
        if _COMMIT.search(key) and _WANDB_KEY.fullmatch(value):
            return value
    return redact_tree(value)


def _environment_values() -> list[str]:
    """Secret values of the environment as they may appear, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.fullmatch(name)
    }
    return sorted(values | {quote(value, safe="") for value in values}, key=len, reverse=True)


def _unless_commit(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 16) : match.start()]
    return match[0] if _COMMIT.search(before) else MASK
