"""The logit store: teacher scores that are never computed twice.

Not here: the teachers (`retrieval/teachers`).
"""
