"""Pairs for the teacher: which, how many, how long, at what cost.

Not here: the teacher (`retrieval/teachers`).
"""
