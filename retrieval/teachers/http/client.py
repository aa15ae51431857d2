"""Asks a server for scores: some requests at a time, each again until its answer is right or hope is lost.

    the server is away or busy (no connection, no answer in time, 429, 503, ...)        again for `patience` seconds
    its answer is an error of its own (500), or wrong                                   again `retries` times
    it refuses the request (400, 401, 403, 404, 422, ...)                               never again

Between two tries lie half a second, then twice as much, up to half a minute, or what `Retry-After` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from data.config.settings import HttpServer
from data.errors import RunFailed, UserError, first_line
from retrieval.teachers.http.shapes import Shape, WrongAnswer, served_models

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
LISTING_SECONDS = 10.0
_BUSY = (408, 425, 429, 502, 503, 504)
_FAULTY = (424, 500)  # 424 is what TEI says where its model has failed


class _Away(Exception):
    """No answer for now. `seconds` is what the server asks to wait, 0 where it says nothing."""

    def __init__(self, message: str, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class Request:
    """Documents of one query."""

    query: str
    documents: Sequence[str]


@dataclass(frozen=True)
class Client:
    """What is needed to ask a server. Connections live as long as one call."""

    url: str  # of the endpoint
    model: str
    shape: Shape
    server: HttpServer
    key: str | None = field(repr=False)

    def scores(
        self,
        requests: Sequence[Request],
        *,
        logits: bool,
        more: Mapping[str, Any] | None = None,  # what goes with each request
        patience: float | None = None,  # seconds; None: as the settings say
        on_answer: Callable[[int], None] = lambda place: None,
    ) -> list[NDArray[np.float64]]:
        """The scores of each request's documents, in their order; `on_answer` gets the place of each request as it is answered.

        Raises UserError where the server refuses a request, RunFailed where it stays away or its answers stay wrong. Whatever ends this,
        a signal too, ends all requests at once.
        """
        answers: list[NDArray[np.float64]] = [np.empty(0)] * len(requests)
        waits = self.server.patience if patience is None else patience

        async def work(connection: httpx2.AsyncClient, places: Iterator[int]) -> None:
            for place in places:
                query, documents = requests[place].query, requests[place].documents
                body = self.shape.body(query, documents, model=self.model, logits=logits, more=more)
                answers[place] = await self._answer(connection, body, count=len(documents), patience=waits)
                on_answer(place)

        async def all_of_them() -> None:
            places = iter(range(len(requests)))
            async with self._connection() as connection:
                workers = [asyncio.ensure_future(work(connection, places)) for _ in range(min(self.server.concurrency, len(requests)))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

        asyncio.run(all_of_them())
        return answers

    def served(self) -> list[str]:
        """The models that the server lists; empty where it lists none, or not now."""
        base = self.url.removesuffix(f"/{self.shape.endpoint}")

        async def ask() -> list[str]:
            async with self._connection() as connection:
                for path in ("/models", "/v1/models", "/info"):
                    async with asyncio.timeout(LISTING_SECONDS):
                        answer = await connection.get(base + path)
                    with contextlib.suppress(ValueError, RecursionError):
                        if answer.status_code == 200 and (found := served_models(answer.json())):
                            return found
            return []

        try:
            return asyncio.run(ask())
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError):  # whether it is there at all is what `scores` finds out
            return []

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx2.AsyncClient]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=self.server.concurrency)
        # A timeout is of the whole request, not of each part that arrives.
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=None, verify=_certificates()) as connection:
            yield connection

    async def _answer(self, connection: httpx2.AsyncClient, body: dict[str, Any], *, count: int, patience: float) -> NDArray[np.float64]:
        """The `count` scores of one request, however often it must be sent."""
        away_since: float | None = None
        wrong, wait = 0, FIRST_WAIT
        while True:
            started = time.monotonic()
            try:
                return self.shape.scores(await self._send(connection, body), count)
            except WrongAnswer as fault:
                wrong, away_since, seconds = wrong + 1, None, 0.0
                if wrong > self.server.retries:
                    raise RunFailed(f"the answer of {self.url} {fault}, {wrong} times in a row; see the server's log") from None
            except _Away as fault:
                away_since, seconds = started if away_since is None else away_since, fault.seconds
                if time.monotonic() + max(wait, seconds) > away_since + patience:
                    asks = f" and asks to wait {seconds:,.0f} s" if seconds else ""
                    raise RunFailed(
                        f"{self.url} {fault}{asks}; it was tried for {time.monotonic() - away_since:,.0f} s; when it is ready, start the "
                        "same command again, it goes on"
                    ) from None
            await asyncio.sleep(max(seconds, wait * random.uniform(0.5, 1)))  # not all at once
            wait = min(2 * wait, LONGEST_WAIT)

    async def _send(self, connection: httpx2.AsyncClient, body: dict[str, Any]) -> Any:
        """The JSON of one answer. Raises _Away, WrongAnswer and UserError."""
        try:
            async with asyncio.timeout(self.server.timeout):
                answer = await connection.post(self.url, json=body)
        except TimeoutError:
            raise _Away(f"gives no answer within {self.server.timeout:g} s") from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise UserError(f"teacher.http.url={self.url}: {self._told(first_line(error))}") from None
        except httpx2.DecodingError as error:
            raise WrongAnswer(f"cannot be unpacked ({first_line(error)})") from None
        except httpx2.RequestError as error:
            raise _Away(f"cannot be reached ({first_line(error)})") from None
        if answer.status_code in _BUSY or answer.status_code >= 520:
            raise _Away(f"answers {answer.status_code} ({self._said(answer)})", _retry_after(answer.headers.get("Retry-After", "")))
        if answer.status_code in _FAULTY:
            raise WrongAnswer(f"is the error {answer.status_code} ({self._said(answer)})")
        if not answer.is_success:
            raise self._refusal(answer)
        try:
            return answer.json()
        except (ValueError, RecursionError):
            raise WrongAnswer(f"is no JSON ({self._said(answer)})") from None

    def _refusal(self, answer: httpx2.Response) -> UserError:
        status = answer.status_code
        if status in (401, 403):
            variable = self.server.key_variable
            wants = f"refuses the key in {variable}" if self.key else f"wants a key: put it into the environment variable {variable}"
            return UserError(f"{self.url} {wants} ({status}: {self._said(answer)})")
        if answer.has_redirect_location:
            return UserError(f"{self.url} has moved to {answer.headers.get('Location')}: set teacher.http.url to that")
        if status in (404, 405):
            return UserError(
                f"{self.url} is no endpoint of this server, or has no model {self.model} ({status}: {self._said(answer)}): see "
                "teacher.http.url, teacher.http.shape and teacher.model"
            )
        longest = "; pairs that are too long are cut with teacher.http.truncate=true" if self.shape.longest else ""
        return UserError(
            f"{self.url} refuses a request of {self.server.documents} documents at most ({status}: {self._said(answer)}): see "
            f"teacher.http.shape, teacher.http.documents, teacher.model, and how long a text the server takes{longest}"
        )

    def _said(self, answer: httpx2.Response) -> str:
        """The server's words, in one line."""
        if "html" in answer.headers.get("Content-Type", "").lower():
            return "a page of HTML"
        said: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            said = answer.json()
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and name in said:
                said = said[name]
        words = " ".join(str(said if said is not None else answer.text).split())
        return self._told(f"{words[:300]} ..." if len(words) > 300 else words or "no words")

    def _told(self, words: str) -> str:
        return words.replace(self.key, "***") if self.key else words


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Those that are trusted, read once: it takes a tenth of a second."""
    return httpx2.create_ssl_context()


def _retry_after(value: str) -> float:
    """Seconds of the header: a number or a date; 0 where it is neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
