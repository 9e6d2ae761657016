"""A server of one file on 127.0.0.1 that misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """content, tag: the file and its ETag. script: for each request, in order, what is odd about its answer.

    cut: only so many bytes of the body. status: this one, without a body. ranges: False ignores them. to: a redirect.
    headers: more of them, or others; None leaves one out. hang: nothing is sent until `release`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.script = b"", '"1"', []
        self.requests: list[dict[str, Any]] = []  # headers of each request
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        here = self.server
        odd = here.script.pop(0) if here.script else {}
        here.requests.append(dict(self.headers))
        self.close_connection = True
        if odd.get("hang"):
            here.release.wait()
            return
        if "to" in odd:
            self.answer(302, {"Location": odd["to"], "Content-Length": "0"}, odd)
            return
        if "status" in odd:
            self.answer(odd["status"], {"Content-Length": "0"}, odd)
            return
        body, headers, status = here.content, {"ETag": here.tag}, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and odd.get("ranges", True) and self.headers.get("If-Range") in (None, here.tag):
            start = int(wanted[1])
            if start >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}, odd)
                return
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            body = body[start:]
        self.answer(status, headers | {"Content-Length": str(len(body))}, odd)
        self.wfile.write(body[:odd.get("cut")])

    def answer(self, status: int, headers: dict[str, str], odd: dict[str, Any]) -> None:
        self.send_response(status)
        for key, value in (headers | odd.get("headers", {})).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
