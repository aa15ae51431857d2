"""The stages: one file each, with its row builder beside it; `pools.pairs` and `index` are in `negatives`.

Not here: how shards are run (`executors`) and in which order (`plan.py`).
"""
