"""The server of the app. It is the standard library's: what a page of one machine needs of a server is this file.

It listens on 127.0.0.1 alone. Other sites that the same browser shows can reach that address, too, so that a request
must name this machine as its host (else a foreign name that leads here would do: DNS rebinding), and may not come from
a page of another origin. Addresses hold numbers of rows, never paths.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import miniclip.common.page
from miniclip.common.printing import one_line
from miniclip.search.app.answers import MAX_BYTES, Answers, Lacking

HOST = "127.0.0.1"
_OURS = (HOST, "localhost", "[::1]")  # also by the other end of a tunnel, at whatever port
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_JSON = "application/json"


def _files() -> dict[str, tuple[bytes, str]]:
    """Address -> what the page is made of, and its kind."""
    own, common = Path(__file__).parent, Path(miniclip.common.page.__file__).parent
    style = (common / "page.css").read_bytes() + (own / "page.css").read_bytes()
    return {
        "/": ((own / "page.html").read_bytes(), "text/html; charset=utf-8"),
        "/page.css": (style, "text/css; charset=utf-8"),
        "/page.js": ((own / "page.js").read_bytes(), "text/javascript; charset=utf-8"),
    }


class Server(socketserver.ThreadingTCPServer):
    """Bound and listening once it is made; `answers` is to be set before serve_forever. port: 0 takes a free one.

    Raises OSError, in one line, for a port that it cannot have.
    """

    allow_reuse_address = os.name != "nt"  # where it would let two servers share a port
    daemon_threads = True  # a browser keeps its connections open; the end does not wait for them
    request_queue_size = 64
    answers: Answers

    def __init__(self, port: int) -> None:
        self.files = _files()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            advice = "end what uses it, or name another, such as --port 0 for any that is free"
            raise OSError(f"--port {port} cannot be used ({error.strerror}); {advice}") from error

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that left, or said nothing for too long, is nothing to report."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"miniclip app: {type(error).__name__}: {one_line(str(error), 300)}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser. Answers are JSON, {"error": TEXT} of what was refused."""

    server: Server
    protocol_version = "HTTP/1.1"  # keeps the connection, for what is typed next
    timeout = 60  # seconds
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self._is_welcome(address.path):
            return
        values, answers = parse_qs(address.query), self.server.answers

        def value(name: str) -> str:
            return values.get(name, [""])[0]

        if address.path in self.server.files:
            self._send(HTTPStatus.OK, *self.server.files[address.path], "no-cache")
        elif address.path.startswith("/image/"):
            self._answer(lambda: answers.thumbnail(address.path.removeprefix("/image/")), "image/jpeg")
        elif address.path == "/about":
            self._answer(answers.about)
        elif address.path == "/search":
            given = value("words"), value("not"), value("picture"), value("start")
            self._answer(lambda: answers.search(*given))
        elif address.path == "/classify":
            self._answer(lambda: answers.classify(value("picture"), values.get("label", []), value("template")))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def do_POST(self) -> None:
        length, path = self.headers.get("Content-Length", ""), urlsplit(self.path).path
        if not self._is_welcome(path):
            return
        if path != "/picture":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        elif not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the length of the picture is missing")
        elif int(length) > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a picture may have {MAX_BYTES / 1e6:.0f} MB")
        else:
            content = self.rfile.read(int(length))
            self._answer(lambda: self.server.answers.take(content))

    def _is_welcome(self, path: str) -> bool:
        host, headers = self.headers.get("Host", ""), self.headers
        if host.rpartition(":")[0] not in _OURS and host not in _OURS:
            self._refuse(HTTPStatus.FORBIDDEN, f"this is {self.server.address}, by that name alone")
            return False
        # The page itself may be followed to from anywhere: it says nothing, and cannot be framed.
        strange = path != "/" and headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if strange or headers.get("Origin", f"http://{host}") != f"http://{host}":
            self._refuse(HTTPStatus.FORBIDDEN, "other pages may not ask this one")
            return False
        return True

    def _answer(self, question: Callable[[], Any], kind: str = _JSON) -> None:
        began = time.perf_counter()
        try:
            answer = question()
        except Lacking as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
            raise
        else:
            if kind == _JSON:
                answer = json.dumps(answer | {"ms": round(1000 * (time.perf_counter() - began), 1)}).encode()
            self._send(
                HTTPStatus.OK, answer, kind, "no-store" if kind == _JSON else "private, max-age=86400, immutable"
            )

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # what it sent may not have been read
        self._send(status, json.dumps({"error": one_line(reason, 300)}).encode(), _JSON, "no-store")

    def _send(self, status: HTTPStatus, content: bytes, kind: str, cache: str) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": cache}
        if self.close_connection:
            own["Connection"] = "close"
        for name, value in (_HEADERS | own).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library itself refuses, such as another method."""
        status = HTTPStatus(code)
        self._refuse(status, message or status.phrase)

    def version_string(self) -> str:
        return "miniclip"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is searched for is nobody else's."""
