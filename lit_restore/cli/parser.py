"""The parser behind `train.py`: Lightning's, with errors of one line."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lit_restore.errors import UserError

_KEY = re.compile(r'(?:Parser key|Key|[Aa]rgument) "([^"]+)"')
_EXPECTED = re.compile(r"Expected an? (<class '[^']+'>|.+?)\. Got value: (.+)")
_EMPTY_WORDS = ("Given value", "Subtypes", "Errors", "Expected a <class 'NoneType'>")
_MISSING = re.compile(r'[Kk]ey "([^"]+)" is required')


class OneLineParser(LightningArgumentParser):
    """Raises `UserError` with the key and the last cause, instead of printing pages and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn a parser's message into ours."""
        raise UserError(one_line(message)) from None


def one_line(message: str) -> str:
    """The key and the last cause of a jsonargparse message."""
    stripped = [line.strip(" -\t") for line in message.splitlines()]
    lines = [line for line in stripped if line and not line.startswith(_EMPTY_WORDS)]
    keys = _KEY.findall(message)
    key = max(keys, key=len) if keys else None
    missing = _MISSING.search(message)
    if missing:
        return f"{missing.group(1)} is required; give it in a config (-c) or as an option"
    for line in reversed(lines):
        expected = _EXPECTED.search(line)
        if expected:
            kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected.group(1))
            return f"{key or 'the option'} expects {_article(kind)}, got {expected.group(2)}"
    cause = lines[-1] if lines else message
    if key is None or key in cause:
        return cause
    return f"{key}: {cause}"


def _article(kind: str) -> str:
    words: dict[str, str] = {
        "int": "an integer",
        "float": "a number",
        "bool": "true or false",
        "str": "a text",
    }
    return words.get(kind, kind)


def option_keys(parser: Any) -> list[str]:
    """The dotted keys of all options a parser knows."""
    return [action.dest for action in parser._actions if action.dest]
