"""Bytes from elsewhere: http(s) by the standard library, everything else through fsspec.

A transfer is retried after 1, 2, 4, 8 and 16 s (+-20 %) on what may pass: 408, 425, 429, 5xx, a
reset, silence, a crawl, a short or wrong body. Not on 401, 403, 404 and the like. Libraries accept
half a body without a Content-Length, and an error page with status 200, so what arrived is worth
nothing until the caller's check has passed (reliability §2.4).
"""

from __future__ import annotations

import base64
import http.client
import importlib
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from lit_restore.errors import UserError
from lit_restore.io import trust
from lit_restore.io.urls import check_url, public
from lit_restore.io.wording import human_size

T = TypeVar("T")

_BLOCK = 1 << 20
_PASSING = frozenset({408, 425, 429, *range(500, 600)})
_SCHEMES = ("http", "https")
_STORES = (
    "file",
    "memory",
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "hf",
    "oss",
    "oci",
    "ftp",
    "sftp",
    "hdfs",
    "webhdfs",
)
"""Protocols that only fetch; others of fsspec's (reference, chains by ``::``) can run code."""
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_WORDS = {401: "asks for a login", 403: "forbidden", 404: "not there", 410: "gone"}


class TransferError(Exception):
    """A transfer failed in a way that another attempt may mend.

    Args:
        reason: what happened, for the error line.
        wait: seconds the server asks to wait.
    """

    def __init__(self, reason: str, *, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


@dataclass(frozen=True, kw_only=True)
class Network:
    """How patient transfers are."""

    silence: float = 30.0
    """Seconds without a byte before an attempt ends."""
    crawl: float = 60.0
    """Seconds over which `least_rate` must be reached."""
    least_rate: float = 16 * 1024
    """Bytes per second; a server that drips slower holds up a whole run."""
    waits: tuple[float, ...] = (1, 2, 4, 8, 16)
    """Seconds between attempts, each varied by a fifth; one attempt more than there are waits."""
    longest_wait: float = 60.0
    """Seconds at most that a Retry-After is obeyed."""
    redirects: int = 5
    """Redirections followed."""
    sleep: Callable[[float], None] = time.sleep
    """What waits; tests give their own."""


NETWORK = Network()


class Stream:
    """An open body: read it in pieces, close it.

    Args:
        body: where bytes come from.
        length: bytes that were promised, None where nothing was.
        network: how patient reading is.
    """

    def __init__(self, body: Any, length: int | None, network: Network) -> None:
        self.length = length
        """Bytes promised, None where nothing was."""
        self.received = 0
        """Bytes read so far."""
        self._body, self._network = body, network
        self._read: Callable[[int], bytes] = getattr(body, "read1", body.read)
        self._spent, self._before = 0.0, 0

    def read(self, size: int = _BLOCK) -> bytes:
        """Up to `size` bytes, as many as there are at once; none at the end.

        Raises:
            TransferError: reset, silent, too slow, or ended before the promised length.
        """
        began = time.monotonic()
        with _transfer():
            data = self._read(min(size, _BLOCK) if size >= 0 else _BLOCK)
        self.received += len(data)
        if not data and self.length is not None and self.received < self.length:
            raise TransferError(f"ended at byte {self.received} of {self.length}")
        self._check_pace(time.monotonic() - began)
        return data

    def _check_pace(self, seconds: float) -> None:
        """Of the network alone: whoever reads may take its time between two reads."""
        self._spent += seconds
        if self._spent < self._network.crawl:
            return
        if self.received - self._before < self._network.least_rate * self._spent:
            rate = human_size(int(self._network.least_rate))
            raise TransferError(f"slower than {rate} a second for {self._spent:.0f} s")
        self._spent, self._before = 0.0, self.received

    def close(self) -> None:
        """Give the connection up."""
        with suppress(Exception):
            self._body.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stream(url: str, *, network: Network = NETWORK) -> Stream:
    """Open a URL once, without another attempt.

    Raises:
        TransferError: what may pass.
        UserError: what will not: not there, forbidden, an unknown protocol.
    """
    check_url(url, where=public(url))
    if urlsplit(url).scheme in _SCHEMES:
        return _open_http(url, network)
    return _open_fsspec(url, network)


def retrying(attempt: Callable[[], T], *, url: str, network: Network = NETWORK) -> T:
    """The result of `attempt`, tried again after each `TransferError` as `network` says.

    Raises:
        UserError: all attempts failed; names the URL and the last reason.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except TransferError as error:
            failures += 1
            if failures > len(network.waits):
                raise UserError(
                    f"{error.reason} ({failures} attempts); is the server well, is it the right "
                    "file?",
                    where=public(url),
                ) from None
            wait = network.waits[failures - 1] * random.uniform(0.8, 1.2)
            network.sleep(max(wait, min(error.wait or 0.0, network.longest_wait)))


def fetch_bytes(url: str, *, limit: int, network: Network = NETWORK) -> bytes:
    """A small file's whole content.

    Args:
        url: where it is.
        limit: the most bytes accepted.
        network: how patient to be.

    Raises:
        UserError: it cannot be had, or is larger.
    """

    def attempt() -> bytes:
        with open_stream(url, network=network) as stream:
            parts = []
            while data := stream.read():
                parts.append(data)
                if stream.received > limit:
                    raise UserError(f"is above {human_size(limit)}", where=public(url))
            return b"".join(parts)

    return retrying(attempt, url=url, network=network)


# http ---------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirections, to http(s) only and never from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in _SCHEMES or (old == "https" and new == "http"):
            raise UserError(f"is redirected from {old} to {new or 'nowhere'}, refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_http(url: str, network: Network) -> Stream:
    redirects = type("Redirects", (_Redirects,), {"max_redirections": network.redirects})
    opener = urllib.request.build_opener(redirects)
    try:
        with _transfer():
            response = opener.open(_request(url), timeout=network.silence)
    except UserError as error:
        raise UserError(error.message, where=public(url)) from None
    except ValueError as error:
        raise UserError(f"is no URL ({type(error).__name__})", where=public(url)) from None
    except _Status as status:
        raise _refusal(status, url) from None
    if response.status != 200:
        response.close()
        raise UserError(f"answers {response.status} where 200 was expected", where=public(url))
    length = response.headers.get("Content-Length", "")
    return Stream(response, int(length) if length.isdecimal() else None, network)


def _request(url: str) -> urllib.request.Request:
    """The user part of a URL goes into a header that a redirection does not carry on."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(  # noqa: S310  (http and https only, by the caller)
        urlunsplit((parts.scheme, host, parts.path, parts.query, "")),
        headers={"User-Agent": "lit-restore", "Accept-Encoding": "identity"},
    )
    if user:
        login = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    return request


class _Status(Exception):
    def __init__(self, code: int, headers: Message) -> None:
        super().__init__(code)
        self.code, self.headers = code, headers


def _refusal(status: _Status, url: str) -> Exception:
    code = status.code
    if code in _PASSING:
        after = str(status.headers.get("Retry-After", "")).strip()
        return TransferError(f"answers {code}", wait=float(after) if after.isdecimal() else None)
    if 300 <= code < 400:
        return UserError(f"is redirected too often, or to nowhere ({code})", where=public(url))
    return UserError(f"{_WORDS.get(code, 'refused')} (answer {code})", where=public(url))


@contextmanager
def _transfer() -> Iterator[None]:
    """What the network does wrong, as a `TransferError`; no text of an exception with a URL."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _Status(error.code, error.headers) from None
    except urllib.error.URLError as error:
        raise TransferError(_reason(error.reason)) from None
    except http.client.InvalidURL:
        raise ValueError from None
    except (OSError, http.client.HTTPException, EOFError) as error:
        raise TransferError(_reason(error)) from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "silent for too long"
    if isinstance(error, http.client.IncompleteRead):
        return "ended too early"
    if isinstance(error, OSError) and error.strerror:
        return f"no connection ({error.strerror})"
    return f"no connection ({type(error).__name__})"


# fsspec -------------------------------------------------------------------------------------------


def _open_fsspec(url: str, network: Network) -> Stream:
    scheme = url.partition(":")[0]
    if (scheme not in _STORES or "::" in url) and not trust.given():
        raise UserError(
            f"{scheme}: is none of the protocols that a config may name ({', '.join(_STORES)}); "
            "--trust_config allows all of fsspec's",
            where=public(url),
        )
    fsspec = importlib.import_module("fsspec")
    try:
        system, path = fsspec.core.url_to_fs(url)
        body = system.open(path, "rb")
    except FileNotFoundError:
        raise UserError("not there", where=public(url)) from None
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"cannot be opened ({type(error).__name__})", where=public(url)) from None
    except ImportError as error:
        needed = error.name or _PACKAGES.get(scheme, "see fsspec's documentation")
        raise UserError(
            f"a package is missing for {scheme}:// ({needed}); install it, or use http or a local "
            "path",
            where=public(url),
        ) from None
    except ValueError as error:
        raise UserError(f"no such protocol ({type(error).__name__})", where=public(url)) from None
    except Exception as error:  # each protocol brings exceptions of its own
        raise TransferError(_reason(error)) from None
    size = getattr(body, "size", None)
    return Stream(_Foreign(body), size if isinstance(size, int) else None, network)


class _Foreign:
    """A file of fsspec's, whose exceptions may be anything."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def read(self, size: int) -> bytes:
        try:
            return bytes(self.body.read(size))
        except Exception as error:
            raise TransferError(_reason(error)) from None

    def close(self) -> None:
        self.body.close()
