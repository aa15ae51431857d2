"""Servers that fail, stall, reorder and lie."""

from __future__ import annotations

import re
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from support.rerank_server import RerankServer, logit_of

from data.config.settings import HttpServer
from data.errors import RunFailed, UserError
from retrieval.teachers.http import client as http_client
from retrieval.teachers.http.client import Client, Request
from retrieval.teachers.http.shapes import SHAPES

REQUESTS = [Request(f"query {number}", [f"text {number} {place}" for place in range(1 + number % 4)]) for number in range(12)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(http_client, "LONGEST_WAIT", 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def client(server: RerankServer, *, key: str | None = None, **words: Any) -> Client:
    given = HttpServer(**{"url": server.url, "shape": server.shape, "patience": 5, **words})
    shape = SHAPES[server.shape]
    return Client(f"{server.url}/{shape.endpoint}", server.model, shape, given, key)


def check(answers: list[Any], requests: list[Request] = REQUESTS) -> None:
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, [logit_of(request.query, text) for text in request.documents])


@pytest.mark.parametrize("shape", ["infinity", "tei", "score"])
def test_scores_come_back_in_the_order_of_the_documents(rerank_server: Any, shape: str) -> None:
    """Prevents: the scores of another document or request, whichever is answered first."""
    server = rerank_server(shape=shape)
    server.seconds = 0.002
    done: list[int] = []
    check(client(server).scores(REQUESTS, logits=True, on_answer=done.append))
    assert sorted(done) == list(range(len(REQUESTS))) and set(server.paths) == {f"/{SHAPES[shape].endpoint}"}


@pytest.mark.medium
@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_a_time_than_allowed(rerank_server: Any, concurrency: int) -> None:
    """Prevents: a shared server that is flooded, or one that waits where it might work."""
    server = rerank_server(shape="infinity")
    server.seconds = 0.02
    check(client(server, concurrency=concurrency).scores(REQUESTS, logits=True))
    assert server.busiest == concurrency


FAULTS = ["500", "424", "429", "503", "502", "529", "reset", "html", "half", "cut", "more", "twice", "beyond", "nan", "words"]


def test_what_fails_now_and_then_changes_nothing(rerank_server: Any) -> None:
    """Prevents: a run of hours that one fault of a server ends, or a wrong answer taken for the right one."""
    server = rerank_server(shape="infinity")
    server.faults.extend(FAULTS * 2)
    check(client(server, concurrency=4, retries=30).scores(REQUESTS, logits=True))
    assert not server.faults and len(server.bodies) == len(REQUESTS) + 2 * len(FAULTS)


def test_a_stalled_request_is_sent_again(rerank_server: Any) -> None:
    """Prevents: a run that waits for ever for one answer."""
    server = rerank_server(shape="infinity")
    server.faults.append("stall:2")
    started = time.monotonic()
    check(client(server, timeout=0.2).scores(REQUESTS[:2], logits=True), REQUESTS[:2])
    assert time.monotonic() - started < 1.5


def test_a_server_may_say_how_long_to_wait(rerank_server: Any) -> None:
    """Prevents: a limit of requests in a minute that is run into again and again, or a wait longer than anyone has patience for."""
    server = rerank_server(shape="infinity")
    server.faults.append("429:0.3")
    started = time.monotonic()
    check(client(server).scores(REQUESTS[:1], logits=True), REQUESTS[:1])
    assert time.monotonic() - started > 0.29
    server.faults.append("503:3600")
    with pytest.raises(RunFailed, match=r"answers 503 .* asks to wait 3,600 s; it was tried for 0 s; when it is ready, start the same"):
        client(server).scores(REQUESTS[:1], logits=True)


def test_retry_after_is_seconds_or_a_date() -> None:
    """Prevents: a date taken for no wait at all."""
    from email.utils import formatdate

    assert http_client._retry_after("7") == 7 and http_client._retry_after("") == 0 and http_client._retry_after("soon") == 0
    assert 8 < http_client._retry_after(formatdate(time.time() + 10, usegmt=True)) <= 10


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "the answer of .*/rerank has 0 scores for 1 documents, 3 times in a row"),
        ("half", r"is no JSON \(.*ind\), 3 times"),
        ("unpacked", r"the answer of .*/rerank cannot be unpacked \(.*\), 3 times in a row"),
        ("html", r"is no JSON \(a page of HTML\)"),
        ("500", r"is the error 500 \(told to answer 500\)"),
        ("nan", "has a score that is not a finite number"),
    ],
)
def test_what_stays_wrong_ends_the_run_with_the_servers_words(rerank_server: Any, fault: str, message: str) -> None:
    """Prevents: a loop without end, or a traceback of JSON."""
    server = rerank_server(shape="infinity")
    server.faults.extend([fault] * 3)
    with pytest.raises(RunFailed, match=message):
        client(server, retries=2).scores(REQUESTS[:1], logits=True)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "is no endpoint of this server, or has no model tiny-reranker .404: told to answer 404.: see teacher.http.url"),
        ("422", "refuses a request of 32 documents at most .422: told.*see teacher.http.shape, teacher.http.documents"),
        ("413", "refuses a request"),
        ("304", "refuses a request"),
        ("moved", "has moved to http://elsewhere/rerank: set teacher.http.url to that"),
    ],
)
def test_what_is_refused_is_not_sent_again(rerank_server: Any, fault: str, message: str) -> None:
    """Prevents: minutes of tries before a word that a user can act on."""
    server = rerank_server(shape="infinity")
    server.faults.append(fault)
    with pytest.raises(UserError, match=message) as raised:
        client(server, concurrency=1).scores(REQUESTS, logits=True)
    assert len(server.bodies) == 1 and raised.value.exit_code == 2


def test_the_key_is_sent_and_never_told(rerank_server: Any) -> None:
    """Prevents: a key in a log, in the words of a server that repeats it."""
    server = rerank_server(shape="infinity")
    server.key = "s3cret"
    check(client(server, key="s3cret").scores(REQUESTS, logits=True))
    with pytest.raises(UserError, match=r"wants a key: put it into the environment variable RERANK_API_KEY \(401: not the key: None\)"):
        client(server).scores(REQUESTS, logits=True)
    with pytest.raises(UserError, match=r"refuses the key in RERANK_API_KEY \(401: not the key: Bearer \*\*\*\)"):
        client(server, key="an0ther").scores(REQUESTS, logits=True)
    assert "an0ther" not in repr(client(server, key="an0ther"))


def test_a_server_that_is_not_there_is_waited_for(rerank_server: Any) -> None:
    """Prevents: a run that ends because its server was started again; or one that goes on for ever."""
    server = rerank_server(shape="infinity")
    server.stop()
    threading.Timer(0.3, server.start).start()
    check(client(server).scores(REQUESTS, logits=True))
    server.stop()
    with pytest.raises(RunFailed, match=r"cannot be reached \(.*\); it was tried for 0 s; when it is ready, start the same command again"):
        client(server).scores(REQUESTS, logits=True, patience=0.2)
    assert client(server).served() == []
    server.start()


def test_an_error_ends_the_other_requests_at_once(rerank_server: Any) -> None:
    """Prevents: an error that is told of when all the others have been asked for."""
    server = rerank_server(shape="infinity")
    server.faults.extend(["stall:3", "stall:3", "422"])
    started = time.monotonic()
    with pytest.raises(UserError, match="422"):
        client(server, concurrency=3).scores(REQUESTS, logits=True)
    assert time.monotonic() - started < 2 and len(server.bodies) == 3


@pytest.mark.parametrize("waits_for", ["stall:5", "503:4"])
def test_a_signal_ends_the_wait_at_once(rerank_server: Any, waits_for: str) -> None:
    """Prevents: a job that is killed before it has put in order what it holds, since it waits for a server."""
    server = rerank_server(shape="infinity")
    server.faults.extend([waits_for] * 8)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client(server).scores(REQUESTS, logits=True)
        assert 0.2 < time.monotonic() - started < 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_models_of_a_server_are_listed(rerank_server: Any) -> None:
    """Prevents: a list looked for where only one kind of server has it."""
    assert client(rerank_server(shape="score")).served() == client(rerank_server(shape="tei")).served() == ["tiny-reranker"]
    server = rerank_server(shape="score")
    server.lists_models = False
    assert client(server).served() == []
    assert re.match("http://127", server.url)
