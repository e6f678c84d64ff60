"""The parser behind `train.py`: Lightning's, with errors of one line."""

from __future__ import annotations

import ast
import re
import typing
from types import NoneType
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lit_restore.errors import UserError
from lit_restore.io.wording import shown

_KEY = re.compile(r'(?:Parser key|Key|[Aa]rgument) "([^"]+)"')
_MISSING = re.compile(
    r'[Kk]ey "([^"]+)" is required'
    r"|arguments are required: (?:(?:fit|validate|test|predict)\.)?([^\s,]+)"
)
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value:.*)?$")
_OF_A_CLASS = re.compile(r"Not a valid subclass of (\w+)")
_OURS = re.compile(r"\S+ expects .+, got ")
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_VALUE = re.compile(r"(?:Given value|Got value): ?(.*)")
_NO_VALUE = re.compile(r"argument --(\S+): expected one argument")
_TOO_EARLY = re.compile(r"is not accepted before subcommand '(\w+)'")
_NOISE = (
    "Given value", "Subtypes", "Errors", "Does not validate", "Parser key", "Subclass types",
    "Expected a dot import path", "a class path (str)", "a dict with", "a dict without",
)  # fmt: skip
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "options (name: value)",
    "list": "a list [a, b]",
    "tuple": "a list [a, b]",
    "Sequence": "a list [a, b]",
    "NoneType": "null",
}


class OneLineParser(LightningArgumentParser):
    """Raises `UserError` with the key and the last cause, instead of printing pages and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn a parser's message into ours."""
        raise UserError(one_line(message)) from None


def one_line(message: str) -> str:
    """The key and the cause of a jsonargparse message: what was expected, and what was given."""
    missing = _MISSING.search(message)
    if missing:
        key = missing[1] or missing[2]
        return f"{key} is required; give it in a config (-c) or as an option"
    if no_value := _NO_VALUE.search(message):
        return f"{no_value[1]} is given without a value"
    if too_early := _TOO_EARLY.search(message):
        return f"put -c and all options behind {too_early[1]}"
    if message.startswith("unrecognized arguments"):
        return f"{message}; give options as --key value, configs as -c FILE"
    keys = _KEY.findall(message)
    key = max(keys, key=len) if keys else ""
    stripped = [line.strip(" -\t") for line in message.splitlines()]
    lines = [line for line in stripped if line and not line.startswith(_NOISE)]
    kinds = [kind for line in lines if (kind := _kind(line))]
    causes = [line for line in lines if not _kind(line)]
    for cause in causes:
        if _OURS.match(cause):  # of a class's own parser, which knows the last part of the key
            return f"{key}.{cause}" if key else cause
        if unknown := _UNKNOWN.search(cause):
            return f"{key}.{unknown[1]} is not an option" if key else cause
        if denied := _DENIED.search(cause):
            return f"{key or 'class_path'}: {denied[1]} is not allowed; --trust_config would run it"
    if kinds and not causes:
        given = _VALUE.search(message)
        got = f", got {shown(given[1]) or 'nothing'}" if given else ""
        return f"{key or 'the option'} expects {_either(kinds)}{got}"
    cause = causes[0] if kinds else causes[-1] if causes else message
    return cause if not key or key in cause else f"{key}: {cause}"


def _kind(line: str) -> str:
    """What a line says was expected; nothing where it says something else."""
    if of_class := _OF_A_CLASS.match(line):
        return f"a {of_class[1]} (class_path: NAME)"
    expected = _EXPECTED.match(line)
    if expected is None:
        return ""
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected[1])
    return _KINDS.get(kind, kind)


def _either(kinds: list[str]) -> str:
    """All that was expected: one list of the choices, null last."""
    choices: list[object] = []
    others: list[str] = []
    for kind in kinds:
        literal = re.fullmatch(r"(?:typing\.)?Literal(\[.+\])", kind)
        if literal:
            choices += ast.literal_eval(literal[1])
        elif kind not in others:
            others.append(kind)
    others.sort(key=lambda kind: kind == "null")
    one_of = ["one of " + ", ".join(map(str, choices))] if len(choices) > 1 else choices
    return " or ".join(map(str, [*one_of, *others]))


def refuse_nulls(parser: Any, config: Any) -> None:
    """Refuse null where an option has a default and its type does not take null.

    The parser itself lets every option be null.

    Args:
        parser: the subcommand's.
        config: what it parsed.

    Raises:
        UserError: names the option and its default.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None) or action.type
        kinds = typing.get_args(hint) or (hint,)
        free = hint is None or hint is Any or NoneType in kinds
        if free or action.default is None or config.get(action.dest, action.default) is not None:
            continue
        raise UserError(f"cannot be null; leave it out for {action.default}", where=action.dest)


def option_keys(parser: Any) -> list[str]:
    """The dotted keys of all options a parser knows."""
    return [action.dest for action in parser._actions if action.dest]
