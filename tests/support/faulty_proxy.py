"""A server in front of one of the S3 protocol that lets a share of the requests fail, the same ones for the same seed and order.

Requests go on as they came, Host included, so signatures hold. It counts what was asked for and notes what failed and how.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

REFUSED = "503"  # SlowDown, nothing done
RESET = "reset"  # the connection is reset, nothing done
LOST = "lost"  # the request is carried out, then the connection is reset before an answer
CUT = "cut"  # half of the answer's body, then the connection is closed
STALL = "stall"  # half of the answer, then nothing
FLIPPED = "flipped"  # one bit of the answer's body is another one; no network does that often, so it is asked for by name
KINDS = (REFUSED, RESET, LOST, CUT, STALL)
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Request:
    """One that came: its method, path with query, and the fault that it met, "" where none."""

    method: str
    path: str
    fault: str


@dataclass
class FaultyProxy:
    """What a test sees of the proxy; all may be changed while it runs."""

    endpoint: str
    share: float  # of requests that fail, 0 to 1
    seed: int
    kinds: Sequence[str]
    stall_seconds: float
    most: int | None = None  # faults in all
    methods: Sequence[str] = ()  # of which requests fail; none: of all
    paths: str = ""  # what their paths contain
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, method: str, path: str) -> str:
        """Decide on a request, and note it."""
        with self.lock:
            chance = random.Random(f"{self.seed} {len(self.requests)}")
            fault = chance.choice(list(self.kinds)) if chance.random() < self.share else ""
            spared = (self.methods and method not in self.methods) or self.paths not in path
            if spared or (self.most is not None and len(self.faults) >= self.most):
                fault = ""
            self.requests.append(Request(method, path, fault))
            return fault

    @property
    def faults(self) -> list[str]:
        """The faults so far, in order."""
        return [request.fault for request in self.requests if request.fault]


@contextlib.contextmanager
def faulty_proxy(
    upstream: str, *, share: float = 0.3, seed: int = 0, kinds: Sequence[str] = KINDS, stall_seconds: float = 60.0, port: int = 0,
    most: int | None = None, methods: Sequence[str] = (),
) -> Iterator[FaultyProxy]:  # fmt: skip
    """A proxy before the endpoint `upstream` (http://HOST:PORT); it ends with the block."""
    proxy = FaultyProxy("", share, seed, kinds, stall_seconds, most, methods)

    class Handler(_Handler):
        rules = proxy
        server_behind = urllib.parse.urlsplit(upstream).netloc

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rules: FaultyProxy
    server_behind: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        fault = self.rules.next_fault(self.command, self.path)
        if fault == REFUSED:
            self._send(503, "Service Unavailable", [("Content-Type", "application/xml")], _SLOW_DOWN)
        elif fault == RESET:
            self._reset()
        else:
            status, reason, headers, content = self._carried_out(body)
            if fault == FLIPPED and content:
                middle = len(content) // 2
                flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                self._send(status, reason, headers, flipped)
            elif fault == LOST:
                self._reset()
            else:
                self._send(status, reason, headers, content, fault=fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _carried_out(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server_behind, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect"):
                    connection.putheader(name, value)
            if self.command in ("PUT", "POST") or body:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.reason, answer.getheaders(), answer.read()

    def _send(self, status: int, reason: str, headers: list[tuple[str, str]], content: bytes, *, fault: str = "") -> None:
        self.send_response_only(status, reason)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        if fault and (self.command == "HEAD" or not content):  # no body to cut: the head is what does not come
            self._headers_buffer: list[bytes] = []
        with contextlib.suppress(OSError):
            if not fault:
                self.end_headers()
                self.wfile.write(content if self.command != "HEAD" else b"")
                return
            if self._headers_buffer:
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
        if fault == STALL:
            self.rules.closing.wait(self.rules.stall_seconds)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
