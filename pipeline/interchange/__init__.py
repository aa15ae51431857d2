"""Scored lists in and out of a store: `prep import`, `prep export`, and logits between stores.

Not here: layouts of files (`data/formats/scored_lists`), the store itself (`data/logits`).
"""
