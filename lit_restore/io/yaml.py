"""Configs in YAML: only plain data, and nothing read otherwise than it looks.

The YAML that remains after the checks has no tags, anchors or aliases (nine lines of them can
expand to millions), no key twice, text keys only, at most 50 levels and 1 MB. Numbers are read as
the argument parser reads them: ``1e-3`` is a number, which plain PyYAML takes for text, and dates
stay text.
"""

from __future__ import annotations

import re
from os import PathLike

import yaml

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size, shown

SIZE_LIMIT = 1000**2
"""Longest config, in bytes."""
DEPTH_LIMIT = 50
"""Deepest nesting of lists and mappings."""

_CORE = "tag:yaml.org,2002:"
_HARMLESS_TAGS = frozenset(_CORE + kind for kind in ("str", "int", "float", "bool", "null"))
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FLOAT = re.compile(
    r"""[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?$
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$
    |\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?$
    |[-+]?\.(?:inf|Inf|INF)$
    |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
# YAML 1.1 reads 1:30 as ninety and 010 as eight.
_SURPRISE = re.compile(r"[-+]?(?:[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|0[0-7_]*[1-7][0-7_]*)")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with the numbers of YAML 1.2 and without dates."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (_CORE + "float", _CORE + "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_CORE + "float", _FLOAT, list("-+0123456789."))


def read_yaml(path: str | PathLike[str]) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, a URL, above 1 MB, not UTF-8, or refused by `parse_yaml`.
    """
    if _URL.match(str(path)):
        raise UserError("configs are read from files only", where=path)
    data = fs.read_bytes(path, limit=SIZE_LIMIT)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", where=path) from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> dict[str, object]:
    """The mapping that a YAML text describes.

    Args:
        text: the document.
        where: file or key, named in the error line.

    Returns:
        Nested dicts with text keys, lists, str, int, float, bool and None.

    Raises:
        UserError: with the line where there is one.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > SIZE_LIMIT:
        raise UserError(f"{human_size(size)} is above 1 MB", where=where)
    try:
        _check_events(text, where)
        node = yaml.compose(text, Loader=_Loader)
        if node is None or node.tag == _CORE + "null":
            raise UserError("the config is empty", where=where)
        if not isinstance(node, yaml.MappingNode):
            raise UserError("expected options (key: value), found something else", where=where)
        _check_keys(node, where)
        content: dict[str, object] = yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
    except yaml.YAMLError as error:
        raise _syntax(error, text, where) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"a value cannot be read ({shown(str(error))})", where=where) from None
    return content


def _check_events(text: str, where: str) -> None:
    """Everything that must be refused before a tree of nodes is built."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases are refused"
        elif (tag := _refused_tag(event)) is not None:
            problem = f"tag {tag} is refused"
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            if _SURPRISE.fullmatch(event.value):
                problem = f"{shown(event.value)} is no decimal number in YAML; quote or rewrite it"
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            problem = "a second document (---) begins" if documents > 1 else None
        if problem:
            raise UserError(f"line {event.start_mark.line + 1}: {problem}", where=where)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_LIMIT:
            raise UserError(f"nested deeper than {DEPTH_LIMIT}", where=where)


def _refused_tag(event: yaml.Event) -> str | None:
    """A tag as it is written, without its argument: ``!!python/object/apply``."""
    tag = getattr(event, "tag", None)
    if tag is None or (isinstance(event, yaml.ScalarEvent) and tag in _HARMLESS_TAGS):
        return None
    return shown("!!" + tag.removeprefix(_CORE).split(":")[0] if tag.startswith(_CORE) else tag)


def _check_keys(node: yaml.Node, where: str) -> None:
    """Refuse keys that are not text, and keys that appear twice in one mapping."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.tag != _CORE + "str":
            name = shown(key.value) if isinstance(key, yaml.ScalarNode) else "of a list or mapping"
            raise UserError(f"{line}: key {name} is not text; quote it", where=where)
        if key.value in seen:
            raise UserError(f'{line}: key "{shown(key.value)}" appears twice', where=where)
        seen.add(key.value)
        _check_keys(value, where)


def _syntax(error: yaml.YAMLError, text: str, where: str) -> UserError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return UserError(f"not YAML ({shown(str(error))})", where=where)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    # libyaml points at the tab, or at the token after it.
    if "\t" in line[: mark.column + 1]:
        return UserError(f"line {mark.line + 1}: tabs cannot indent YAML", where=where)
    return UserError(f"line {mark.line + 1}: {getattr(error, 'problem', 'not YAML')}", where=where)
