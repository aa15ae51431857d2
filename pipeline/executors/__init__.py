"""Where shards are computed: this process, or Ray's workers.

Not here: what a shard holds (`stages`).
"""
