"""The dev set while training: when, and what it says.

Not here: metrics of runs (`retrieval/evaluation`).
"""
