"""A local HTTP server whose answers go wrong as they are told to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lit_restore.io.remote import Network

HTML = b"<!DOCTYPE html><html><body>This link has expired</body></html>"
Answer = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Serves a folder; the first answers to a path may be told to fail."""

    def __init__(self, *args: object, server_state: Server) -> None:
        self.state = server_state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.state.lock:
            self.state.requests.append(self.path)
            self.state.logins.append(self.headers.get("Authorization"))
            waiting = self.state.faults.get(path, [])
            answer = waiting.pop(0) if waiting else self.state.always.get(path, whole)
        file = self.state.folder / path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        answer(self, file.read_bytes())

    def begin(self, code: int = 200, **headers: str | int) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """What the handler serves and what it has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[Answer]] = {}
        """Path → answers given before the good ones begin."""
        self.always: dict[str, Answer] = {}
        """Path → the answer of every further request."""
        self.requests: list[str] = []
        self.logins: list[str | None] = []
        self.lock = threading.Lock()
        self.url = ""

    def count(self, name: str) -> int:
        return sum(name in request for request in self.requests)


def whole(handler: Handler, data: bytes) -> None:
    handler.begin(Content_Length=len(data))
    handler.wfile.write(data)


def without_length(handler: Handler, data: bytes) -> None:
    handler.begin()
    handler.wfile.write(data)


def status(code: int, **headers: str | int) -> Answer:
    return lambda handler, data: handler.begin(code, Content_Length=0, **headers)


def reset(handler: Handler, data: bytes) -> None:
    handler.begin(Content_Length=len(data))
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.wfile = open("/dev/null", "wb")  # noqa: SIM115


def cut(handler: Handler, data: bytes) -> None:
    handler.begin(Content_Length=len(data))
    handler.wfile.write(data[: len(data) // 2])


def short(handler: Handler, data: bytes) -> None:
    """Half of it, and nothing that says so."""
    handler.begin()
    handler.wfile.write(data[: len(data) // 2])


def html(handler: Handler, data: bytes) -> None:
    whole(handler, HTML)


def wrong_size(handler: Handler, data: bytes) -> None:
    whole(handler, data + bytes(512))


def wrong_byte(handler: Handler, data: bytes) -> None:
    middle = 600  # in the first member's content
    whole(handler, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def drip(handler: Handler, data: bytes) -> None:
    handler.begin(Content_Length=len(data))
    for byte in range(200):
        handler.wfile.write(data[byte : byte + 1])
        handler.wfile.flush()
        time.sleep(0.01)


def silent(handler: Handler, data: bytes) -> None:
    handler.begin(Content_Length=len(data))
    handler.wfile.flush()
    time.sleep(0.8)


def redirect(target: str) -> Answer:
    return lambda handler, data: handler.begin(302, Location=target, Content_Length=0)


FAULTS: dict[str, Sequence[Answer]] = {
    "503": [status(503)],
    "429": [status(429, Retry_After=7)],
    "408": [status(408)],
    "reset": [reset],
    "cut": [cut],
    "short": [short],
    "html": [html],
    "wrong size": [wrong_size],
    "drip": [drip],
    "silent": [silent],
    "three": [status(503), reset, html],
}
"""What passes when it is tried again."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve `folder` on a free port of this machine."""
    state = Server(folder)
    handler = partial(Handler, server_state=state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def hasty(waited: list[float] | None = None) -> Network:
    """A network that does not wait, and notes how long it would have."""
    note = (waited if waited is not None else []).append
    return Network(silence=0.4, crawl=0.15, least_rate=2000, sleep=note)
