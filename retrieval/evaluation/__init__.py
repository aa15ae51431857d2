"""Ranking metrics, judgements and their comparison.

Not here: the dev set in training (`trainer/evaluation`).
"""
