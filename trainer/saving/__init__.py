"""Checkpoints, output folders, their rehearsal before any step; model cards, and a model's way to the hub.

Not here: when they are written (`trainer/loop.py`).
"""
