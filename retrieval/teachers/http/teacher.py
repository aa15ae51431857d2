"""A teacher behind HTTP: `teacher.backend=http`.

The weights cannot be read. So logits are kept under what the user declares, the server's name for the model and a revision, and under the
shape and the kind of its scores. Address, requests and patience are execution. A server cuts long pairs by itself.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from data.config import settings
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from retrieval.teachers.base import (
    OnBatch,
    Pair,
    PreparedPairs,
    PreparingTeacher,
    TeacherSettings,
    TeacherSpec,
    ignore_batch,
    with_plain_marks,
)
from retrieval.teachers.http.shapes import LARGEST_LOGIT, SHAPES, Shape, undo_sigmoid

if TYPE_CHECKING:
    from retrieval.teachers.http.client import Client, Request

OPENING_SECONDS = 10.0  # of patience at the start, where the address may be wrong
# Settings of teachers whose files are read.
_OF_FILES = ("trust_remote_code", "precision", "template", "answers", "label", "file", "compile", "batch_tokens")
_SATURATED_SHARE, _SATURATED_FROM = 0.01, 1000  # share of probabilities that may be exactly 0 or 1, of at least so many
_TRIED = (
    "how a plant makes sugar",
    ("Leaves turn light, water and air into sugar.", "The train leaves at nine.", "Sugar is sweet.", "No."),
)


@dataclass(frozen=True)
class HttpSpec(TeacherSpec):
    """A server, by what the settings say of it."""

    name: str  # what it calls its model
    revision: str
    url: str  # of the endpoint
    server: settings.HttpServer
    instruction: str | None = None  # for the server's template
    max_tokens: int | None = None  # of a pair; None: the server's own length

    is_remote = True

    @property
    def shape(self) -> Shape:
        """What it is asked, and answers."""
        return SHAPES[self.server.shape]

    @property
    def gives_logits(self) -> bool:
        """Whether its scores are logits, and not their sigmoids."""
        return self.server.scores == "logit" or (self.server.scores == "auto" and bool(self.shape.raw))

    @property
    def more(self) -> dict[str, Any]:
        """What goes with each request, where it is set."""
        named = {self.shape.instruction: self.instruction, self.shape.longest: self.max_tokens}
        return {name: value for name, value in named.items() if name is not None and value is not None}

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """What is declared of the model, and how its scores become logits."""
        scores = "logit" if self.gives_logits else "probability"
        return {"http": self.server.shape, "model": self.name, "revision": self.revision, "scores": scores, **self.more}

    def notes(self) -> list[str]:
        """Where the server decides what a teacher of files would be told, and what is lost in a probability."""
        of_server = f"teacher.backend=http: the server cuts long pairs as it was started; teacher.max_tokens is not sent to {self.url}"
        if self.max_tokens is not None:
            of_server = (
                f"teacher.http.truncate: {self.url} cuts prompts to {self.max_tokens} tokens, the longer text first of a model that reads "
                "plain pairs; of one with a template the template's end: leave it out there"
            )
        if self.gives_logits:
            return [of_server]
        return [
            of_server,
            f"teacher.http.scores: {self.url} gives probabilities, whose sigmoid is undone. In float32 they tell a logit of 10 to 0.001, "
            f"of 15 to 0.1, and none above {LARGEST_LOGIT:.1f}, where logits end" + _ways_to_logits(self.server.shape),
        ]

    def open(self, given: TeacherSettings) -> HttpTeacher:
        """The teacher. Nothing is asked yet."""
        return HttpTeacher(self)


class HttpTeacher(PreparingTeacher):
    """Asks the server. It reads `[SEP]` and `[MASK]` for the marks of dark examples."""

    def __init__(self, spec: HttpSpec) -> None:
        self._spec = spec
        self._tried = False
        self._seen = self._saturated = 0  # probabilities so far, and how many of them were 0 or 1

    @cached_property
    def _client(self) -> Client:
        from retrieval.teachers.http.client import Client

        spec = self._spec
        return Client(spec.url, spec.name, spec.shape, spec.server, _key_in(spec.server.key_variable))

    def load(self) -> None:
        """Try the server: is it there, has it the model, does it give logits where it is asked for them.

        Raises UserError and RunFailed as `Client.scores` does, soon.
        """
        self._try_out(patience=min(OPENING_SECONDS, self._spec.server.patience))

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """The pairs' texts; tokens are the server's affair."""
        return PreparedPairs(with_plain_marks(pairs), np.zeros(len(pairs), np.int32), np.zeros(len(pairs), bool))

    def score_prepared(self, prepared: PreparedPairs, *, on_batch: OnBatch = ignore_batch) -> NDArray[np.float32]:
        """[n] raw logits. Raises UserError and RunFailed as `Client.scores` does, and where scores are not of the kind that is set."""
        from retrieval.teachers.http.client import Request

        if not self._tried:
            self._try_out(patience=self._spec.server.patience)
        pairs: Sequence[Pair] = prepared.pairs
        parts = parts_by_query(pairs, most=self._spec.server.documents)
        requests = [Request(pairs[rows[0]][0], [pairs[row][1] for row in rows]) for rows in parts]
        logits = np.empty(len(pairs), np.float32)
        answers = self._scores(requests, on_answer=lambda place: on_batch(len(parts[place]), 0, 0))
        for rows, scores in zip(parts, answers, strict=True):
            logits[rows] = self._logits_of(scores)
        if not np.isfinite(logits).all():
            raise RunFailed(f"{self._spec.url} gave scores that no float32 holds")
        return logits

    def _logits_of(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The logits that the scores are, or whose sigmoids they are."""
        spec = self._spec
        if spec.gives_logits:
            return scores
        outside = scores[(scores < 0) | (scores > 1)]
        if len(outside):
            raise UserError(f"{spec.url} gives the score {float(outside[0])}, which is no probability: set teacher.http.scores=logit")
        self._seen += len(scores)
        self._saturated += int(((scores == 0) | (scores == 1)).sum())
        if spec.server.scores == "auto" and self._saturated > _SATURATED_SHARE * max(self._seen, _SATURATED_FROM):
            raise UserError(
                f"{self._saturated:,} of {self._seen:,} probabilities of {spec.url} are exactly 0 or 1, which tells no logit: let the "
                f"server compute in float32{_ways_to_logits(spec.server.shape)}; teacher.http.scores=probability takes them for "
                f"{LARGEST_LOGIT:.1f} and -{LARGEST_LOGIT:.1f}"
            )
        return undo_sigmoid(scores)

    def _scores(self, requests: Sequence[Request], **words: Any) -> list[NDArray[np.float64]]:
        """As `Client.scores` gives them, asked for as the settings say where `words` say nothing else."""
        asked = {"logits": self._spec.gives_logits, "more": self._spec.more}
        return self._client.scores(requests, **{**asked, **words})

    def _try_out(self, *, patience: float) -> None:
        """See `load`."""
        from retrieval.teachers.http.client import Request

        spec = self._spec
        if (served := self._client.served()) and spec.name not in served:
            raise UserError(
                f"{spec.url} serves {', '.join(served[:10])}, not teacher.model={spec.name}: set teacher.model to what it serves"
            )
        request = [Request(*_TRIED)]
        (scores,) = self._scores(request, patience=patience)
        self._logits_of(scores)

        def same(**words: Any) -> bool:
            """Whether the server gives the same where it is asked otherwise."""
            return np.allclose(scores, self._scores(request, patience=patience, **words)[0], rtol=1e-3, atol=0)

        if spec.server.scores == "auto" and spec.gives_logits and ((scores > 0) & (scores < 1)).all() and same(logits=False):
            asked = ", ".join(f"{name}={str(value).lower()}" for name, value in spec.shape.raw.items())
            raise UserError(
                f"{spec.url} gives the same scores with {asked} and without, all between 0 and 1: set teacher.http.scores=probability, or "
                "teacher.http.scores=logit where its model has no sigmoid"
            )
        if spec.instruction is not None and same(more={name: value for name, value in spec.more.items() if name != spec.shape.instruction}):
            raise UserError(
                f"{spec.url} gives the same scores with teacher.instruction and without: leave it out, or serve a newer vLLM, with a "
                "template that has a place for it"
            )
        self._tried = True


def parts_by_query(pairs: Sequence[Pair], *, most: int) -> list[list[int]]:
    """The places of the pairs, those of one query together, at most so many in a part. Queries stay in the order of their first pairs."""
    by_query: dict[str, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(place)
    return [places[start : start + most] for places in by_query.values() for start in range(0, len(places), most)]


def resolve_http(teacher: settings.Teacher, *, device: str) -> HttpSpec:
    """Check what the settings say of the server, and ask it nothing.

    Raises UserError: no address or revision, an address or a name of a variable that may hold a key, settings of teachers of files.
    """
    server = teacher.http
    if not server.url:
        raise UserError("teacher.backend=http needs the address of its server: teacher.http.url=http://HOST:PORT")
    if not teacher.revision:
        raise UserError(
            "teacher.backend=http needs teacher.revision=NAME: the server's weights cannot be read, so logits are kept under teacher.model "
            "and the revision that you declare; give another one when the model or how it is served (length, precision) becomes another"
        )
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", server.key_variable):  # what was given may be the key, and is not repeated
        raise UserError("teacher.http.key_variable is the name of an environment variable, in capitals, that holds the key; not the key")
    for name in _OF_FILES:
        default = settings.Teacher.model_fields[name].default
        if getattr(teacher, name) != default:
            raise UserError(
                f"teacher.{name}={getattr(teacher, name)} means nothing to teacher.backend=http, whose server is started with what it "
                "needs: leave it out, or set it to its default"
            )
    shape = SHAPES[server.shape]
    for name, given, taken in (("instruction", teacher.instruction, shape.instruction), ("http.truncate", server.truncate, shape.longest)):
        if given and not taken:
            raise UserError(f"teacher.{name} is not sent with teacher.http.shape={server.shape}: use shape=score of vLLM, or leave it out")
    longest = teacher.max_tokens if server.truncate else None
    return HttpSpec(teacher.model, teacher.revision, endpoint_of(server.url, shape), server, teacher.instruction, longest)


def endpoint_of(url: str, shape: Shape) -> str:
    """The address of the endpoint, from that or the one above it. Raises UserError where it is none, or may hold a key."""
    try:
        parts = urlsplit(url.strip())
        told, _ = parts.hostname, parts.port
    except ValueError:
        parts, told = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not told:
        raise UserError("teacher.http.url: expected http://HOST:PORT or https://HOST, with a path where the server has one")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            "teacher.http.url holds a user, a key or a query, which would be written into stores and logs: leave it out, and put a key "
            "into the environment variable that teacher.http.key_variable names"
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith(f"/{shape.endpoint}") else f"{path}/{shape.endpoint}"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _key_in(variable: str) -> str | None:
    """The key of the environment. Raises UserError where a variable that was asked for has none, or none that can be sent."""
    key = os.environ.get(variable, "").strip()
    if not key and variable != settings.HttpServer.model_fields["key_variable"].default:
        raise UserError(f"teacher.http.key_variable={variable}: {platform.node()} has no such environment variable, or it is empty")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in the environment variable {variable} of {platform.node()} has characters that no header can have")
    return key or None


def _ways_to_logits(shape: str) -> str:
    """How the same server may give logits instead."""
    ways = {"rerank": "vLLM gives logits with teacher.http.shape=score, Infinity with infinity, TEI with tei"}
    return f"; {ways[shape]}" if shape in ways else "; teacher.http.scores=logit asks for logits"
