"""The text around a query and a document that a teacher was trained on: a chat template, a prompt, an instruction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairText:
    """A pair as one text: `before`, the query, `between`, the document, `after`. Special tokens are written out in the parts."""

    before: str
    between: str
    after: str
    document_first: bool = False  # the two change places

    def of(self, query: str, document: str) -> str:
        """The whole text."""
        first, second = (document, query) if self.document_first else (query, document)
        return f"{self.before}{first}{self.between}{second}{self.after}"
