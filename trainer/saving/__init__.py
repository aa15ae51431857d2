"""Checkpoints, output folders, and their rehearsal before any step.

Not here: when they are written (`trainer/loop.py`).
"""
