"""Streams training shards and trains the student. Knows `data` and `retrieval`; never `pipeline`, never ray.

Not here: what the shards hold and where it comes from (`pipeline`).
"""
