"""A server of rerankers in this process that answers, fails, stalls and lies as it is told; its logits are a function of the texts."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest


def logit_of(query: str, text: str) -> float:
    """-8 to 8."""
    return (zlib.crc32(f"{query}|{text}".encode()) % 16_000) / 1000 - 8


def logits_of(pairs: list[tuple[str, str]]) -> Any:
    return np.array([logit_of(*pair) for pair in pairs], np.float32)


class RerankServer:
    """`shape` as the settings have it. `faults` are what befalls the next requests, by the names in `_Handler.fault`."""

    def __init__(self, *, shape: str = "rerank", model: str = "tiny-reranker", port: int = 0) -> None:
        self.shape, self.model = shape, model
        self.key: str | None = None  # what it wants
        self.obeys = True  # whether it gives logits where it is asked for them
        self.heeds_instructions = True
        self.sigmoid = True  # whether it gives probabilities else
        self.round_to: Any = np.float32
        self.seconds = 0.0  # of a request
        self.lists_models = True
        self.faults: deque[str] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.asked: Counter[tuple[str, str]] = Counter()  # pairs that were answered or failed
        self.busiest = 0  # requests at a time
        self.connections: set[socket.socket] = set()
        self._now, self._lock = 0, threading.Lock()
        self._port = port
        self.start()

    def start(self) -> None:
        server = self

        class Handler(_Handler):
            owner = server

        self._http = _Quiet(("127.0.0.1", self._port), Handler)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.busiest = max(self.busiest, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def note(self, body: dict[str, Any]) -> tuple[str, list[str], str]:
        """Query, documents, and what befalls the request."""
        query = body["text_1" if self.shape == "score" else "query"]
        documents = body[{"score": "text_2", "tei": "texts"}.get(self.shape, "documents")]
        with self._lock:
            self.bodies.append(body)
            self.asked.update((query, document) for document in documents)
            return query, documents, self.faults.popleft() if self.faults else ""

    def scores(self, query: str, documents: list[str], body: dict[str, Any]) -> list[float]:
        asked = query if body.get("instruction") is None or not self.heeds_instructions else f"{body['instruction']}|{query}"
        logits = np.array([logit_of(asked, document) for document in documents])
        raw = (body.get("raw_scores") is True or body.get("use_activation") is False) and self.obeys
        if raw or not self.sigmoid:
            return [float(logit) for logit in logits]
        return [float(self.round_to(1 / (1 + np.exp(-logit)))) for logit in logits]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a connection more than are queued takes a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a client that was killed."""


class _Handler(BaseHTTPRequestHandler):
    owner: RerankServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, status: int, content: Any, *, kind: str = "application/json", **headers: str) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        owner = self.owner
        if owner.lists_models and owner.shape == "tei" and self.path == "/info":
            self.send(200, {"model_id": owner.model, "model_sha": None})
        elif owner.lists_models and owner.shape != "tei" and self.path == "/v1/models":
            self.send(200, {"object": "list", "data": [{"id": owner.model}]})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.counted(), contextlib.suppress(ConnectionError):
            owner.paths.append(self.path)
            if owner.key and self.headers.get("Authorization") != f"Bearer {owner.key}":
                self.send(401, {"error": {"message": f"not the key: {self.headers.get('Authorization')}"}})
                return
            query, documents, fault = owner.note(body)
            time.sleep(owner.seconds)
            if not self.fault(fault, documents):
                self.answer(list(enumerate(owner.scores(query, documents, body))), fault)

    def fault(self, fault: str, documents: list[str]) -> bool:
        """Whether the request has ended with it."""
        name, _, value = fault.partition(":")
        if name.isdigit():
            self.send(int(name), {"error": f"told to answer {name}"}, **({"Retry_After": value} if value else {}))
        elif name == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif name == "stall":
            time.sleep(float(value))
            return False
        elif name == "html":
            self.send(200, "<html><body>Bad gateway</body></html>", kind="text/html")
        elif name == "moved":
            self.send(307, "", Location="http://elsewhere/rerank")
        elif name == "unpacked":
            self.send(200, "no gzip", Content_Encoding="gzip")
        elif name == "half":
            self.send(200, '{"results": [{"ind')
        else:
            return False
        return True

    def answer(self, scores: list[tuple[int, float]], fault: str) -> None:
        if fault == "cut":
            scores = scores[:-1]
        elif fault == "more":
            scores = [*scores, (len(scores), 0.5)]
        elif fault == "twice":
            scores = [scores[0], scores[0], *scores[1:-1]]
        elif fault == "beyond":
            scores = [*scores[:-1], (len(scores), 0.5)]
        elif fault == "nan":
            scores = [(0, float("nan")), *scores[1:]]
        elif fault == "words":
            scores = [(0, "high"), *scores[1:]]  # type: ignore[list-item]
        name = "relevance_score" if self.owner.shape in ("rerank", "infinity") else "score"
        best_first = sorted(scores, key=lambda entry: str(entry[1]), reverse=True)
        listed: Any = [{"index": index, name: score} for index, score in best_first]
        holder = {"score": "data", "tei": None}.get(self.owner.shape, "results")
        self.send(200, listed if holder is None else {"id": "x", "model": self.owner.model, holder: listed})


@pytest.fixture
def rerank_server() -> Iterator[Any]:
    """`rerank_server(shape=..., model=...)`: a `RerankServer`, stopped with the test."""
    with contextlib.ExitStack() as started:

        def start(**words: Any) -> RerankServer:
            server = RerankServer(**words)
            started.callback(server.stop)
            return server

        yield start
