"""URLs as text: what is remote, what may be shown, and what names the same content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from lit_restore.errors import UserError
from lit_restore.io.redact import redact

PIPE = "pipe:"

_MOST = 1_000_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_SIGNED_WITH = frozenset(
    [
        "expires",
        "policy",
        "key-pair-id",
        *["se", "st", "sp", "sv", "sr", "spr", "ske", "skt", "sks", "skv", "skoid", "sktid"],
    ]
)


def is_pipe(text: str) -> bool:
    """Whether this names the output of a shell command."""
    return text.startswith(PIPE)


def is_remote(text: str) -> bool:
    """Whether this is a URL: it says ``scheme://``, and is no shell command."""
    return not is_pipe(text) and "://" in text


def public(url: str) -> str:
    """The URL as a line may print it: secrets masked, control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redact(url))


def check_url(url: str, *, where: str) -> None:
    """`UserError` where this cannot be a URL."""
    try:
        parts = urlsplit(url)
        good = bool(parts.scheme) and (parts.scheme not in ("http", "https") or parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise UserError(f'"{public(url)}" is not a URL', where=where)


def identity(url: str) -> str:
    """The part of a URL that says which content it names: no user, no signature, no fragment.

    The same file signed anew tomorrow is the same file.
    """
    parts = urlsplit(url)
    kept = [word for word in parts.query.split("&") if word and not _is_secret(word)]
    if len(kept) < len(list(filter(None, parts.query.split("&")))):
        kept = [word for word in kept if word.partition("=")[0].lower() not in _SIGNED_WITH]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "&".join(kept), ""))


def _is_secret(word: str) -> bool:
    return redact(f"?{word}") != f"?{word}"


def file_name(url: str) -> str:
    """The last part of the path, as a file may be called; ``shard.tar`` where there is none."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    safe = re.sub(r"[^\w.+=@ -]", "_", name).lstrip(".")[-200:]
    return safe or "shard.tar"


def is_shard(url: str) -> bool:
    """Whether the URL's path ends in ``.tar``, as a single shard's does."""
    return urlsplit(url).path.endswith(".tar")


def inside(folder: str, name: str) -> str:
    """The URL of the file `name` in the folder at `folder`; its query is kept."""
    parts = urlsplit(folder)
    plain = parts.scheme in ("http", "https")
    path = f"{parts.path.rstrip('/')}/{quote(name) if plain else name}"
    text = urlunsplit((parts.scheme, parts.netloc, path, parts.query, parts.fragment))
    # urlunsplit drops the empty host of "memory:///x" and "file:///x".
    return text if parts.netloc or "://" in text else text.replace(":", "://", 1)


def expand(text: str, *, key: str) -> list[str]:
    """Write out ``{000..099}`` (padded as its ends are) and ``{a,b}``; a `$` before one keeps it.

    Args:
        text: a URL or a `pipe:` command.
        key: the option it was given for, named in error lines.

    Raises:
        UserError: more than a million names, or not a URL.
    """
    if is_remote(text):
        check_url(text, where=key)
    found = list(islice(_expansions(text), _MOST + 1))
    if len(found) > _MOST:
        raise UserError(f"{public(text)} names more than {_MOST} shards", where=key)
    return found


def _expansions(text: str, start: int = 0) -> Iterator[str]:
    match = _BRACES.search(text, start)
    while match is not None and text[match.start() - 1 : match.start()] == "$":
        match = _BRACES.search(text, match.end())
    words = None if match is None else _words(match[1])
    if match is None:
        yield text
    elif words is None:
        yield from _expansions(text, match.end())
    else:
        head, tail = text[: match.start()], text[match.end() :]
        for word in words:
            yield from _expansions(f"{head}{word}{tail}", len(head) + len(word))


def _words(body: str) -> Iterator[str] | None:
    numbers = _RANGE.fullmatch(body)
    if numbers is not None:
        first, last = numbers[1], numbers[2]
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    return iter(body.split(",")) if "," in body else None
