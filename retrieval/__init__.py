"""Text to vectors, scores, ranked lists and metrics. Knows `data` only.

Not here: stages and shards of work (`pipeline`), training (`trainer`).
"""
