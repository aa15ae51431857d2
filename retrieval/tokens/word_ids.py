"""Token ids of texts from those of their words, where a space parts everything that a tokenizer does.

BERT's tokenizers are such: the normaliser and WordPiece look at characters and words, and no word has a space in it. So a text's ids are
those of what lies between its spaces, one after the other. A collection has few words: each is tokenised once, and texts cost a look-up.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.ragged import Ragged, bounds_of, spans
from retrieval.tokens.seen_texts import SeenTexts

_KEPT_TOKENS = 1 << 17  # of words seen lately, about 15 MB with the words
_TEXTS_AT_ONCE = 4096
_CHARACTERS_AT_ONCE = 1 << 26  # Arrow counts the bytes of an array's strings in 32 bits, and a character has up to four
_SPACE = ord(" ")
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase"}
_PLAIN = re.compile(r"[!-~]+")  # an added token of other characters could be found across a space
_PROBES = ["", " ", "a", "Is it  1.5%?", " naïve café\nlong\u00a0x\t", "漢字 かな\u3000e\u0301 \u0301x", "x" * 150, "[SEP] a[MASK]b"]
Tokenise = Callable[[list[str]], list[NDArray[np.int32]]]


def parts_at_spaces(backend: Any) -> bool:
    """Whether the ids of a text are those of its parts between spaces, by the kinds of what a tokenizer is made of."""
    try:
        normalizer, pre_tokenizer = (
            json.loads(part.__getstate__()) if part is not None else None for part in (backend.normalizer, backend.pre_tokenizer)
        )
        plain = all(_PLAIN.fullmatch(token.content) for token in backend.get_added_tokens_decoder().values())
    except Exception:  # a part written in Python: whatever it does, it is asked for each text
        return False
    several = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer] if normalizer else []
    return (
        plain
        and all(one["type"] in _LOCAL_NORMALIZERS for one in several)
        and pre_tokenizer is not None
        and pre_tokenizer["type"] == "BertPreTokenizer"
        and type(backend.model).__name__ == "WordPiece"
    )


class WordIds:
    """The ids of texts of one tokenizer, whose words are remembered."""

    def __init__(self, tokenise: Tokenise) -> None:
        self._seen = SeenTexts(tokenise, kept_tokens=_KEPT_TOKENS)
        self._lock = threading.Lock()

    @staticmethod
    def of(backend: Any, tokenise: Tokenise) -> WordIds | None:
        """None where words are not tokenised alone; that they are is tried out."""
        if not parts_at_spaces(backend):
            return None
        words = WordIds(tokenise)
        whole = tokenise(_PROBES)
        return words if all(map(np.array_equal, words.lists(_PROBES), whole)) else None

    def lists(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """The ids of each text, as the tokenizer gives them for the whole."""
        parts = (self._ids(part) for part in _parts(texts, _TEXTS_AT_ONCE))
        return [ids for part in parts for ids in part.part(0, len(part))]

    def _ids(self, texts: list[str]) -> Ragged:
        words, bounds = _words_of(pa.array(texts, pa.string()))
        encoded = words.dictionary_encode()
        with self._lock:
            numbers = self._seen.numbers(encoded.dictionary.to_pylist())
            ids = self._seen.ids
        starts, lengths = ids.bounds[numbers], ids.bounds[numbers + 1] - ids.bounds[numbers]
        of_words = encoded.indices.to_numpy()
        lengths = lengths[of_words]
        return Ragged(ids.values[spans(starts[of_words], lengths)], bounds_of(lengths)[bounds])


def _parts(texts: list[str], most: int) -> Iterator[list[str]]:
    """Texts that are looked up at once."""
    for start in range(0, len(texts), most):
        part = texts[start : start + most]
        if most > 1 and sum(map(len, part)) > _CHARACTERS_AT_ONCE:
            yield from _parts(part, most // 2)
        else:
            yield part


def _words_of(texts: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """(words, each with the space behind it; [n + 1] where each text begins among them), over the characters of the texts."""
    if not len(texts):
        return texts, np.zeros(1, np.int64)
    _, offsets, characters = texts.buffers()
    begins = np.frombuffer(offsets, np.int32, count=len(texts) + 1, offset=4 * texts.offset)
    cuts = np.zeros(int(begins[-1]) + 1, bool)
    if characters is not None:
        cuts[1:] = np.frombuffer(characters, np.uint8, count=int(begins[-1])) == _SPACE
    cuts[: begins[0]] = False
    cuts[begins] = True
    bounds = np.flatnonzero(cuts).astype(np.int32)
    words = pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), characters)
    return words, np.searchsorted(bounds, begins)
