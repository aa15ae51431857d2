"""Training shards to batches: order, resume, reading ahead.

Not here: how shards are written (`data/tables`).
"""
