"""What others write and we read: collections, qrels, TREC runs.

Not here: tables of the store (`tables`).
"""
