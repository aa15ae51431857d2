"""Sentences for training small tokenizers, and pairs of query and passage that try them: short, long, empty, umlauts, Chinese."""

from __future__ import annotations

from itertools import product

_WHO = [
    "the insured driver",
    "a small company",
    "my older sister",
    "every policy holder",
    "the river authority",
    "a patient",
    "our teacher",
]
_DOES = ["asked about", "has paid for", "will never read", "compared", "explains", "cancelled", "wrote down"]
_WHAT = ["the premium of 1,250 dollars", "a claim for water damage", "the history of the old bridge", "an answer to this question",
         "medicare and retirement plans", "two documents on search", "the weather in October"]  # fmt: skip
_WHEN = ["last year", "before it was too late", "because nobody else could", "in 30 days", "while travelling"]
_ANSWERS = [
    "yes, the document meets it",
    "no, it does not",
    "Yes it is",
    "No it is not",
    "query: what is it",
    "document: an answer is here",
    "one ... --- two",
]

TRAINING = [f"{who.capitalize()} {does} {what} {when}." for who, does, what, when in product(_WHO, _DOES, _WHAT, _WHEN)] + _ANSWERS * 60

QUERIES = [
    "how long does a claim take", "What is the premium?", "weather in October", "a", "Who compared two documents on search last year?",
    "Übergröße für Ärzte — naïve café?", "保険の請求 とは", "1,250 dollars", "DOES Medicare cover it", "the history of the old bridge",
    "answer: yes or no", "explains\tnothing",
]  # fmt: skip
_LONG = " ".join(TRAINING[start] for start in range(0, 1700, 60))
PASSAGES = [
    "The premium is paid in 30 days.", TRAINING[7], " ".join(TRAINING[200:204]), _LONG, "short",
    "Die Prämie für Öl- und Wasserschäden beträgt 1.250 €, heißt es.", "我的保险 covers water damage，答案是：没有。", "",
    " ".join(TRAINING[900:908]), f"{TRAINING[1500]}\n\n{TRAINING[40]}", "no", " ".join(["claim"] * 40),
]  # fmt: skip
PAIRS = [(query, PASSAGES[(number + 5 * place) % len(PASSAGES)]) for number, query in enumerate(QUERIES) for place in range(5)]
assert len(PAIRS) == 60
