"""Which token of a tokenizer an answer is, of whose logit a language model's score is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError, first_line
from retrieval.model_files.files import tokenizer_folder

_SPACES = ("Ġ", "▁")  # how vocabularies write the space before a token


def tokenizer_of(weights: Path, *, trusted: bool) -> Any:
    """The tokenizer by its own library; by transformers, in about three seconds, where there is no tokenizer.json."""
    path = tokenizer_folder(weights) / "tokenizer.json"
    if not path.is_file():
        from retrieval.models.tokenizer import Tokenizer

        return Tokenizer(weights, trusted=trusted).backend
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises a plain one
        raise UserError(f"no tokenizer can be loaded from {path}: {first_line(error)}") from error


def token_of(answer: str, tokenizer: Any, folder: Path) -> int:
    """The one token of an answer: `#693` by its number, else the one that the text becomes, else the one that the vocabulary writes so.

    Raises UserError where there is none, and where the vocabulary has another token of that name than the text becomes.
    """
    shown = f"teacher.answers: {json.dumps(answer, ensure_ascii=False)}"
    entry = tokenizer.token_to_id(answer)
    if entry is None and answer.startswith("#") and answer[1:].isdecimal():
        if tokenizer.id_to_token(int(answer[1:])) is None:
            raise UserError(f"{shown} is no token of {folder}, which has {tokenizer.get_vocab_size():,}")
        return int(answer[1:])
    ids = tokenizer.encode(answer, add_special_tokens=False).ids
    # An unknown word is one token too, but reads otherwise.
    same = len(ids) == 1 and _bare(tokenizer.decode(ids, skip_special_tokens=False)) == _bare(answer)
    if same and entry not in (None, ids[0]):
        raise UserError(
            f"{shown} may be two tokens of {folder}: read as a text it is {_pieces(ids, tokenizer)}, and the vocabulary has another one of "
            f"that name; give its number, #{ids[0]} or #{entry}"
        )
    if same or entry is not None:
        return int(ids[0] if same else entry)
    count = "no token" if len(ids) < 2 else f"{len(ids)} tokens"
    near = _near(answer, tokenizer)
    remedy = f"give {' or '.join(near)}" if near else "give a word that is one token"
    raise UserError(f"{shown} is {count} of {folder} ({_pieces(ids, tokenizer)}), and a logit is of one: {remedy}")


def _bare(text: str) -> str:
    """A token's text without the space before it, which a tokenizer without a decoder gives as it is written, and without its case."""
    return text.strip().lstrip("".join(_SPACES)).casefold()


def _pieces(ids: Sequence[int], tokenizer: Any) -> str:
    return ", ".join(json.dumps(tokenizer.id_to_token(number), ensure_ascii=False) for number in ids)


def _near(answer: str, tokenizer: Any) -> list[str]:
    """Like answers that are one token: with a space before, or in another case, as the vocabulary writes them."""
    bare = answer.strip()
    forms = [f"{space}{word}" for word in dict.fromkeys((bare, bare.capitalize(), bare.lower(), bare.upper())) for space in ("", *_SPACES)]
    return [form for form in forms if form != answer and tokenizer.token_to_id(form) is not None]
